"""The manifest."""

from tzrec_core.plugins import Group, ModelSpec, hookimpl


@hookimpl
def tzrec_specs() -> list[ModelSpec]:
    """Offer a model."""
    return [
        ModelSpec(
            name="plain_model",
            target="tzrec_plain.model:PlainModel",
            config="tzrec_plain.config:PlainModel",
            summary="A model for tests.",
            groups=(Group("*"),),
            aliases=("plain",),
            replaces=("old_plain",),
        )
    ]
