"""Dropout whose rate is learned per feature: what it keeps says which features matter."""

# B batch, F features, W sum of the features' widths

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tzrec_core.errors import ConfigError
from tzrec_core.modules.base import BaseModule

_EPSILON = 1e-7
_TEMPERATURE = 0.1


class VariationalDropout(BaseModule):
    """Drop whole features with learned probabilities, through a concrete relaxation.

    Chang, Rampasek and Goldenberg, "Dropout feature ranking for deep learning models", arXiv:1712.08645. The
    probability of dropping feature f is `sigmoid(feature_p[f])`. In training each row draws its own mask;
    otherwise the features are scaled by their probability of being kept.

    Departs from TorchEasyRec: there `embedding_wise_variational_dropout` has no effect; here it gives every
    column of the input its own probability, and `feature_p` the size W.

    Args:
        features_dimension: width of each feature, in the order of the input's columns.
        name: the feature group; it appears in error messages.
        regularization_lambda: weight of the loss that pays for keeping features; >= 0.
        embedding_wise_variational_dropout: one probability per column instead of per feature.

    Raises:
        ConfigError: there is no feature, or the weight is negative.
    """

    def __init__(
        self,
        features_dimension: Mapping[str, int],
        name: str,
        regularization_lambda: float = 0.01,
        embedding_wise_variational_dropout: bool = False,
    ) -> None:
        super().__init__()
        if not features_dimension:
            raise ConfigError(f"variational_dropout: feature group {name!r} has no features.")
        if regularization_lambda < 0:
            raise ConfigError(
                f"variational_dropout.regularization_lambda = {regularization_lambda:g}: write 0 or more."
            )
        self.group_name = name
        self._regularization_lambda = regularization_lambda
        self._embedding_wise = embedding_wise_variational_dropout
        self._widths = list(features_dimension.values())
        num_probs = sum(self._widths) if embedding_wise_variational_dropout else len(self._widths)
        self.feature_p = nn.Parameter(torch.empty(num_probs))
        self.feature_dim = nn.Parameter(torch.empty(len(self._widths), dtype=torch.int64), requires_grad=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw `feature_p` from a standard normal, and write down the widths."""
        nn.init.normal_(self.feature_p)
        with torch.no_grad():
            self.feature_dim.copy_(torch.tensor(self._widths))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scale or mask the features of `x` (B, W).

        Returns:
            The new `x` (B, W), and the loss, a scalar: `lambda / B * sum(1 - sigmoid(feature_p))`.
        """
        drop_prob = torch.sigmoid(self.feature_p)
        if self.training:
            keep = 1 - _relaxed_bernoulli(drop_prob, x)
        else:
            keep = (1 - drop_prob).unsqueeze(0)
        if not self._embedding_wise:
            keep = torch.repeat_interleave(keep, self.feature_dim, dim=1, output_size=sum(self._widths))
        loss = (1 - drop_prob).sum() * self._regularization_lambda / x.size(0)
        return x * keep, loss


def _relaxed_bernoulli(prob_F: Tensor, x: Tensor) -> Tensor:
    """Draw (B, F) values near 0 or 1 that are near 1 with probability `prob_F`, differentiable in it."""
    uniform_BF = _uniform_rows(prob_F, x)
    logit_F = torch.log(prob_F + _EPSILON) - torch.log(1 - prob_F + _EPSILON)
    noise_BF = torch.log(uniform_BF + _EPSILON) - torch.log(1 - uniform_BF + _EPSILON)
    return torch.sigmoid((logit_F + noise_BF) / _TEMPERATURE)


@torch.fx.wrap
def _uniform_rows(prob_F: Tensor, x: Tensor) -> Tensor:
    """Draw uniform (B, F); a leaf of a traced graph, for B is known only when it runs."""
    return torch.rand(x.size(0), prob_F.size(0), dtype=prob_F.dtype, device=prob_F.device)
