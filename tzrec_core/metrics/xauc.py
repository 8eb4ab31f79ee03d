"""AUC for predicted numbers: the share of pairs of rows in the right order."""

# N rows, P pairs, G groups

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from tzrec_core.errors import ConfigError
from tzrec_core.metrics._rows import RowMetric

_CHUNK = 2**21


class XAUC(RowMetric):
    """Share of pairs of rows whose predictions are ordered as their labels; a tie in either counts as wrong.

    Pairs are drawn with replacement from all pairs of all rows by torch's global generator, at `compute`; so
    ranks agree up to sampling noise. Keeps all rows, 8 bytes each, and takes a time proportional to the
    pairs.

    Args:
        sample_ratio: in (0, 1]; how many pairs are drawn (at least one), as a share of the N (N - 1) / 2
            there are.
        max_pairs: how many pairs are drawn, at most all there are; set, it replaces `sample_ratio`. None or
            0 = unset.
        in_batch: count all pairs of each batch, none across batches, in flat memory; nothing is drawn.

    Returns of `compute`:
        Scalar float32 in [0, 1]; NaN without any pair.

    Raises:
        ConfigError: sample_ratio is out of range.
    """

    higher_is_better = True

    def __init__(self, sample_ratio: float = 1e-3, max_pairs: int | None = None, in_batch: bool = False) -> None:
        super().__init__()
        if not 0 < sample_ratio <= 1:
            raise ConfigError(f"xauc.sample_ratio = {sample_ratio} lies outside (0, 1].")
        self._sample_ratio = sample_ratio
        self._max_pairs = max_pairs or None
        self._in_batch = in_batch
        if in_batch:
            self.add_state("num_right", default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
            self.add_state("num_pairs", default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        else:
            self._add_column("preds", torch.float32)
            self._add_column("labels", torch.float32)

    def update(self, preds: Tensor, labels: Tensor) -> None:
        """Add a batch of predictions (B,) and labels (B,) of any numeric dtype."""
        if self._in_batch:
            self.num_right += _count_right(preds.detach().flatten(), labels.flatten())
            self.num_pairs += preds.numel() * (preds.numel() - 1) // 2
        else:
            self._append("preds", preds)
            self._append("labels", labels)

    def compute(self) -> Tensor:
        """The share over the pairs drawn from the rows of all ranks, or over the pairs of all batches."""
        if self._in_batch:
            return (self.num_right.double() / self.num_pairs).float()
        preds_N, labels_N = self._column("preds"), self._column("labels")
        all_pairs = len(preds_N) * (len(preds_N) - 1) // 2
        num_pairs = min(self._max_pairs or max(int(all_pairs * self._sample_ratio), 1), all_pairs)
        num_right = torch.zeros((), dtype=torch.int64, device=preds_N.device)
        for start, end in _chunks(num_pairs):
            pair_P = torch.randint(all_pairs, (end - start,), device=preds_N.device)
            num_right += _is_right(preds_N, labels_N, *_rows_of_pair(pair_P)).sum()
        return (num_right.double() / num_pairs).float()


class GroupedXAUC(RowMetric):
    """XAUC within groups, averaged by the groups' sizes; groups of one row are skipped.

    Of a group with more pairs than the limit that many are drawn with replacement by torch's global
    generator, at `compute`. Keeps all rows, 16 bytes each.

    Args:
        max_pairs_per_group: how many pairs of a group are looked at; >= 1.

    Returns of `compute`:
        Scalar float32 in [0, 1]; NaN when every group has one row.

    Raises:
        ConfigError: max_pairs_per_group < 1.
    """

    higher_is_better = True

    def __init__(self, max_pairs_per_group: int = 100) -> None:
        super().__init__()
        if max_pairs_per_group < 1:
            raise ConfigError(f"grouped_xauc.max_pairs_per_group = {max_pairs_per_group}: give at least 1.")
        self._max_pairs = max_pairs_per_group
        self._add_column("preds", torch.float32)
        self._add_column("labels", torch.float32)
        self._add_column("group_ids", torch.int64)

    def update(self, preds: Tensor, labels: Tensor, group_ids: Tensor) -> None:
        """Add a batch of predictions (B,), labels (B,) and integer group ids (B,)."""
        self._append("preds", preds)
        self._append("labels", labels)
        self._append("group_ids", group_ids)

    def compute(self) -> Tensor:
        """The weighted mean over the groups of all ranks; a group's rows may lie on several."""
        group_N, order_N = self._column("group_ids").sort(stable=True)
        preds_N, labels_N = self._column("preds")[order_N], self._column("labels")[order_N]
        size_G = group_N.unique_consecutive(return_counts=True)[1]
        first_G = size_G.cumsum(0) - size_G
        size_G, first_G = size_G[size_G > 1], first_G[size_G > 1]
        all_pairs_G = size_G * (size_G - 1) // 2
        num_pairs_G = all_pairs_G.clamp(max=self._max_pairs)
        end_G = num_pairs_G.cumsum(0)
        num_right_G = torch.zeros_like(size_G)
        for start, end in _chunks(int(num_pairs_G.sum())):
            slot_P = torch.arange(start, end, device=size_G.device)
            group_P = torch.searchsorted(end_G, slot_P, right=True)
            slot_P -= (end_G - num_pairs_G)[group_P]
            all_pairs_P = all_pairs_G[group_P]
            drawn_P = (torch.rand(len(slot_P), dtype=torch.float64, device=slot_P.device) * all_pairs_P).long()
            row_P, other_P = _rows_of_pair(torch.where(all_pairs_P > self._max_pairs, drawn_P, slot_P))
            first_P = first_G[group_P]
            right_P = _is_right(preds_N, labels_N, first_P + row_P, first_P + other_P)
            num_right_G.index_add_(0, group_P, right_P.long())
        share_G = num_right_G.double() / num_pairs_G
        return ((share_G * size_G).sum() / size_G.sum()).float()


def _chunks(total: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + _CHUNK, total)) for start in range(0, total, _CHUNK))


