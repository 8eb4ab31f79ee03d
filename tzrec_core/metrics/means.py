"""Metrics that are the mean of something per row, added up in float64."""

# B batch, C classes

import torch
from torch import Tensor
from torchmetrics import Metric

from tzrec_core.errors import ConfigError


class _Mean(Metric):
    """Mean over all rows of all ranks; NaN without any."""

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", default=torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def _add(self, values: Tensor) -> None:
        self.total += values.detach().sum(dtype=torch.float64)
        self.count += values.numel()

    def compute(self) -> Tensor:
        """The mean, scalar float32."""
        return (self.total / self.count).float()


class MeanAbsoluteError(_Mean):
    """Mean of |prediction - label|."""

    higher_is_better = False

    def update(self, preds: Tensor, labels: Tensor) -> None:
        """Add a batch of predictions (B,) and labels (B,) of any numeric dtype."""
        self._add((preds.double() - labels.double()).abs())


class MeanSquaredError(_Mean):
    """Mean of (prediction - label)^2."""

    higher_is_better = False

    def update(self, preds: Tensor, labels: Tensor) -> None:
        """Add a batch of predictions (B,) and labels (B,) of any numeric dtype."""
        self._add((preds.double() - labels.double()).square())


class LogLoss(_Mean):
    """Mean binary cross entropy of probabilities, in nats.

    Probabilities are clipped to [e, 1 - e], e = 1.2e-7 being the float32 resolution.
    """

    higher_is_better = False

    def update(self, preds: Tensor, labels: Tensor) -> None:
        """Add a batch of probabilities (B,) and labels (B,) in [0, 1]."""
        self._add(binary_log_loss(preds, labels, torch.finfo(torch.float32).eps))


class Accuracy(_Mean):
    """Share of the rows whose class is predicted.

    Args:
        threshold: with one class: probabilities above it predict the positive class.
        top_k: with several classes: a row counts when its class is among the k most probable; 1 <= k <=
            num_class.
        num_class: 1 = a probability per row, else class probabilities (B, C).

    Raises:
        ConfigError: top_k is out of range.
    """

    higher_is_better = True

    def __init__(self, threshold: float = 0.5, top_k: int = 1, num_class: int = 1) -> None:
        super().__init__()
        if not 1 <= top_k <= num_class:
            raise ConfigError(f"accuracy.top_k = {top_k} does not lie between 1 and num_class = {num_class}.")
        self._threshold = threshold
        self._top_k = top_k
        self._num_class = num_class

    def update(self, preds: Tensor, labels: Tensor) -> None:
        """Add a batch of probabilities (B,) or (B, C) and labels (B,)."""
        if self._num_class == 1:
            self._add((preds.flatten() > self._threshold) == (labels.flatten() > 0.5))
        elif self._top_k == 1:
            self._add(preds.argmax(1) == labels)
        else:
            self._add(_is_among_top(preds, labels, self._top_k))


class RecallAtK(_Mean):
    """Share of the true classes that are among the K best scored of their row.

    Args:
        top_k: K >= 1. With no more than K candidates every row counts.

    Raises:
        ConfigError: top_k < 1.
    """

    higher_is_better = True

    def __init__(self, top_k: int = 5) -> None:
        super().__init__()
        if top_k < 1:
            raise ConfigError(f"recall_at_k.top_k = {top_k}: give at least 1.")
        self._top_k = top_k

    def update(self, preds: Tensor, labels: Tensor) -> None:
        """Add a batch of scores (B, C) and the number of each row's true class (B,), or a mask of all (B, C)."""
        top_k = min(self._top_k, preds.shape[1])
        if labels.dim() == 1:
            self._add(_is_among_top(preds, labels, top_k))
            return
        mask_BC = labels > 0
        self.total += mask_BC.gather(1, preds.detach().topk(top_k, dim=1).indices).sum(dtype=torch.float64)
        self.count += mask_BC.sum()


class RelativeL1(_Mean):
    """Mean of |x - y| / (max(|x|, |y|) + eps) over all elements; below 1 where signs agree, at most 2.

    Args:
        eps: keeps pairs of zeros at 0.
    """

    higher_is_better = False

    def __init__(self, eps: float = 1e-4) -> None:
        super().__init__()
        self._eps = eps

    def update(self, preds: Tensor, labels: Tensor) -> None:
        """Add two tensors of one shape, such as reconstructions and their originals (B, D)."""
        preds, labels = preds.double(), labels.double()
        self._add((preds - labels).abs() / (torch.maximum(preds.abs(), labels.abs()) + self._eps))


class Calibration(Metric):
    """Mean predicted probability over the mean label; 1 = calibrated, above 1 = too confident.

    Returns of `compute`:
        Scalar float32; infinite without any positive label, NaN without any row.
    """

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.add_state("pred_sum", default=torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("label_sum", default=torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, preds: Tensor, labels: Tensor) -> None:
        """Add a batch of probabilities (B,) and labels (B,)."""
        self.pred_sum += preds.detach().sum(dtype=torch.float64)
        self.label_sum += labels.sum(dtype=torch.float64)

    def compute(self) -> Tensor:
        """The ratio over all rows of all ranks."""
        return (self.pred_sum / self.label_sum).float()


class NormalizedEntropy(_Mean):
    """Mean log loss over the log loss of always predicting the mean label; below 1 = better than that.

    He et al., ADKDD 2014, sec. 3.

    Args:
        eta: probabilities and the mean label are clipped to [eta, 1 - eta].
    """

    higher_is_better = False

    def __init__(self, eta: float = 1e-12) -> None:
        super().__init__()
        self._eta = eta
        self.add_state("label_sum", default=torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, preds: Tensor, labels: Tensor) -> None:
        """Add a batch of probabilities (B,) and labels (B,) in [0, 1]."""
        self._add(binary_log_loss(preds, labels, self._eta))
        self.label_sum += labels.sum(dtype=torch.float64)

    def compute(self) -> Tensor:
        """The ratio over all rows of all ranks, scalar float32."""
        base_rate = self.label_sum / self.count
        return (self.total / self.count / binary_log_loss(base_rate, base_rate, self._eta)).float()


def binary_log_loss(probs: Tensor, labels: Tensor, eps: float) -> Tensor:
    """Binary cross entropy per element in float64, probabilities clipped to [eps, 1 - eps]."""
    probs, labels = probs.detach().double().clamp(eps, 1 - eps), labels.double()
    return -(labels * probs.log() + (1 - labels) * (-probs).log1p())


def _is_among_top(scores_BC: Tensor, labels_B: Tensor, top_k: int) -> Tensor:
    best_BK = scores_BC.detach().topk(top_k, dim=1).indices
    return (best_BK == labels_B[:, None]).any(1)
