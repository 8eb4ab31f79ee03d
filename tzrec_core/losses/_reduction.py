"""What the losses share: the two ways to give a loss back."""

from torch import Tensor

from tzrec_core.errors import ConfigError

REDUCTIONS = ("mean", "none")


def checked_reduction(reduction: str) -> str:
    """`reduction` itself, if it is one that a loss knows."""
    if reduction not in REDUCTIONS:
        raise ConfigError(f"reduction = {reduction!r} is not one of {', '.join(REDUCTIONS)}.")
    return reduction


def checked_smoothing(label_smoothing: float) -> float:
    """`label_smoothing` itself, if it is a share."""
    if not 0 <= label_smoothing <= 1:
        raise ConfigError(f"label_smoothing = {label_smoothing} lies outside [0, 1]; 0 turns it off.")
    return label_smoothing


def reduced(loss_B: Tensor, reduction: str) -> Tensor:
    """The mean of a loss per row, or the rows as they are."""
    return loss_B.mean() if reduction == "mean" else loss_B