def _rows_of_pair(pair_P: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (i, j), i > j, of pairs numbered (1, 0), (2, 0), (2, 1), (3, 0), ..."""
    row_P = ((1 + (1 + 8 * pair_P.double()).sqrt()) / 2).long()
    row_P -= (row_P * (row_P - 1) // 2 > pair_P).long()
    row_P += (row_P * (row_P + 1) // 2 <= pair_P).long()
    return row_P, pair_P - row_P * (row_P - 1) // 2


def _is_right(preds_N: Tensor, labels_N: Tensor, row_P: Tensor, other_P: Tensor) -> Tensor:
    return (preds_N[row_P] - preds_N[other_P]) * (labels_N[row_P] - labels_N[other_P]) > 0


def _count_right(preds_N: Tensor, labels_N: Tensor) -> Tensor:
    """How many of all pairs are in the right order, found in O(N log^2 N) by merging sorted blocks."""
    by_pred_N = preds_N.argsort(descending=True)
    # Equal labels keep their predictions in falling order, so that none of their pairs looks right.
    by_label_N = labels_N[by_pred_N].argsort(stable=True)
    sorted_N = preds_N[by_pred_N][by_label_N].float()
    padded = 1 << max(len(sorted_N) - 1, 0).bit_length()
    blocks = F.pad(sorted_N, (0, padded - len(sorted_N)), value=-torch.inf).view(-1, 1)
    num_right = torch.zeros((), dtype=torch.int64, device=preds_N.device)
    while len(blocks) > 1:
        left, right = blocks[0::2].contiguous(), blocks[1::2].contiguous()
        num_right += torch.searchsorted(left, right).sum()
        blocks = torch.cat([left, right], dim=1).sort(dim=1).values
    return num_right
