"""Ranking within a session, joined to calibrated log loss."""

# B batch, S = B segments: the dense number of a row's session

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tzrec_core.losses._reduction import checked_reduction


class JRCLoss(nn.Module):
    """Two-class log loss joined to a contest of each row with its session's rows of the other class.

    Sheng et al., KDD 2023, "Joint Optimization of Ranking and Calibration with Contextualized Hybrid Model".
    A row of class c competes by its logit of class c, in a softmax over itself and the rows of the other
    class in its session; the loss is alpha times the cross entropy plus 1 - alpha times the contest's log
    loss.

    Args:
        alpha: share of the cross entropy.
        reduction: "mean" for a scalar, "none" for one loss per row.

    Raises:
        ConfigError: reduction is neither.
    """

    def __init__(self, alpha: float = 0.5, reduction: str = "mean") -> None:
        super().__init__()
        self._alpha = alpha
        self._reduction = checked_reduction(reduction)

    def forward(self, logits: Tensor, labels: Tensor, session_ids: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            logits: (B, 2), of the negative and of the positive class.
            labels: (B,), 0 or 1.
            session_ids: (B,), equal for the rows of one session.

        Returns:
            A scalar or (B,). With reduction "mean" it is NaN, as TorchEasyRec's, when a class is absent from
            the batch: the contest is averaged over the rows of each class. The gradients stay finite.
        """
        logits_BC = logits.to(torch.promote_types(logits.dtype, torch.float32))
        labels_B = labels.long()
        cross_entropy = F.cross_entropy(logits_BC, labels_B, reduction=self._reduction)
        contest_B = _contest(logits_BC, labels_B, _segments(session_ids))
        if self._reduction == "none":
            return self._alpha * cross_entropy + (1 - self._alpha) * contest_B
        num_positives = labels_B.sum()
        one_class = (num_positives == 0) | (num_positives == len(labels_B))
        undefined = logits_BC.new_zeros(()).masked_fill(one_class, torch.nan)
        return self._alpha * cross_entropy + (1 - self._alpha) * (contest_B.mean() + undefined)


def _segments(session_ids: Tensor) -> Tensor:
    """Number the sessions from 0, (B,), without waiting for the device as torch.unique does."""
    sorted_B, order_B = session_ids.sort()
    starts_B = F.pad(sorted_B[1:] != sorted_B[:-1], (1, 0))[: len(sorted_B)]
    return torch.empty_like(order_B).scatter_(0, order_B, starts_B.long().cumsum(0))


def _contest(logits_BC: Tensor, labels_B: Tensor, segment_B: Tensor) -> Tensor:
    """-log of each row's share in the softmax over itself and its rivals, (B,)."""
    positive_B = labels_B == 1
    against_positives_B = _versus(logits_BC[:, 1], ~positive_B, segment_B)
    against_negatives_B = _versus(logits_BC[:, 0], positive_B, segment_B)
    return torch.where(positive_B, against_positives_B, against_negatives_B)


def _versus(logit_B: Tensor, rival_B: Tensor, segment_B: Tensor) -> Tensor:
    """log(1 + sum of exp(rival - row) over the rivals in a row's segment), (B,), without a (B, B) tensor."""
    rivals_B = logit_B.masked_fill(~rival_B, -torch.inf)
    peak_S = torch.zeros_like(logit_B).scatter_reduce(
        0, segment_B, rivals_B.detach(), reduce="amax", include_self=False
    )
    peak_B = peak_S.masked_fill(peak_S.isinf(), 0.0)[segment_B]
    sum_S = torch.zeros_like(logit_B).index_add(0, segment_B, (rivals_B - peak_B).exp())
    sum_B = sum_S[segment_B]
    alone_B = sum_B == 0
    margin_B = sum_B.masked_fill(alone_B, 1.0).log() + peak_B - logit_B
    return F.softplus(margin_B).masked_fill(alone_B, 0.0)
