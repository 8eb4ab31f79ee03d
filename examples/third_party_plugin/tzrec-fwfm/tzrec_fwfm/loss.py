"""The Poly-1 loss."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Poly1(nn.Module):
    """Cross entropy plus epsilon times the probability of the wrong answer.

    Leng et al., ICLR 2022, eq. 6.
    """

    def __init__(self, epsilon: float = 1.0, reduction: str = "mean") -> None:
        super().__init__()
        self._epsilon, self._reduction = epsilon, reduction

    def forward(self, preds: Tensor, labels: Tensor) -> Tensor:
        """The loss of logits (B,) against labels (B,) of 0 and 1: a number, or (B,) when reduction is "none"."""
        wrong_B = torch.sigmoid(torch.where(labels > 0.5, -preds, preds))
        loss_B = F.binary_cross_entropy_with_logits(preds, labels, reduction="none") + self._epsilon * wrong_B
        return loss_B.mean() if self._reduction == "mean" else loss_B
