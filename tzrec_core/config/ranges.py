"""Numbers and choices that no run can use, found without torch."""

import math
from collections.abc import Callable, Iterator
from typing import Any

from google.protobuf.message import Message

from tzrec_core.config.walk import messages_in
from tzrec_core.errors import did_you_mean

_Check = tuple[Callable[[Any], bool], str]

_AT_LEAST_1: _Check = (lambda value: value >= 1, "must be 1 or more")
_NOT_NEGATIVE: _Check = (lambda value: 0 <= value < math.inf, "must be a number that is not negative")
_SHARE: _Check = (lambda value: 0 <= value < 1, "must be from 0 up to, but not including, 1")

# Message.field -> what each value must be. A field ending in `lr` of any optimizer is checked too.
_RANGES: dict[str, _Check] = {
    "DataConfig.batch_size": _AT_LEAST_1,
    "DataConfig.eval_batch_size": _AT_LEAST_1,
    "DataConfig.fg_threads": _AT_LEAST_1,
    "MLP.hidden_units": _AT_LEAST_1,
    "MLP.dropout_ratio": _SHARE,
    "BinaryCrossEntropy.label_smoothing": _SHARE,
    "SoftmaxCrossEntropy.label_smoothing": _SHARE,
    "AUC.thresholds": _AT_LEAST_1,
    "MulticlassAUC.thresholds": _AT_LEAST_1,
    "TrainMetricConfig.decay_step": _AT_LEAST_1,
    "TrainMetricConfig.decay_rate": _SHARE,
}
_CHOICES = {"TrainConfig.mixed_precision": ("", "BF16", "FP16")}


def range_mistakes(config: Message, path: str = "") -> Iterator[str]:
    """One line, starting with the field's path, for every value that is written and out of range.

    Args:
        config: a config, or a part of one.
        path: where the part stands, such as `data_config`.
    """
    for place, message in messages_in(config, path):
        for field, value in message.ListFields():
            where = f"{place}.{field.name}" if place else field.name
            key = f"{message.DESCRIPTOR.name}.{field.name}"
            check = _RANGES.get(key)
            if check is None and field.name == "lr" and message.DESCRIPTOR.name.endswith("Optimizer"):
                check = _NOT_NEGATIVE
            if check is not None:
                is_right, words = check
                for item in value if field.is_repeated else [value]:
                    if not is_right(item):
                        yield f"{where} = {item:g}: it {words}"
            if key in _CHOICES and value not in _CHOICES[key]:
                known = [choice for choice in _CHOICES[key] if choice]
                yield f"{where} = {value!r} is not one of {', '.join(known)}.{did_you_mean(value, known)}"
