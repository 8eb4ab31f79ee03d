"""What can be wrong with the tasks of a multi-task model: names that do not match, settings without effect."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from google.protobuf.message import Message

from tzrec_core.config.walk import messages_in
from tzrec_core.errors import did_you_mean

# Fields of model_config that say what a model of one task minimises and reports.
_OF_ONE_TASK = ("losses", "metrics", "train_metrics", "num_class")
_SPACE = "task_space_indicator_label"
_SPACE_WEIGHTS = ("in_task_space_weight", "out_task_space_weight")


def towers_in(settings: Message, path: str = "") -> Iterator[tuple[str, Any]]:
    """The tasks in a model's settings, which are the messages with losses of their own, as (path, message).

    Args:
        settings: the message of a multi-task model.
        path: of `settings`.
    """
    return (found for found in messages_in(settings, path) if "losses" in found[1].DESCRIPTOR.fields_by_name)


def reference_problems(
    settings: Message, path: str, *, labels: Sequence[str], sample_weights: Sequence[str]
) -> Iterator[str]:
    """Labels and sample weights that a model's settings name and data_config does not have.

    Args:
        settings: the message of any model.
        path: of `settings`, such as `model_config.mmoe`.
        labels: data_config.label_fields.
        sample_weights: data_config.sample_weight_fields.
    """
    for field, known_field, known in (
        ("label_name", "label_fields", labels),
        (_SPACE, "label_fields", labels),
        ("sample_weight_name", "sample_weight_fields", sample_weights),
    ):
        for place, message in messages_in(settings, path):
            name = getattr(message, field, None)
            if name is not None and name not in known and (name or field == "label_name"):
                listing = f"data_config.{known_field} ({', '.join(known) or 'empty'})"
                yield f"{place}.{field}: {name!r} is not among {listing}.{did_you_mean(name, list(known))}"


def task_problems(settings: Message, path: str) -> Iterator[str]:
    """What the tasks of a multi-task model say wrong by themselves.

    Args:
        settings: the model's message.
        path: of `settings`, such as `model_config.mmoe`.
    """
    towers = list(towers_in(settings, path))
    named = [(place, tower.tower_name) for place, tower in towers if "tower_name" in tower.DESCRIPTOR.fields_by_name]
    for name, count in Counter(name for _, name in named).items():
        places = [place for place, other in named if other == name]
        if count > 1:
            yield f"{' and '.join(places)} have one tower_name, {name!r}, which ends their predictions; rename one"
        if not name or "." in name:
            yield f"{places[0]}.tower_name = {name!r} ends names of predictions and metrics: write a name without dots"
    for place, tower in towers:
        written = {field.name for field, _ in tower.ListFields()}
        for field in _SPACE_WEIGHTS:
            if field in written and not getattr(tower, _SPACE, ""):
                yield f"{place}.{field} has no effect without {_SPACE}; write that too, or remove it"


def model_level_problems(model_config: Any, path: str) -> Iterator[str]:
    """What model_config says of one task although its model has several.

    Args:
        model_config: a ModelConfig with a multi-task model.
        path: of the model's settings.
    """
    for field, _ in model_config.ListFields():
        if field.name in _OF_ONE_TASK:
            yield f"model_config.{field.name} is not read: write {field.name} into each task of {path}, or remove it"
