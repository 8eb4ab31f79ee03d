"""Areas under ROC curves: exact, per group, and from counts in bins."""

# N rows, G groups, C classes, T thresholds, K blocks or bins

import torch
import torch.nn.functional as F
from torch import Tensor

NUM_BINS = 2**16
# A float32 probability is at most 1 - 6e-8, whose logit is 16.6.
_LOGIT_RANGE = 16.0
_CHUNK = 2**20


def roc_area(scores_N: Tensor, positive_N: Tensor) -> Tensor:
    """Share of (positive, negative) pairs in the right order, ties counting half.

    Takes about 15 bytes per row besides its arguments.

    Args:
        scores_N: float.
        positive_N: bool.

    Returns:
        Scalar float64; NaN when a class is absent or a score is NaN.
    """
    # Two short sorts, and no order to keep: half the memory of sorting all rows with their labels.
    neg_N = scores_N[~positive_N].sort().values
    pos_N = scores_N[positive_N].sort().values
    num_pairs = len(pos_N) * len(neg_N)
    if not num_pairs or neg_N[-1].isnan() or pos_N[-1].isnan():  # NaN sorts last
        return torch.full((), torch.nan, dtype=torch.float64, device=scores_N.device)
    # Twice the pairs won, so that a tie's half stays a whole number: int64 holds those of 3e9 rows.
    twice_won = torch.zeros((), dtype=torch.int64, device=scores_N.device)
    for chunk in pos_N.split(_CHUNK):
        for right in (False, True):
            twice_won += torch.searchsorted(neg_N, chunk, right=right).sum()
    return twice_won.double() / 2 / num_pairs


def roc_areas(scores_N: Tensor, positive_N: Tensor, group_N: Tensor) -> Tensor:
    """`roc_area` of each group.

    Takes about 100 bytes per row besides its arguments.

    Args:
        scores_N: float.
        positive_N: bool.
        group_N: group ids of any integer dtype.

    Returns:
        (G,) float64 in the order of the ids; NaN where a class is absent or a score is NaN.
    """
    device = scores_N.device
    scores_N, order_N = scores_N.sort()
    positive_N = positive_N[order_N]
    group_N, by_group_N = group_N[order_N].sort(stable=True)
    scores_N, positive_N = scores_N[by_group_N], positive_N[by_group_N]
    # A block is a run of equal scores within a group: its last row knows all that came before.
    end_K = (_changes(scores_N) | _changes(group_N)).nonzero().flatten()
    pos_end_K = positive_N.cumsum(0)[end_K]
    neg_end_K = end_K + 1 - pos_end_K
    pos_K = pos_end_K.diff(prepend=pos_end_K.new_zeros(1))
    neg_K = neg_end_K.diff(prepend=neg_end_K.new_zeros(1))
    group_end_K = _changes(group_N[end_K]).long()
    num_groups, segment_K = int(group_end_K.sum()), group_end_K.cumsum(0) - group_end_K
    zeros_G = torch.zeros(num_groups, dtype=torch.int64, device=device)
    num_pos_G = zeros_G.index_add(0, segment_K, pos_K)
    num_neg_G = zeros_G.index_add(0, segment_K, neg_K)
    neg_before_G = num_neg_G.cumsum(0) - num_neg_G
    # twice, as above
    twice_below_K = 2 * (neg_end_K - neg_before_G[segment_K]) - neg_K
    twice_won_G = zeros_G.index_add(0, segment_K, pos_K * twice_below_K)
    areas_G = twice_won_G.double() / 2 / (num_pos_G * num_neg_G)
    has_nan_G = zeros_G.index_add(0, segment_K, scores_N[end_K].isnan().long()) > 0
    return areas_G.masked_fill(has_nan_G, torch.nan)


def _changes(values_N: Tensor) -> Tensor:
    """Whether the next element is another one, (N,); True for the last."""
    return F.pad(values_N[1:] != values_N[:-1], (0, 1), value=True)[: len(values_N)]


def logit_counts(probs_NC: Tensor, positive_NC: Tensor) -> Tensor:
    """Count negatives and positives in bins over the logit.

    Args:
        probs_NC: probabilities.
        positive_NC: bool, whether a row is of the class.

    Returns:
        (C, 2, 2^16 + 1) int64, [:, 1] the positives; the last bin holds NaN.
    """
    num_class = probs_NC.shape[1]
    counts = torch.zeros(num_class * 2 * (NUM_BINS + 1), dtype=torch.int64, device=probs_NC.device)
    offset_C = 2 * torch.arange(num_class, device=probs_NC.device)
    for probs, positive in zip(probs_NC.split(_CHUNK), positive_NC.split(_CHUNK)):
        position = (probs.logit().clamp(-_LOGIT_RANGE, _LOGIT_RANGE) / _LOGIT_RANGE + 1) * (NUM_BINS / 2)
        bins = position.nan_to_num().long().clamp(max=NUM_BINS - 1).masked_fill(probs.isnan(), NUM_BINS)
        flat = (offset_C + positive.long()) * (NUM_BINS + 1) + bins
        counts += torch.bincount(flat.flatten(), minlength=len(counts))
    return counts.view(num_class, 2, NUM_BINS + 1)


def logit_areas(counts_C2K: Tensor) -> tuple[Tensor, Tensor]:
    """Areas from `logit_counts`, (C,) float64, NaN where undefined, and the largest error of each, (C,)."""
    neg_CK, pos_CK = counts_C2K[:, 0, :-1].double(), counts_C2K[:, 1, :-1].double()
    num_pairs_C = neg_CK.sum(1) * pos_CK.sum(1)
    below_CK = neg_CK.cumsum(1) - neg_CK
    areas_C = (pos_CK * (below_CK + neg_CK / 2)).sum(1) / num_pairs_C
    errors_C = (pos_CK * neg_CK).sum(1) / 2 / num_pairs_C
    has_nan_C = counts_C2K[:, :, -1].sum(1) > 0
    return areas_C.masked_fill(has_nan_C, torch.nan), errors_C


def threshold_counts(probs_NC: Tensor, positive_NC: Tensor, thresholds_T: Tensor) -> Tensor:
    """Count negatives and positives by the number of thresholds that their probability reaches.

    Returns:
        (C, 2, T + 1) int64, [:, 1] the positives.
    """
    num_class, num_bins = probs_NC.shape[1], len(thresholds_T) + 1
    bins = torch.bucketize(probs_NC.contiguous(), thresholds_T, right=True)
    offset_C = 2 * torch.arange(num_class, device=probs_NC.device)
    flat = (offset_C + positive_NC.long()) * num_bins + bins
    return torch.bincount(flat.flatten(), minlength=2 * num_class * num_bins).view(num_class, 2, num_bins)


def threshold_areas(counts_C2T: Tensor) -> Tensor:
    """Areas from `threshold_counts`, (C,) float32, by torchmetrics' rule.

    The curve runs through the thresholds and nothing else: probabilities of exactly 1 leave a gap at its
    start. Where a class is absent the area is 0.
    """
    reached_C2T = counts_C2T.flip(-1).cumsum(-1)
    totals_C2 = reached_C2T[..., -1:]
    rates_C2T = reached_C2T[..., :-1].float() / totals_C2.masked_fill(totals_C2 == 0, 1).float()
    return torch.trapezoid(rates_C2T[:, 1], rates_C2T[:, 0], dim=-1)
