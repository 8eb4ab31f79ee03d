"""The Brier score."""

import torch
from torch import Tensor
from torchmetrics import Metric


class Brier(Metric):
    """Mean squared error of probabilities."""

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", default=torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("rows", default=torch.zeros(()), dist_reduce_fx="sum")

    def update(self, preds: Tensor, labels: Tensor) -> None:
        """Add a batch of probabilities (B,) and labels (B,)."""
        self.total += (preds - labels).square().sum()
        self.rows += labels.numel()

    def compute(self) -> Tensor:
        """The score, scalar."""
        return self.total / self.rows
