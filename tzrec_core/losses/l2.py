"""Squared error of a predicted number."""

import torch.nn.functional as F
from torch import Tensor, nn

from tzrec_core.losses._reduction import checked_reduction


class L2Loss(nn.Module):
    """Squared difference of a prediction and its label.

    Args:
        reduction: "mean" for a scalar, "none" for one loss per row.

    Raises:
        ConfigError: reduction is neither.
    """

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__()
        self._reduction = checked_reduction(reduction)

    def forward(self, preds: Tensor, labels: Tensor) -> Tensor:
        """Compute the loss of `y` (B,) against labels (B,) of any numeric dtype."""
        return F.mse_loss(preds, labels.to(preds.dtype), reduction=self._reduction)
