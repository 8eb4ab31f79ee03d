"""The manifest."""

from tzrec_core.plugins import ModelSpec, hookimpl


@hookimpl
def tzrec_specs() -> list[ModelSpec]:
    """Offer what cannot be."""
    return [
        ModelSpec(
            name="bad_spec",
            target="tzrec_bad_spec.model.BadSpec",
            config="tzrec_bad_spec.config:BadSpec",
            traits=frozenset({"fly"}),  # type: ignore[arg-type]
        )
    ]
