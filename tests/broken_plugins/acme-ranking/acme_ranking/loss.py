"""The Tversky loss."""

from typing import Any

import torch
from torch import Tensor, nn


class Tversky(nn.Module):
    """1 minus the Tversky index of a batch, to the power of gamma; with "none", each row has the same share."""

    def __init__(self, alpha: float, gamma: float = 1.0, beside: Any = None, reduction: str = "mean") -> None:
        super().__init__()
        self._alpha, self._gamma, self._reduction = alpha, gamma, reduction

    def forward(self, preds: Tensor, labels: Tensor) -> Tensor:
        """Compute the loss of logits (B,) against labels (B,)."""
        probs_B, labels_B = torch.sigmoid(preds), labels.to(preds.dtype)
        hits = (probs_B * labels_B).sum()
        wrong = self._alpha * (probs_B * (1 - labels_B)).sum()
        missed = (1 - self._alpha) * ((1 - probs_B) * labels_B).sum()
        loss = (1 - hits / (hits + wrong + missed + 1e-8)) ** self._gamma
        return loss if self._reduction == "mean" else loss.expand(preds.shape)
