"""The manifest."""

from tzrec_core.plugins import ModelSpec, hookimpl


@hookimpl
def tzrec_specs() -> list[ModelSpec]:
    """Offer a model."""
    return [
        ModelSpec(
            name="broken_config",
            target="tzrec_broken_config.model:BrokenConfig",
            config="tzrec_broken_config.config:BrokenConfig",
            summary="A model for tests.",
        )
    ]
