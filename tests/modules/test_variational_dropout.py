import math

import pytest
import torch

from tzrec_core.errors import ConfigError
from tzrec_core.modules import variational_dropout
from tzrec_core.modules.variational_dropout import VariationalDropout

_WIDTHS = {"uid": 2, "age": 1}
_LOG_3 = math.log(3.0)  # sigmoid(log 3) = 0.75


def _dropout(feature_p: list[float], **kwargs: object) -> VariationalDropout:
    dropout = VariationalDropout(_WIDTHS, "deep", **kwargs)
    with torch.no_grad():
        dropout.feature_p.copy_(torch.tensor(feature_p))
    return dropout


def test_eval_scales_each_feature_by_its_probability_of_being_kept() -> None:
    out, loss = _dropout([_LOG_3, 0.0], regularization_lambda=0.1).eval()(
        torch.tensor([[4.0, 8.0, 6.0], [0.0, -4.0, 1.0]])
    )
    assert out.flatten().tolist() == pytest.approx([1.0, 2.0, 3.0, 0.0, -1.0, 0.5])
    assert loss.shape == ()
    assert loss.item() == pytest.approx(0.1 / 2 * (0.25 + 0.5))


def test_training_draws_a_concrete_mask_for_each_row_and_feature(monkeypatch: pytest.MonkeyPatch) -> None:
    uniform = torch.tensor([[0.25, 0.52], [0.24, 0.5]])
    monkeypatch.setattr(variational_dropout.torch, "rand", lambda *size, **kwargs: uniform.reshape(size))
    out, loss = _dropout([_LOG_3, 0.0]).train()(torch.ones(2, 3))

    def keep(prob: float, u: float) -> float:
        logit = math.log(prob / (1 - prob)) + math.log(u / (1 - u))
        return 1 - 1 / (1 + math.exp(-logit / 0.1))

    # prob 0.75 with u = 0.25 is the middle: logits log 3 and -log 3
    assert keep(0.75, 0.25) == pytest.approx(0.5)
    rows = [
        [keep(0.75, 0.25), keep(0.75, 0.25), keep(0.5, 0.52)],
        [keep(0.75, 0.24), keep(0.75, 0.24), keep(0.5, 0.5)],
    ]
    assert out.flatten().tolist() == pytest.approx([*rows[0], *rows[1]], abs=1e-4)
    assert loss.item() == pytest.approx(0.01 / 2 * (0.25 + 0.5))


def test_training_drops_about_as_often_as_the_probability_says() -> None:
    torch.manual_seed(0)
    out, _ = _dropout([_LOG_3, -_LOG_3]).train()(torch.ones(4000, 3))
    assert torch.equal(out[:, 0], out[:, 1])
    kept = (out > 0.5).double().mean(0)
    assert kept[0].item() == pytest.approx(0.25, abs=0.03)
    assert kept[2].item() == pytest.approx(0.75, abs=0.03)


def test_embedding_wise_gives_every_column_its_own_probability() -> None:
    dropout = _dropout([_LOG_3, 0.0, -_LOG_3], embedding_wise_variational_dropout=True)
    assert dropout.feature_p.shape == (3,)
    out, loss = dropout.eval()(torch.full((1, 3), 4.0))
    assert out[0].tolist() == pytest.approx([1.0, 2.0, 3.0])
    assert loss.item() == pytest.approx(0.01 * 1.5)
    torch.manual_seed(0)
    out, _ = dropout.train()(torch.ones(2000, 3))
    assert (out > 0.5).double().mean(0).tolist() == pytest.approx([0.25, 0.5, 0.75], abs=0.04)


def test_the_widths_are_an_integer_parameter_that_does_not_train() -> None:
    dropout = VariationalDropout(_WIDTHS, "deep")
    assert [name for name, _ in dropout.named_parameters()] == ["feature_p", "feature_dim"]
    assert dropout.feature_dim.tolist() == [2, 1]
    assert dropout.feature_dim.dtype == torch.int64
    assert not dropout.feature_dim.requires_grad


def test_extreme_probabilities_stay_finite_and_learn() -> None:
    dropout = _dropout([60.0, -60.0]).train()
    out, loss = dropout(torch.ones(3, 3))
    assert out[:, 0].max() < 1e-3
    assert out[:, 2].min() > 1 - 1e-3
    (out.sum() + loss).backward()
    assert torch.isfinite(dropout.feature_p.grad).all()


@pytest.mark.parametrize("train", [True, False])
def test_gradients_flow_to_the_probabilities_and_the_input(train: bool) -> None:
    torch.manual_seed(0)
    dropout = _dropout([0.3, -0.2]).train(train)
    x = torch.ones(8, 3, requires_grad=True)
    out, _ = dropout(x)
    out.sum().backward()
    assert (dropout.feature_p.grad < 0).all()  # more dropping, less output
    assert x.grad.abs().sum() > 0


def test_the_loss_pushes_the_probabilities_up() -> None:
    dropout = _dropout([0.3, -0.2])
    dropout(torch.ones(8, 3))[1].backward()
    assert (dropout.feature_p.grad < 0).all()


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="'deep' has no features"):
        VariationalDropout({}, "deep")
    with pytest.raises(ConfigError, match=r"regularization_lambda = -1"):
        VariationalDropout(_WIDTHS, "deep", regularization_lambda=-1.0)


@pytest.mark.parametrize("embedding_wise", [True, False])
@pytest.mark.parametrize("train", [True, False])
def test_it_traces_and_scripts(train: bool, embedding_wise: bool) -> None:
    dropout = VariationalDropout(_WIDTHS, "deep", embedding_wise_variational_dropout=embedding_wise)
    scripted = torch.jit.script(torch.fx.symbolic_trace(dropout.train(train)))
    x = torch.randn(5, 3)
    torch.manual_seed(1)
    expected = dropout(x)
    torch.manual_seed(1)
    torch.testing.assert_close(scripted(x), expected)
