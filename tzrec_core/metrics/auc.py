"""Area under the ROC curve, exact by default; of one class, and of several."""

# B batch, N rows, C classes, T thresholds

import logging

import torch
from torch import Tensor
from torchmetrics import Metric

from tzrec_core.errors import ConfigError, did_you_mean
from tzrec_core.metrics._roc import (
    NUM_BINS,
    logit_areas,
    logit_counts,
    roc_area,
    roc_areas,
    threshold_areas,
    threshold_counts,
)
from tzrec_core.metrics._rows import RowMetric, checked_classes

_log = logging.getLogger(__name__)
MAX_ROWS = 20_000_000
_ROWS_AT_A_TIME = 2**21
_AVERAGES = ("macro", "weighted", "none")


class _OneVersusRest(RowMetric):
    """ROC areas of C classes against the rest: exact up to a number of scores, then in bins over the logit.

    Scores are kept until there are more than `max_scores`; then all of them are folded into the bins and
    keeping starts anew. So memory stays flat, and no state says which of the two it is but the bins'
    presence.
    """

    higher_is_better = True

    def __init__(self, name: str, num_class: int, positives: list[int], thresholds: int | None, max_rows: int) -> None:
        super().__init__()
        if thresholds is not None and thresholds < 2:
            raise ConfigError(
                f"{name}.thresholds = {thresholds}: give at least 2, or leave it out for the exact value."
            )
        self._name = name
        self._num_class = num_class
        self._max_scores = max_rows
        self._said = False
        self.register_buffer("_positives_C", torch.tensor(positives), persistent=False)
        self._is_exact = thresholds is None
        if thresholds is None:
            self._add_column("scores", torch.float32)
            self._add_column("labels", torch.int8 if num_class <= 2**7 else torch.int32)
            self._add_column("bins", torch.int64)
        else:
            self.register_buffer("_thresholds_T", torch.linspace(0, 1, thresholds), persistent=False)
            counts = torch.zeros(len(positives), 2, thresholds + 1, dtype=torch.int64)
            self.add_state("counts", default=counts, dist_reduce_fx="sum")

    def _update(self, probs_BC: Tensor, labels: Tensor) -> None:
        labels_B = checked_classes(labels, self._num_class, self._name)
        probs_BC = probs_BC.detach().float()
        if not self._is_exact:
            self.counts += threshold_counts(probs_BC, self._is_positive(labels_B), self._thresholds_T)
            return
        self._append("scores", probs_BC)
        self._append("labels", labels_B)
        if self._num_rows("scores") > self._max_scores:
            if not self._said:
                self._said = True
                _log.warning(
                    "%s: more than %s scores on this rank. It goes on with %s bins over the logit: "
                    "the error stays below 1e-4 unless the logits hardly differ.",
                    self._name,
                    f"{self._max_scores:,}",
                    f"{NUM_BINS:,}",
                )
            self.bins = [self._folded().flatten()]
            self.scores, self.labels = [], []

    def _is_positive(self, labels_N: Tensor) -> Tensor:
        return labels_N[:, None] == self._positives_C

    def _rows(self) -> tuple[Tensor, Tensor]:
        return self._column("scores").view(-1, len(self._positives_C)), self._is_positive(self._column("labels"))

    def _folded(self) -> Tensor:
        """Counts of all rows, those in the bins (of every rank, when in sync) and those still kept."""
        counts = logit_counts(*self._rows())
        return counts + self._column("bins").view(-1, *counts.shape).sum(0)

    def _areas_and_weights(self) -> tuple[Tensor, Tensor]:
        """Area of each class, (C,), and how many rows are of it, (C,)."""
        if not self._is_exact:
            return threshold_areas(self.counts), self.counts[:, 1].sum(-1)
        if len(self._column("bins")):
            counts = self._folded()
            areas_C, errors_C = logit_areas(counts)
            _log.info("%s: bins leave it within %.1e of the exact value", self._name, errors_C.max())
            return areas_C, counts[:, 1].sum(-1)
        scores_NC, positive_NC = self._rows()
        areas = [roc_area(scores_N, positive_N) for scores_N, positive_N in zip(scores_NC.T, positive_NC.T)]
        return torch.stack(areas), positive_NC.sum(0)


class AUC(_OneVersusRest):
    """Chance that a positive row scores above a negative one; ties count half.

    Args:
        thresholds: unset = exact up to `max_rows` rows per rank, ties included; beyond, the rank's rows are
            counted in 2^16 bins over the logit, which is said in the log. A number = that many bins evenly
            over [0, 1], as TorchEasyRec and torchmetrics do: little memory, but far off where most
            probabilities are small.
        max_rows: how many rows a rank keeps (5 bytes each). For `compute` every rank gets those of all ranks, and
            takes three times as much again.

    Returns of `compute`:
        Scalar float32 in [0, 1]. With one class only: NaN when exact, 0 with `thresholds` (torchmetrics'
        value).

    Raises:
        ConfigError: thresholds < 2.
        DataError: `update` got a label other than 0 and 1.
    """

    def __init__(self, thresholds: int | None = None, max_rows: int = MAX_ROWS) -> None:
        super().__init__("auc", 2, [1], thresholds, max_rows)

    def update(self, preds: Tensor, labels: Tensor) -> None:
        """Add a batch of probabilities (B,) and labels (B,)."""
        self._update(preds.reshape(-1, 1), labels)

    def compute(self) -> Tensor:
        """The area over all rows of all ranks."""
        return self._areas_and_weights()[0][0].float()


