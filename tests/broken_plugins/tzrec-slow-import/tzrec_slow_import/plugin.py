"""The manifest."""

import time

from tzrec_core.plugins import ModelSpec, hookimpl

time.sleep(0.55)


@hookimpl
def tzrec_specs() -> list[ModelSpec]:
    """Offer a model."""
    return [
        ModelSpec(
            name="slow",
            target="tzrec_slow_import.model:Slow",
            config="tzrec_slow_import.config:Slow",
            summary="A model for tests.",
        )
    ]
