"""The manifest of tzrec-wide-and-deep."""

from tzrec_core.plugins import Group, ModelSpec, Task, Trait, hookimpl


@hookimpl
def tzrec_specs() -> list[ModelSpec]:
    """Offer Wide & Deep."""
    return [
        ModelSpec(
            name="wide_and_deep",
            target="tzrec_wide_and_deep.model:WideAndDeep",
            config="tzrec_wide_and_deep.config_pb2:WideAndDeep",
            task=Task.RANK,
            summary="A linear model that memorises beside a deep net that generalises.",
            paper="Cheng et al., DLRS 2016, arXiv:1606.07792",
            groups=(Group("wide", types=("WIDE",)), Group("deep")),
            traits=frozenset({
                Trait.SHARDED, Trait.TORCH_EXPORT, Trait.AOTI, Trait.SCRIPT, Trait.ONNX, Trait.QUANT, Trait.ROWWISE_LOSS
            }),
            example="examples/tiny.config",
        )
    ]  # fmt: skip
