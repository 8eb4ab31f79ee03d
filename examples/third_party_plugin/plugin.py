"""The manifest: what there is to use. It imports no torch, so that commands which only look start at once."""

from dataclasses import dataclass, field

from tzrec_core.plugins import Group, ModelSpec, Task, hookimpl


@dataclass(frozen=True)
class FwfmConfig:
    """A factorization machine that weighs the pairs of fields."""

    pair_dropout: float = field(default=0.0, metadata={"doc": "Share of the products that training sets to 0."})
    wide_embedding_dim: int = field(default=4, metadata={"doc": "How many numbers are summed to the weight of an id."})


@hookimpl
def tzrec_specs():
    """Offer FwFM."""
    return [
        ModelSpec(
            name="fwfm",
            target="model:Fwfm",
            config="plugin:FwfmConfig",
            task=Task.RANK,
            summary="A factorization machine that weighs the pairs of fields.",
            paper="Pan et al., WWW 2018, arXiv:1806.03514",
            groups=(Group("wide", types=("WIDE",)), Group("fields")),
        )
    ]
