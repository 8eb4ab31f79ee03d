import pytest
import torch
from torch import Tensor, nn

from tzrec_core.errors import ConfigError
from tzrec_core.modules.base import BaseModule, Kernel
from tzrec_core.modules.mlp import MLP, Perceptron


def _fill(module: nn.Module, value: float) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(value)


def _names(module: nn.Module) -> list[str]:
    return [name for name, _ in module.named_parameters()]


def test_two_layers_by_hand() -> None:
    mlp = MLP(2, [2, 1])
    with torch.no_grad():
        mlp.mlp[0].perceptron[0].weight.copy_(torch.tensor([[1.0, 2.0], [-1.0, 0.0]]))
        mlp.mlp[0].perceptron[0].bias.copy_(torch.tensor([0.5, 0.0]))
        mlp.mlp[1].perceptron[0].weight.copy_(torch.tensor([[2.0, 3.0]]))
        mlp.mlp[1].perceptron[0].bias.copy_(torch.tensor([-1.0]))
    # row 1: relu(1 + 2 + 0.5, -1) = (3.5, 0) -> 7 - 1 = 6; row 2: relu(-3.5, 4) = (0, 4) -> 12 - 1 = 11
    assert mlp(torch.tensor([[1.0, 1.0], [-4.0, 0.0]])).tolist() == [[6.0], [11.0]]


def test_the_last_layer_is_activated_too() -> None:
    mlp = MLP(1, [1])
    _fill(mlp, -1.0)
    assert mlp(torch.tensor([[1.0]])).tolist() == [[0.0]]
    plain = MLP(1, [1], activation="")
    _fill(plain, -1.0)
    assert plain(torch.tensor([[1.0]])).tolist() == [[-2.0]]


def test_output_dim_and_hidden_units() -> None:
    mlp = MLP(4, (3, 2))
    assert mlp.output_dim() == 2
    assert mlp.hidden_units == [3, 2]


@pytest.mark.parametrize(
    ("kwargs", "names"),
    [
        ({}, ["0.weight", "0.bias"]),
        ({"bias": False}, ["0.weight"]),
        ({"use_bn": True}, ["0.weight", "1.weight", "1.bias"]),
        ({"use_ln": True}, ["0.weight", "0.bias", "1.weight", "1.bias"]),
        ({"activation": "nn.PReLU"}, ["0.weight", "0.bias", "1.weight"]),
        ({"activation": "Dice"}, ["0.weight", "0.bias", "1.alpha"]),
        ({"activation": "Dice", "use_ln": True}, ["0.weight", "0.bias", "1.weight", "1.bias", "2.alpha"]),
    ],
)
def test_parameter_names_follow_linear_norm_activation(kwargs: dict, names: list[str]) -> None:
    assert _names(MLP(3, [2], **kwargs)) == [f"mlp.0.perceptron.{name}" for name in names]


def test_batch_norm_comes_before_the_activation_by_hand() -> None:
    layer = Perceptron(1, 1, use_bn=True)
    with torch.no_grad():
        layer.perceptron[0].weight.fill_(2.0)
    # 2x = 2, 6: mean 4, standard deviation 2 -> -1, 1 -> relu
    assert layer(torch.tensor([[1.0], [3.0]]))[:, 0].tolist() == pytest.approx([0.0, 1.0], abs=1e-5)


def test_layer_norm_is_over_a_row() -> None:
    layer = Perceptron(2, 2, use_ln=True, activation="", bias=False)
    with torch.no_grad():
        layer.perceptron[0].weight.copy_(torch.eye(2))
    assert layer(torch.tensor([[1.0, 5.0]]))[0].tolist() == pytest.approx([-1.0, 1.0], abs=1e-5)


@pytest.mark.parametrize("activation", ["nn.ReLU", "Dice"])
def test_batch_norm_on_steps_counts_padded_steps(activation: str) -> None:
    torch.manual_seed(0)
    flat = MLP(4, [3], use_bn=True, activation=activation)
    steps = MLP(4, [3], use_bn=True, activation=activation, dim=3)
    with torch.no_grad():
        for target, source in zip(steps.parameters(), flat.parameters()):
            target.copy_(source)
    x = torch.randn(2, 5, 4)
    x[1, 2:] = 0.0  # padded
    torch.testing.assert_close(steps(x), flat(x.reshape(10, 4)).reshape(2, 5, 3))
    assert steps(torch.zeros(2, 0, 4)).shape == (2, 0, 3)


def test_hidden_layers_come_back_by_name() -> None:
    mlp = MLP(4, [3, 2], return_hidden_layer_feature=True)
    hidden = mlp(torch.randn(5, 4))
    assert list(hidden) == ["hidden_layer0", "hidden_layer1", "hidden_layer_end"]
    assert hidden["hidden_layer0"].shape == (5, 3)
    assert hidden["hidden_layer_end"] is hidden["hidden_layer1"]