class MulticlassAUC(_OneVersusRest):
    """ROC area of each class against the rest, averaged.

    Args:
        num_class: C >= 2.
        thresholds: as in `AUC`; the limit counts scores, C a row.
        average: "macro" = plain mean over the classes, "weighted" = by the rows of each, "none" = one area
            per class.
        max_rows: how many scores a rank keeps (4 bytes each). In bins a class takes 1 MiB.

    Returns of `compute`:
        Scalar float32, or (C,) with "none". A class without rows, or with all of them, has the area NaN and
        is left out of the averages when exact; with `thresholds` it counts as 0 (torchmetrics' value).

    Raises:
        ConfigError: num_class < 2, thresholds < 2, or an unknown average.
        DataError: `update` got a label outside [0, C).
    """

    def __init__(
        self, num_class: int, thresholds: int | None = None, average: str = "macro", max_rows: int = MAX_ROWS
    ) -> None:
        if num_class < 2:
            raise ConfigError(f"multiclass_auc needs num_class >= 2, got {num_class}; take auc for one class.")
        if average not in _AVERAGES:
            raise ConfigError(
                f"multiclass_auc.average = {average!r} is not one of {', '.join(_AVERAGES)}."
                f"{did_you_mean(average, _AVERAGES)}"
            )
        super().__init__("multiclass_auc", num_class, list(range(num_class)), thresholds, max_rows)
        self._average = average

    def update(self, preds: Tensor, labels: Tensor) -> None:
        """Add a batch of class probabilities (B, C) and class numbers (B,)."""
        self._update(preds, labels)

    def compute(self) -> Tensor:
        """The average, or the areas, over all rows of all ranks."""
        areas_C, weights_C = self._areas_and_weights()
        if self._average == "none":
            return areas_C.float()
        defined_C = ~areas_C.isnan()
        weights_C = weights_C[defined_C].double() if self._average == "weighted" else defined_C[defined_C].double()
        return ((areas_C[defined_C] * weights_C).sum() / weights_C.sum()).float()


class GroupedAUC(RowMetric):
    """Plain mean of the exact AUC of each group; groups with one class only are skipped.

    Keeps all rows, as it must: 13 bytes each on the rank that saw them. For `compute` every rank gets those of all
    ranks, and takes twice as much again, and 200 MiB.

    Returns of `compute`:
        Scalar float32, NaN when no group has both classes.

    Raises:
        DataError: `update` got a label other than 0 and 1.
    """

    higher_is_better = True

    def __init__(self) -> None:
        super().__init__()
        self._add_column("preds", torch.float32)
        self._add_column("labels", torch.int8)
        self._add_column("group_ids", torch.int64)

    def update(self, preds: Tensor, labels: Tensor, group_ids: Tensor) -> None:
        """Add a batch of probabilities (B,), labels (B,) and integer group ids (B,)."""
        self._append("preds", preds)
        self._append("labels", checked_classes(labels, 2, "grouped_auc"))
        self._append("group_ids", group_ids)

    def compute(self) -> Tensor:
        """The mean over the groups of all ranks; a group's rows may lie on several."""
        preds_N, positive_N, group_N = self._column("preds"), self._column("labels") == 1, self._column("group_ids")
        # Some of the groups at a time, for an area takes many times the memory of its rows.
        num_parts = -(-len(preds_N) // _ROWS_AT_A_TIME)
        areas = [preds_N.new_empty(0, dtype=torch.float64)]
        for part in range(num_parts):
            rows = (group_N % num_parts == part).nonzero().flatten()
            areas.append(roc_areas(preds_N[rows], positive_N[rows], group_N[rows]))
        return torch.cat(areas).nanmean().float()


class DecayAUC(Metric):
    """AUC in bins over [0, 1] of the latest blocks of batches, older blocks fading.

    `update` fills a block. `decay` closes it: counts become decay_rate * counts + (1 - decay_rate) * block.
    `compute` reads the counts, or the open block while none was closed.

    Args:
        thresholds: number of bins; >= 2.

    Returns of `compute`:
        Scalar float32; 0 with one class only.

    Raises:
        ConfigError: thresholds < 2.
    """

    full_state_update = False
    higher_is_better = True

    def __init__(self, thresholds: int = 200) -> None:
        super().__init__()
        if thresholds < 2:
            raise ConfigError(f"auc.thresholds = {thresholds}: a train metric needs at least 2 bins.")
        self.register_buffer("_thresholds_T", torch.linspace(0, 1, thresholds), persistent=False)
        counts = torch.zeros(1, 2, thresholds + 1, dtype=torch.float64)
        self.add_state("counts", default=counts, dist_reduce_fx="sum")
        self.add_state("block", default=counts.clone(), dist_reduce_fx="sum")

    def update(self, preds: Tensor, labels: Tensor) -> None:
        """Add a batch of probabilities (B,) and labels (B,); labels above 0 are positive."""
        probs_B1 = preds.detach().float().reshape(-1, 1)
        self.block += threshold_counts(probs_B1, labels.reshape(-1, 1) > 0, self._thresholds_T)

    def decay(self, decay_rate: float) -> None:
        """Close the block: blend it into the counts, which keep the share `decay_rate`."""
        self.counts = decay_rate * self.counts + (1 - decay_rate) * self.block
        self.block = torch.zeros_like(self.block)
        self._computed = None

    def compute(self) -> Tensor:
        """The area of the blended blocks."""
        open_block = torch.where(self.counts.sum() == 0, self.block, torch.zeros_like(self.block))
        return threshold_areas(self.counts + open_block)[0]
