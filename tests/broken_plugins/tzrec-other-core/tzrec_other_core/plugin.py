"""The manifest."""

from tzrec_core.plugins import ModelSpec, hookimpl


@hookimpl
def tzrec_specs() -> list[ModelSpec]:
    """Offer a model."""
    return [
        ModelSpec(
            name="other",
            target="tzrec_other_core.model:Other",
            config="tzrec_other_core.config:Other",
            summary="A model for tests.",
        )
    ]