@pytest.mark.parametrize(
    ("dropout_ratio", "ratios"),
    [
        (None, []),
        ([], []),
        (0.0, []),
        (0.25, [0.25, 0.25]),
        ([0.5], [0.5, 0.5]),
        ([0.5, 0.125], [0.5, 0.125]),
        ([0.0, 0.5], [0.5]),
    ],
)
def test_dropout_is_none_one_for_all_or_one_per_layer(dropout_ratio: object, ratios: list[float]) -> None:
    mlp = MLP(3, [2, 2], dropout_ratio=dropout_ratio)
    assert [module.p for module in mlp.modules() if isinstance(module, nn.Dropout)] == ratios


def test_dropout_acts_in_training_only() -> None:
    mlp = MLP(3, [2], dropout_ratio=1.0)
    _fill(mlp, 1.0)
    x = torch.ones(4, 3)
    assert mlp.train()(x).abs().sum() == 0
    assert mlp.eval()(x).tolist() == [[4.0, 4.0]] * 4


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"use_bn": True, "use_ln": True}, ["use_bn", "use_ln", "remove one"]),
        ({"dropout_ratio": [0.1, 0.2, 0.3]}, ["2 hidden_units", "[0.1, 0.2, 0.3]", "none, one"]),
        ({"dropout_ratio": 1.5}, ["dropout_ratio = 1.5", "0 to 1"]),
        ({"hidden_units": []}, ["hidden_units = []"]),
        ({"hidden_units": [4, 0]}, ["hidden_units = [4, 0]", "1 or more"]),
        ({"activation": "nn.Rlu"}, ["nn.Rlu", "Did you mean 'nn.ReLU'"]),
    ],
)
def test_settings_that_do_not_fit_are_refused(kwargs: dict, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        MLP(3, **{"hidden_units": [2, 2], **kwargs})
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("norm", [{}, {"use_bn": True}, {"use_ln": True}])
def test_it_traces_and_scripts(dim: int, norm: dict) -> None:
    mlp = MLP(4, [3, 2], dim=dim, activation="Dice", dropout_ratio=0.5, **norm).eval()
    x = torch.randn(5, 4) if dim == 2 else torch.randn(5, 2, 4)
    scripted = torch.jit.script(torch.fx.symbolic_trace(mlp))
    torch.testing.assert_close(scripted(x), mlp(x))


def test_hidden_layers_script_too() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mlp = MLP(4, [3, 3], return_hidden_layer_feature=True)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.mlp(x)
            return hidden["hidden_layer0"] + hidden["hidden_layer_end"]

    module = Sum()
    x = torch.randn(5, 4)
    torch.testing.assert_close(torch.jit.script(torch.fx.symbolic_trace(module))(x), module(x))


def test_gradients_reach_every_layer() -> None:
    mlp = MLP(4, [3, 2], activation="nn.Tanh", use_ln=True)
    mlp(torch.randn(5, 4)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in mlp.parameters())


class _Outer(BaseModule):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Sequential(BaseModule()), nn.Linear(1, 1)])

    def forward(self, x: Tensor) -> Tensor:
        if self.is_inference:
            return x
        return self.layers[1](x) if self.is_train else x + 1


def test_a_base_module_starts_with_pytorch_and_passes_a_kernel_down() -> None:
    outer = _Outer()
    inner = outer.layers[0][0]
    assert outer.kernel() is inner.kernel() is Kernel.PYTORCH
    outer.set_kernel(Kernel.TRITON)
    assert outer.kernel() is inner.kernel() is Kernel.TRITON


def test_train_eval_and_inference_exclude_each_other() -> None:
    outer = _Outer()
    inner = outer.layers[0][0]
    assert (outer.is_train, outer.is_eval, outer.is_inference) == (True, False, False)
    outer.eval()
    assert (inner.is_train, inner.is_eval, inner.is_inference) == (False, True, False)
    outer.set_is_inference(True)
    assert (inner.is_train, inner.is_eval, inner.is_inference) == (False, False, True)
    outer.train()
    assert not outer.is_train
    outer.set_is_inference(False)
    assert inner.is_train
    assert BaseModule(is_inference=True).is_inference


def test_a_traced_base_module_scripts_in_the_mode_it_was_traced_in() -> None:
    outer = _Outer()
    x = torch.ones(2, 1)
    for setting in (lambda: outer.train(), lambda: outer.eval(), lambda: outer.set_is_inference(True)):
        setting()
        torch.testing.assert_close(torch.jit.script(torch.fx.symbolic_trace(outer))(x), outer(x))
