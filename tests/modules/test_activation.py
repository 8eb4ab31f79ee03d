import math

import pytest
import torch
from torch import nn

from tzrec_core.errors import ConfigError
from tzrec_core.modules.activation import Dice, create_activation


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_a_name_builds_the_class_of_torch() -> None:
    assert type(create_activation("nn.ReLU")) is nn.ReLU
    assert type(create_activation(" nn.Sigmoid() ")) is nn.Sigmoid
    assert type(create_activation("nn.Identity")) is nn.Identity


def test_arguments_reach_the_class() -> None:
    module = create_activation("nn.LeakyReLU(negative_slope=0.2)")
    assert isinstance(module, nn.LeakyReLU)
    assert module.negative_slope == 0.2
    assert create_activation("nn.Softplus(2)").beta == 2
    assert create_activation("nn.GELU(approximate='tanh')").approximate == "tanh"


@pytest.mark.parametrize("spec", ["", "  "])
def test_an_empty_string_is_no_activation(spec: str) -> None:
    assert create_activation(spec) is None


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("nn.ReLu", ["Did you mean 'nn.ReLU'"]),
        ("Relu", ["Did you mean 'nn.ReLU'"]),
        ("dice", ["Did you mean 'Dice'"]),
        ("nn.Linear(3, 4)", ["'nn.Linear' is not an activation"]),
        ("nn.MultiheadAttention(4, 2)", ["not an activation"]),
        ("nn.GLU", ["not an activation"]),
        ("torch.load('x')", ["'torch.load' is not an activation"]),
        ("nn.LeakyReLU(slope=0.2)", ["do not fit torch.nn.LeakyReLU", "slope"]),
        ("nn.Threshold", ["do not fit torch.nn.Threshold"]),
        ("nn.ELU(alpha=open('x'))", ["cannot be read"]),
        ("nn.ELU(**{'alpha': 1})", ["cannot be read"]),
        ("nn.ELU(", ["cannot be read"]),
        ("Dice(3)", ["Dice takes no arguments"]),
        ("Dice", ["hidden_size"]),
    ],
)
def test_mistakes_are_refused_with_the_fix(spec: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        create_activation(spec)
    for word in [repr(spec), *words]:
        assert word in str(caught.value)


def test_dice_in_eval_gates_by_the_running_statistics() -> None:
    dice = create_activation("Dice", hidden_size=2)
    assert isinstance(dice, Dice)
    dice.bn.running_mean.copy_(torch.tensor([1.0, 0.0]))
    dice.bn.running_var.copy_(torch.tensor([4.0, 1.0]))
    with torch.no_grad():
        dice.alpha.copy_(torch.tensor([0.5, -1.0]))
    out = dice.eval()(torch.tensor([[5.0, -2.0]]))
    # (5 - 1) / 2 = 2 and (-2 - 0) / 1 = -2; torch adds 1e-5 to the variances.
    gate, gate_2 = _sigmoid(2.0), _sigmoid(-2.0)
    expected = [5 * gate + 0.5 * 5 * (1 - gate), -2 * gate_2 + 2 * (1 - gate_2)]
    assert out[0].tolist() == pytest.approx(expected, rel=1e-5)


def test_dice_in_training_gates_by_the_statistics_of_the_batch() -> None:
    dice = Dice(1)
    out = dice.train()(torch.tensor([[1.0], [3.0]]))
    # mean 2, variance 1; alpha starts at 0.
    assert out[:, 0].tolist() == pytest.approx([_sigmoid(-1.0), 3 * _sigmoid(1.0)], rel=1e-5)
    assert dice.bn.running_mean.item() == pytest.approx(0.2)


def test_dice_on_steps_equals_dice_on_the_flattened_rows() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 4, 5)
    flat, steps = Dice(5), Dice(5, dim=3)
    with torch.no_grad():
        flat.alpha.copy_(torch.randn(5))
        steps.alpha.copy_(flat.alpha)
    for _ in range(2):  # in training, then in eval with the statistics just collected
        torch.testing.assert_close(steps(x), flat(x.reshape(12, 5)).reshape(3, 4, 5))
        flat.eval()
        steps.eval()


def test_dice_takes_sequences_without_steps() -> None:
    dice = Dice(3, dim=3).train()
    assert dice(torch.zeros(2, 0, 3)).shape == (2, 0, 3)
    assert dice.bn.running_mean.tolist() == [0.0, 0.0, 0.0]


def test_dice_has_one_slope_per_channel_and_learns_it() -> None:
    dice = Dice(3)
    assert [(name, tuple(p.shape)) for name, p in dice.named_parameters()] == [("alpha", (3,))]
    dice(torch.randn(4, 3)).square().sum().backward()
    assert dice.alpha.grad is not None
    assert dice.alpha.grad.abs().sum() > 0


@pytest.mark.parametrize("dim", [2, 3])
def test_dice_traces_and_scripts(dim: int) -> None:
    dice = Dice(3, dim=dim).eval()
    x = torch.randn(4, 3) if dim == 2 else torch.randn(4, 2, 3)
    scripted = torch.jit.script(torch.fx.symbolic_trace(dice))
    torch.testing.assert_close(scripted(x), dice(x))
