"""Numbers and choices that no run can use, found without torch."""

import math
import re
from collections.abc import Callable, Iterator
from typing import Any

from google.protobuf.message import Message

from tzrec_core.config.walk import messages_in
from tzrec_core.errors import did_you_mean

_Check = tuple[Callable[[Any], bool], str]

_AT_LEAST_1: _Check = (lambda value: value >= 1, "must be 1 or more")
_NOT_NEGATIVE: _Check = (lambda value: 0 <= value < math.inf, "must be a number that is not negative")
_POSITIVE: _Check = (lambda value: 0 < value < math.inf, "must be a number greater than 0")
_ABOVE_1: _Check = (lambda value: 1 < value < math.inf, "must be greater than 1")
_SHARE: _Check = (lambda value: 0 <= value < 1, "must be from 0 up to, but not including, 1")
_FROM_0_TO_1: _Check = (lambda value: 0 <= value <= 1, "must be from 0 to 1")
_BETWEEN_0_AND_1: _Check = (lambda value: 0 < value < 1, "must be between 0 and 1")
_UP_TO_1: _Check = (lambda value: 0 < value <= 1, "must be greater than 0 and not above 1")

# Message.field -> what each value must be.
_RANGES: dict[str, _Check] = {
    "DataConfig.batch_size": _AT_LEAST_1,
    "DataConfig.eval_batch_size": _AT_LEAST_1,
    "DataConfig.fg_threads": _AT_LEAST_1,
    "MLP.hidden_units": _AT_LEAST_1,
    "MLP.dropout_ratio": _SHARE,
    **{
        f"{tower}.{field}": _NOT_NEGATIVE
        for tower in ("TaskTower", "BayesTaskTower", "InterventionTaskTower")
        for field in ("weight", "in_task_space_weight", "out_task_space_weight")
    },
    "BinaryCrossEntropy.label_smoothing": _SHARE,
    "SoftmaxCrossEntropy.label_smoothing": _SHARE,
    "AUC.thresholds": _AT_LEAST_1,
    "MulticlassAUC.thresholds": _AT_LEAST_1,
    "TrainMetricConfig.decay_step": _AT_LEAST_1,
    "TrainMetricConfig.decay_rate": _SHARE,
    "TrainConfig.log_step_count_steps": _AT_LEAST_1,
    "TrainConfig.gradient_accumulation_steps": _AT_LEAST_1,
    "TrainConfig.save_checkpoints_timestamp_quorum": _UP_TO_1,
    "EMAConfig.decay": _SHARE,
    "EarlyStopping.patience": _AT_LEAST_1,
    "EarlyStopping.min_delta": _NOT_NEGATIVE,
    "GradScaler.init_scale": _POSITIVE,
    "GradScaler.growth_factor": _ABOVE_1,
    "GradScaler.backoff_factor": _BETWEEN_0_AND_1,
    "GradScaler.growth_interval": _AT_LEAST_1,
    "GradClipping.max_gradient": _POSITIVE,
    "GradClipping.norm_type": (lambda value: value > 0, "must be greater than 0"),  # inf = the largest element
    "ExponentialDecayLR.decay_size": _AT_LEAST_1,
    "ExponentialDecayLR.decay_factor": _UP_TO_1,
    "ManualStepLR.learning_rates": _POSITIVE,
    "CosineAnnealingLR.T_max": _AT_LEAST_1,
    "CosineAnnealingWarmRestartsLR.T_0": _AT_LEAST_1,
    "CosineAnnealingWarmRestartsLR.T_mult": _AT_LEAST_1,
    **{
        f"{schedule}.{field}": _NOT_NEGATIVE
        for schedule in ("ExponentialDecayLR", "CosineAnnealingLR", "CosineAnnealingWarmRestartsLR")
        for field in ("warmup_learning_rate", "min_learning_rate")
    },
}
# The same in every message whose name ends in Optimizer.
_OF_OPTIMIZERS: dict[str, _Check] = {
    "lr": _NOT_NEGATIVE,
    "weight_decay": _NOT_NEGATIVE,
    "initial_accumulator_value": _NOT_NEGATIVE,
    "eps": _POSITIVE,
    "max_gradient": _POSITIVE,
    "momentum": _SHARE,
    "beta1": _SHARE,
    "beta2": _SHARE,
    "rho": _SHARE,
    "alpha": _SHARE,
    "dampening": _FROM_0_TO_1,
}
_CHOICES = {
    "TrainConfig.mixed_precision": ("", "BF16", "FP16"),
    "GradClipping.clipping_type": ("none", "norm", "value"),
}
# Message -> the field without which it says nothing.
_NEEDED = {
    "ExponentialDecayLR": ("decay_size", "the number of steps (epochs with by_epoch) per decay_factor"),
    "ManualStepLR": ("schedule_sizes", "the steps (epochs with by_epoch) at which the rate changes"),
    "CosineAnnealingLR": ("T_max", "the number of steps (epochs with by_epoch) of the way down"),
    "CosineAnnealingWarmRestartsLR": ("T_0", "the number of steps (epochs with by_epoch) of the first way down"),
}


