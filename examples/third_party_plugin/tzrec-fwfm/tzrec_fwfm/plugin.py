"""The manifest of tzrec-fwfm."""

from tzrec_core.plugins import Group, LossSpec, ModelSpec, Output, Spec, Task, Trait, hookimpl


@hookimpl
def tzrec_specs() -> list[Spec]:
    """Offer FwFM, and a loss that every model may use."""
    return [
        ModelSpec(
            name="fwfm",
            target="tzrec_fwfm.model:Fwfm",
            config="tzrec_fwfm.config:Fwfm",
            task=Task.RANK,
            summary="A factorization machine that weighs the pairs of fields.",
            paper="Pan et al., WWW 2018, arXiv:1806.03514",
            groups=(Group("wide", types=("WIDE",)), Group("fields")),
            traits=frozenset({Trait.SCRIPT, Trait.TORCH_EXPORT, Trait.ROWWISE_LOSS}),
            example="examples/tiny.config",
        ),
        LossSpec(
            name="poly1",
            target="tzrec_fwfm.loss:Poly1",
            config="tzrec_fwfm.loss_pb2:Poly1",
            summary="Cross entropy plus a multiple of the probability of the wrong answer.",
            output=Output.BINARY,
        ),
    ]
