"""Weights for several losses that move the parameters along a Pareto-efficient direction."""

# K losses, M parameters

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from tzrec_core.errors import ConfigError


class ParetoEfficientMultiTaskLoss(nn.Module):
    """Sums losses with the weights under which their joint gradient is shortest.

    Lin et al., RecSys 2019, "A Pareto-Efficient Algorithm for Multiple Objective Optimization in E-Commerce
    Recommendation", sec. 4: with sum(w) = 1 alone the shortest ||sum_k w_k g_k|| solves a linear system; its
    solution less the lower bounds is then projected onto the weights that are not negative. The projection
    is exact (sorting) where the paper runs an active-set method.

    Args:
        min_c: lower bound of each loss's weight, in the order of the losses; none = 0 for all.

    Raises:
        ConfigError: a bound is negative, the bounds sum to more than 1, or there are not as many as losses.
    """

    def __init__(self, min_c: Sequence[float] | None = None) -> None:
        super().__init__()
        self._min_c = None if min_c is None else [float(c) for c in min_c]
        if self._min_c and (min(self._min_c) < 0 or sum(self._min_c) > 1 + 1e-6):
            raise ConfigError(f"pareto_min_loss_weight = {self._min_c}: each must be >= 0, their sum at most 1.")

    def forward(self, losses: Mapping[str, Tensor] | Sequence[Tensor], parameters: Iterable[nn.Parameter]) -> Tensor:
        """Weight the losses by their gradients and add them up.

        Runs one backward pass per loss and keeps the graph, so that the total can be run backward as usual.
        Weights are constants of the step. On several processes each takes its own.

        Args:
            losses: K scalars.
            parameters: what the gradients are taken of; the ones without gradient are skipped. Tables that an
                optimizer updates inside backward have to be left out.

        Returns:
            Scalar.
        """
        terms = list(losses.values()) if isinstance(losses, Mapping) else list(losses)
        trainable = [p for p in parameters if p.requires_grad]
        weights = self._weights(_gram(terms, trainable)).to(terms[0])
        return (torch.stack(terms) * weights).sum()

    def weights(self, grads: Tensor) -> Tensor:
        """Weigh K losses by their flattened gradients (K, M); returns (K,), float64, on the CPU."""
        grads_KM = grads.detach().double()
        return self._weights(grads_KM @ grads_KM.T)

    def _weights(self, gram_KK: Tensor) -> Tensor:
        gram_KK = gram_KK.cpu()
        num_losses = len(gram_KK)
        if self._min_c is not None and len(self._min_c) != num_losses:
            raise ConfigError(
                f"pareto_min_loss_weight = {self._min_c}: {len(self._min_c)} weights for {num_losses} losses."
            )
        min_K = torch.tensor(self._min_c or [0.0] * num_losses, dtype=torch.float64)
        if not gram_KK.isfinite().all():
            return torch.full((num_losses,), torch.nan, dtype=torch.float64)
        room = 1 - min_K.sum()
        return min_K + _onto_simplex(_relaxed(gram_KK, min_K, room), room)


def _gram(losses: list[Tensor], parameters: list[nn.Parameter]) -> Tensor:
    """Inner products of the losses' gradients, (K, K) float64, added up parameter by parameter."""
    grads = [
        torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True) if loss.requires_grad else ()
        for loss in losses
    ]
    gram_KK = torch.zeros(len(losses), len(losses), dtype=torch.float64, device=losses[0].device)
    for i, left in enumerate(grads):
        for j, right in enumerate(grads[: i + 1]):
            dots = [_dot(a, b) for a, b in zip(left, right) if a is not None and b is not None]
            if dots:
                gram_KK[i, j] = gram_KK[j, i] = torch.stack(dots).sum()
    return gram_KK


def _dot(a: Tensor, b: Tensor) -> Tensor:
    if a.is_sparse or b.is_sparse:
        return torch.sparse.sum(a.double() * b.double())
    return torch.dot(a.flatten().double(), b.flatten().double())


def _relaxed(gram_KK: Tensor, min_K: Tensor, room: Tensor) -> Tensor:
    """The x of sum `room` and of any sign with the smallest (x + min)' gram (x + min), (K,)."""
    num_losses = len(gram_KK)
    system = torch.ones(num_losses + 1, num_losses + 1, dtype=torch.float64)
    system[:-1, :-1] = gram_KK
    system[-1, -1] = 0
    right = torch.cat([-gram_KK @ min_K, room[None]])
    # Parallel or missing gradients make the system singular: of its solutions pinv gives the most even one.
    return (torch.linalg.pinv(system) @ right)[:-1]


def _onto_simplex(point_K: Tensor, total: Tensor) -> Tensor:
    """The nearest point that is nowhere negative and sums to `total` (Held, Wolfe and Crowder, 1974)."""
    sorted_K = point_K.sort(descending=True).values
    excess_K = sorted_K.cumsum(0) - total
    shift_K = excess_K / torch.arange(1, len(point_K) + 1)
    num_kept = int((sorted_K > shift_K).sum().clamp(min=1))
    return (point_K - shift_K[num_kept - 1]).clamp(min=0)
