"""Log loss that leans towards the rows a model still gets wrong."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tzrec_core.losses._reduction import checked_reduction, reduced


class BinaryFocalLoss(nn.Module):
    """Binary cross entropy, each row weighted by how wrong it is.

    Lin et al., ICCV 2017, sec. 3. The weight of a row is alpha y (1 - p)^gamma + (1 - alpha) (1 - y)
    p^gamma, with p the predicted probability. Departs from the paper, as TorchEasyRec does: the weight is a
    constant, no gradient flows through it.

    Args:
        gamma: >= 0; how fast the weight of an easy row fades. 0 leaves only alpha.
        alpha: in [0, 1]; the weight of the positive rows, 1 - alpha being that of the negative ones.
        reduction: "mean" for a scalar, "none" for one loss per row.

    Raises:
        ConfigError: reduction is neither.
    """

    def __init__(self, gamma: float = 2.0, alpha: float = 0.5, reduction: str = "mean") -> None:
        super().__init__()
        self._gamma = gamma
        self._alpha = alpha
        self._reduction = checked_reduction(reduction)

    def forward(self, preds: Tensor, labels: Tensor) -> Tensor:
        """Compute the loss of logits (B,) against labels (B,) of any numeric dtype, in [0, 1]."""
        labels_B = labels.to(preds.dtype)
        with torch.no_grad():
            probs_B = preds.sigmoid()
            weight_B = self._alpha * labels_B * (1 - probs_B) ** self._gamma
            weight_B += (1 - self._alpha) * (1 - labels_B) * probs_B**self._gamma
        loss_B = F.binary_cross_entropy_with_logits(preds, labels_B, reduction="none")
        return reduced(loss_B * weight_B, self._reduction)
