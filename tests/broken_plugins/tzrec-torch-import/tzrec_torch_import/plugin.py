"""The manifest."""

import torch  # noqa: F401

from tzrec_core.plugins import ModelSpec, hookimpl


@hookimpl
def tzrec_specs() -> list[ModelSpec]:
    """Offer a model."""
    return [
        ModelSpec(
            name="heavy",
            target="tzrec_torch_import.model:Heavy",
            config="tzrec_torch_import.config:Heavy",
            summary="A model for tests.",
        )
    ]
