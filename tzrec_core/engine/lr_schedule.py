"""Learning rates as functions of the steps or epochs behind: nothing to save but those two numbers."""

import math
from typing import Any

from google.protobuf.message import Message


def chosen_schedule(config: Any) -> Message | None:
    """The schedule set in an optimizer's config; None when there is none, which means a constant rate."""
    name = config.WhichOneof("learning_rate")
    return getattr(config, name) if name else None


def learning_rate(schedule: Any, lr: float, *, step: int, epoch: int) -> float:
    """The rate of the step that follows.

    Args:
        schedule: a message such as ExponentialDecayLR, in the ranges that validation checks; None = constant.
        lr: the optimizer's own rate, which the schedule starts from.
        step: training steps (batches) behind; counts unless the schedule says `by_epoch`.
        epoch: whole epochs behind.
    """
    name = schedule.DESCRIPTOR.name if schedule is not None else "ConstantLR"
    if name == "ConstantLR":
        return lr
    time = epoch if schedule.by_epoch else step
    if name == "ManualStepLR":
        return _manual_step(schedule, lr, time)
    if time < schedule.warmup_size:
        return _between(schedule.warmup_learning_rate, lr, time / schedule.warmup_size)
    return _AFTER_WARMUP[name](schedule, lr, time - schedule.warmup_size)


def _between(start: float, end: float, share: float) -> float:
    return start + (end - start) * share


def _manual_step(schedule: Any, lr: float, time: int) -> float:
    sizes, rates = schedule.schedule_sizes, schedule.learning_rates
    if time < sizes[0]:
        return _between(lr, rates[0], time / sizes[0]) if schedule.warmup else lr
    return float(next(rate for size, rate in zip(reversed(sizes), reversed(rates)) if time >= size))


def _exponential_decay(schedule: Any, lr: float, time: int) -> float:
    exponent = time // schedule.decay_size if schedule.staircase else time / schedule.decay_size
    return max(lr * schedule.decay_factor**exponent, schedule.min_learning_rate)


def _cosine_annealing(schedule: Any, lr: float, time: int) -> float:
    return _half_cosine(lr, schedule.min_learning_rate, min(time / schedule.T_max, 1.0))


def _cosine_annealing_warm_restarts(schedule: Any, lr: float, time: int) -> float:
    length = schedule.T_0
    if schedule.T_mult == 1:
        time %= length
    while time >= length:
        time -= length
        length *= schedule.T_mult
    return _half_cosine(lr, schedule.min_learning_rate, time / length)


def _half_cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


_AFTER_WARMUP = {
    "ExponentialDecayLR": _exponential_decay,
    "CosineAnnealingLR": _cosine_annealing,
    "CosineAnnealingWarmRestartsLR": _cosine_annealing_warm_restarts,
}
