"""The manifest of tzrec-deepfm."""

from tzrec_core.plugins import Group, ModelSpec, Task, Trait, hookimpl


@hookimpl
def tzrec_specs() -> list[ModelSpec]:
    """Offer DeepFM."""
    return [
        ModelSpec(
            name="deepfm",
            target="tzrec_deepfm.model:DeepFM",
            config="tzrec_deepfm.config_pb2:DeepFM",
            task=Task.RANK,
            summary="Factorization machine and deep net over shared embeddings.",
            paper="Guo et al., IJCAI 2017, arXiv:1703.04247",
            groups=(Group("wide", types=("WIDE",)), Group("deep"), Group("fm", required=False)),
            traits=frozenset({
                Trait.SHARDED, Trait.TORCH_EXPORT, Trait.AOTI, Trait.SCRIPT, Trait.ONNX, Trait.QUANT, Trait.ROWWISE_LOSS
            }),
            example="examples/tiny.config",
        )
    ]  # fmt: skip
