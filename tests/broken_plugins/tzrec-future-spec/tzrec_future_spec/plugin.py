"""The manifest."""

from dataclasses import dataclass

from tzrec_core.plugins import ModelSpec, hookimpl


@dataclass(frozen=True)
class HologramSpec:
    """A kind of spec that comes with a later core."""

    name: str


@hookimpl
def tzrec_specs() -> list[object]:
    """Offer a model, and something else."""
    return [
        HologramSpec("hologram"),
        ModelSpec(
            name="future",
            target="tzrec_future_spec.model:Future",
            config="tzrec_future_spec.config:Future",
            summary="A model for tests.",
        ),
    ]
