"""The manifest."""

from tzrec_core.plugins import ModelSpec, hookimpl


@hookimpl
def tzrec_specs() -> list[ModelSpec]:
    """Offer a model."""
    return [
        ModelSpec(
            name="clash",
            target="tzrec_clash_two.model:Two",
            config="tzrec_clash_two.config:Two",
            summary="A model for tests.",
        )
    ]
