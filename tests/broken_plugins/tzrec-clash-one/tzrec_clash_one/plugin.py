"""The manifest."""

from tzrec_core.plugins import ModelSpec, hookimpl


@hookimpl
def tzrec_specs() -> list[ModelSpec]:
    """Offer a model."""
    return [
        ModelSpec(
            name="clash",
            target="tzrec_clash_one.model:One",
            config="tzrec_clash_one.config:One",
            summary="A model for tests.",
        )
    ]
