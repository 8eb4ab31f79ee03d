import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import nn

from tzrec_core.errors import ConfigError
from tzrec_core.losses import ParetoEfficientMultiTaskLoss


def test_weights_are_the_projected_solution_that_a_solver_finds():
    rng = np.random.default_rng(0)
    for num_losses in (2, 3, 4):
        grads = rng.uniform(-1, 1, (num_losses, 6)) * rng.uniform(0.1, 3, (num_losses, 1))
        min_c = rng.uniform(0, 1 / num_losses, num_losses)
        gram, start = grads @ grads.T, np.full(num_losses, 1 / num_losses)
        total = {"type": "eq", "fun": lambda w: w.sum() - 1}
        free = minimize(lambda w, g=gram: w @ g @ w, start, constraints=total, tol=1e-14).x
        expected = minimize(
            lambda w, f=free: ((w - f) ** 2).sum(),
            start,
            constraints=total,
            bounds=[(c, None) for c in min_c],
            tol=1e-14,
        ).x
        weights = ParetoEfficientMultiTaskLoss(min_c).weights(torch.from_numpy(grads))
        np.testing.assert_allclose(weights.numpy(), expected, atol=1e-5)


def test_total_uses_the_gradients_of_all_parameters_and_can_be_run_backward():
    torch.manual_seed(0)
    shared, first, unused = nn.Linear(3, 2), nn.Linear(2, 1), nn.Linear(2, 1)
    table = nn.Embedding(5, 3, sparse=True)
    frozen = nn.Parameter(torch.ones(2), requires_grad=False)
    hidden = shared(table(torch.tensor([0, 0, 3])))
    losses = {"a": first(hidden).square().mean(), "b": (hidden * frozen).square().sum()}
    modules = (shared, first, unused, table)
    parameters = [*(p for m in modules for p in m.parameters()), frozen]

    grads = []
    for loss in losses.values():
        rows = torch.autograd.grad(loss, parameters[:-1], retain_graph=True, allow_unused=True)
        rows = [torch.zeros_like(p) if g is None else g.to_dense() for p, g in zip(parameters, rows)]
        grads.append(torch.cat([g.flatten() for g in rows]))
    pareto = ParetoEfficientMultiTaskLoss([0.1, 0.2])
    weights = pareto.weights(torch.stack(grads))
    total = pareto(losses, parameters)
    assert total.item() == pytest.approx((weights[0] * losses["a"] + weights[1] * losses["b"]).item(), rel=1e-5)
    total.backward()
    assert shared.weight.grad is not None and unused.weight.grad is None


def test_losses_without_a_gradient_share_the_weight_evenly():
    weights = ParetoEfficientMultiTaskLoss().weights(torch.zeros(4, 3))
    torch.testing.assert_close(weights.tolist(), [0.25] * 4)


def test_a_gradient_that_is_not_finite_makes_the_total_nan_instead_of_raising():
    assert ParetoEfficientMultiTaskLoss().weights(torch.tensor([[1.0], [float("inf")]])).isnan().all()


def test_bounds_that_cannot_hold_are_refused():
    with pytest.raises(ConfigError, match="sum at most 1"):
        ParetoEfficientMultiTaskLoss([0.7, 0.7])
    with pytest.raises(ConfigError, match="2 weights for 3 losses"):
        ParetoEfficientMultiTaskLoss([0.1, 0.1]).weights(torch.eye(3))
