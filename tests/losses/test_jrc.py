import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tzrec_core.losses import JRCLoss


def slow_contest(logits, labels, sessions):
    """The paper's generative term, row by row."""
    rows = []
    for i, label in enumerate(labels.tolist()):
        rivals = [j for j in range(len(labels)) if sessions[j] == sessions[i] and labels[j] != label]
        column = logits[:, label]
        rows.append(torch.logsumexp(column[[i, *rivals]], 0) - column[i])
    return torch.stack(rows)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 20), st.sampled_from([1.0, 30.0]))
def test_contest_equals_a_softmax_row_by_row_with_its_gradient(seed, num_rows, scale):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(num_rows, 2, generator=generator, dtype=torch.float64)
    labels = torch.randint(2, (num_rows,), generator=generator)
    sessions = torch.randint(-2, 3, (num_rows,), generator=generator)
    fast, slow = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss = JRCLoss(alpha=0.0, reduction="none")(fast, labels, sessions)
    expected = slow_contest(slow, labels, sessions)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-8)
    loss.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(fast.grad, slow.grad, rtol=1e-6, atol=1e-8)


def test_mean_is_nan_but_gradients_are_finite_when_a_class_is_absent():
    logits = torch.randn(4, 2, requires_grad=True)
    loss = JRCLoss()(logits, torch.ones(4, dtype=torch.int64), torch.tensor([1, 1, 2, 2]))
    loss.backward()
    assert math.isnan(loss.item())
    assert logits.grad.isfinite().all()
    rows = JRCLoss(reduction="none")(logits, torch.ones(4, dtype=torch.int64), torch.tensor([1, 1, 2, 2]))
    assert rows.isfinite().all()


def test_alpha_one_is_the_cross_entropy():
    logits, labels = torch.tensor([[0.0, 1.0], [2.0, 0.0]]), torch.tensor([1, 0])
    loss = JRCLoss(alpha=1.0)(logits, labels, torch.tensor([5, 5]))
    assert loss.item() == pytest.approx((math.log1p(math.exp(-1)) + math.log1p(math.exp(-2))) / 2)
