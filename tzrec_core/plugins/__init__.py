"""The plugin system: specs, the two hooks, discovery and the registry. Never imports torch."""

from tzrec_core.plugins.discovery import Plugin, Selection, State
from tzrec_core.plugins.hooks import hookimpl
from tzrec_core.plugins.registry import (
    Offer,
    Registry,
    get_model,
    list_models,
    load_class,
    registry,
    use_registry,
)
from tzrec_core.plugins.spec import (
    CallbackSpec,
    FeatureSpec,
    Group,
    LossSpec,
    MetricSpec,
    ModelSpec,
    Output,
    ReaderSpec,
    SeqEncoderSpec,
    Spec,
    Task,
    Trait,
)

__all__ = [
    "CallbackSpec",
    "FeatureSpec",
    "Group",
    "LossSpec",
    "MetricSpec",
    "ModelSpec",
    "Offer",
    "Output",
    "Plugin",
    "ReaderSpec",
    "Registry",
    "Selection",
    "SeqEncoderSpec",
    "Spec",
    "State",
    "Task",
    "Trait",
    "get_model",
    "hookimpl",
    "list_models",
    "load_class",
    "registry",
    "use_registry",
]
