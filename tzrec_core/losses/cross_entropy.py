"""Cross entropies of logits: of one class, and of several."""

# B batch, C classes

import torch.nn.functional as F
from torch import Tensor, nn

from tzrec_core.losses._reduction import checked_reduction, checked_smoothing


class BinaryCrossEntropy(nn.Module):
    """Log loss of one logit per row.

    Args:
        label_smoothing: in [0, 1]; a label y becomes y (1 - s) + s / 2.
        reduction: "mean" for a scalar, "none" for one loss per row.

    Raises:
        ConfigError: label_smoothing or reduction is out of range.
    """

    def __init__(self, label_smoothing: float = 0.0, reduction: str = "mean") -> None:
        super().__init__()
        self._label_smoothing = checked_smoothing(label_smoothing)
        self._reduction = checked_reduction(reduction)

    def forward(self, preds: Tensor, labels: Tensor) -> Tensor:
        """Compute the loss of logits (B,) against labels (B,), any numeric dtype, in [0, 1]."""
        labels_B = labels.to(preds.dtype)
        if self._label_smoothing:
            labels_B = labels_B * (1 - self._label_smoothing) + self._label_smoothing / 2
        return F.binary_cross_entropy_with_logits(preds, labels_B, reduction=self._reduction)


class SoftmaxCrossEntropy(nn.Module):
    """Log loss of the softmax over C logits per row.

    Args:
        label_smoothing: in [0, 1]; the share of each label that is spread evenly over all classes.
        reduction: "mean" for a scalar, "none" for one loss per row.

    Raises:
        ConfigError: label_smoothing or reduction is out of range.
    """

    def __init__(self, label_smoothing: float = 0.0, reduction: str = "mean") -> None:
        super().__init__()
        self._label_smoothing = checked_smoothing(label_smoothing)
        self._reduction = checked_reduction(reduction)

    def forward(self, preds: Tensor, labels: Tensor) -> Tensor:
        """Compute the loss of logits (B, C) against class numbers (B,) in [0, C)."""
        return F.cross_entropy(preds, labels.long(), reduction=self._reduction, label_smoothing=self._label_smoothing)
