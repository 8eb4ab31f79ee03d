"""The manifest."""

from tzrec_core.plugins import ModelSpec, hookimpl


@hookimpl
def tzrec_specs() -> list[ModelSpec]:
    """Offer a model."""
    return [
        ModelSpec(
            name="broken_model",
            target="tzrec_broken_model.model:BrokenModel",
            config="tzrec_broken_model.config:BrokenModel",
            summary="A model for tests.",
        )
    ]