def range_mistakes(config: Message, path: str = "") -> Iterator[str]:
    """One line, starting with the field's path, for every value that is written and out of range.

    Values that do not go together, and sizes that a schedule cannot do without, are out of range too.

    Args:
        config: a config, or a part of one.
        path: where the part stands, such as `data_config`.
    """
    for place, message in messages_in(config, path):
        prefix = f"{place}." if place else ""
        for field, value in message.ListFields():
            yield from _value_mistakes(message, field, value, prefix + field.name)
        name = message.DESCRIPTOR.name
        if name in _NEEDED:
            field_name, words = _NEEDED[name]
            if field_name not in {field.name for field, _ in message.ListFields()}:
                yield f"{prefix}{field_name} is missing: write {words}"
        if name in _TOGETHER:
            yield from _TOGETHER[name](message, prefix)


def _value_mistakes(message: Message, field: Any, value: Any, where: str) -> Iterator[str]:
    name = message.DESCRIPTOR.name
    key = f"{name}.{field.name}"
    check = _RANGES.get(key) or (_OF_OPTIMIZERS.get(field.name) if name.endswith("Optimizer") else None)
    if check is not None:
        is_right, words = check
        for item in value if field.is_repeated else [value]:
            if not is_right(item):
                yield f"{where} = {item:g}: it {words}"
    if key in _CHOICES and value not in _CHOICES[key]:
        known = [choice for choice in _CHOICES[key] if choice]
        yield f"{where} = {value!r} is not one of {', '.join(known)}.{did_you_mean(value, known)}"


def _train_config(message: Any, prefix: str) -> Iterator[str]:
    is_fp16 = message.mixed_precision == "FP16"
    if is_fp16 and not message.HasField("grad_scaler"):
        yield (
            f"{prefix}mixed_precision = 'FP16' needs {prefix}grad_scaler, without which small gradients vanish; "
            "write grad_scaler {}, or use BF16"
        )
    if message.HasField("grad_scaler") and not is_fp16:
        yield f'{prefix}grad_scaler is for FP16 only; write mixed_precision: "FP16", or remove it'


def _manual_step(message: Any, prefix: str) -> Iterator[str]:
    sizes, rates = list(message.schedule_sizes), list(message.learning_rates)
    if len(sizes) != len(rates):
        yield (
            f"{prefix}learning_rates has {len(rates)} entries and {prefix}schedule_sizes {len(sizes)}; write one rate "
            "for each size"
        )
    if any(size >= after for size, after in zip([0, *sizes], sizes)):
        yield f"{prefix}schedule_sizes = {sizes}: each must be greater than the one before it, the first than 0"


def _sgd(message: Any, prefix: str) -> Iterator[str]:
    if message.nesterov and (not message.momentum or message.dampening):
        yield f"{prefix}nesterov: it needs momentum greater than 0 and dampening 0"


def _part(message: Any, prefix: str) -> Iterator[str]:
    try:
        re.compile(message.regex_pattern)
    except re.error as error:
        yield f"{prefix}regex_pattern = {message.regex_pattern!r} is not a regular expression: {error}"


_TOGETHER: dict[str, Callable[[Any, str], Iterator[str]]] = {
    "TrainConfig": _train_config,
    "ManualStepLR": _manual_step,
    "SGDOptimizer": _sgd,
    "PartOptimizer": _part,
}
