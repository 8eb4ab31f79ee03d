"""Activations, and the strings that name them in configs: `nn.ReLU`, `nn.ELU(alpha=0.5)`, `Dice`."""

# B batch, T steps, C channels

import ast
from typing import Any

import torch
from torch import Tensor, nn

from tzrec_core.errors import ConfigError, did_you_mean

# torch files these under activations too, but one takes three inputs and the other halves the width.
_NOT_ELEMENTWISE = {"MultiheadAttention", "GLU"}
_TORCH_NAMES = sorted({"Identity", *torch.nn.modules.activation.__all__} - _NOT_ELEMENTWISE)
_NAMES = ["Dice", *(f"nn.{name}" for name in _TORCH_NAMES)]


class Dice(nn.Module):
    """Data-adaptive activation: a gate between the identity and a learned slope, centred on the batch's mean.

    Zhou et al., KDD 2018 (arXiv:1706.06978), sec. 5.3, eq. 9: `p * x + (1 - p) * alpha * x` with
    `p = sigmoid(batch_norm(x))`. The norm has no affine part. `alpha` (C,) starts at 0.

    Args:
        hidden_size: C, the number of channels.
        dim: 2 for (B, C), 3 for (B, T, C); with 3 the statistics run over rows and steps, padded ones too.
    """

    def __init__(self, hidden_size: int, dim: int = 2) -> None:
        super().__init__()
        assert dim in (2, 3), dim
        self.dim = dim
        self.bn = nn.BatchNorm1d(hidden_size, affine=False)
        self.alpha = nn.Parameter(torch.empty(hidden_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set every slope to 0."""
        nn.init.zeros_(self.alpha)

    def forward(self, x: Tensor) -> Tensor:
        """Gate `x`, (B, C) or (B, T, C); the shape stays."""
        normed = self.bn(x.transpose(1, 2)).transpose(1, 2) if self.dim == 3 else self.bn(x)
        gate = torch.sigmoid(normed)
        return gate * x + (1 - gate) * self.alpha * x


def create_activation(spec: str, *, hidden_size: int | None = None, dim: int = 2) -> nn.Module | None:
    """Build the activation that a config names.

    Args:
        spec: `"nn.X"` or `"nn.X(arg=value)"` with an activation class of torch.nn and literal values,
            `"Dice"`, or an empty string for none.
        hidden_size: the number of channels it is applied to; Dice needs it.
        dim: 2 for (B, C), 3 for (B, T, C).

    Returns:
        The module, or None for an empty `spec`.

    Raises:
        ConfigError: the name is not an activation, or the arguments do not fit it.
    """
    if not spec.strip():
        return None
    name, args, kwargs = _parse(spec)
    if name not in _NAMES:
        near = did_you_mean(name, _NAMES) or did_you_mean(f"nn.{name}", _NAMES)
        raise ConfigError(
            f"activation = {spec!r}: {name!r} is not an activation.{near} "
            "Write 'nn.<name>' with an activation of torch.nn, 'Dice', or '' for none."
        )
    if name == "Dice":
        if args or kwargs:
            raise ConfigError(f"activation = {spec!r}: Dice takes no arguments. Write 'Dice'.")
        if hidden_size is None:
            raise ConfigError("activation = 'Dice' needs to know the width of its layer: pass hidden_size.")
        return Dice(hidden_size, dim=dim)
    try:
        module = getattr(nn, name.removeprefix("nn."))(*args, **kwargs)
    except (TypeError, ValueError, AssertionError) as error:
        raise ConfigError(f"activation = {spec!r}: the arguments do not fit torch.{name}: {error}.") from error
    assert isinstance(module, nn.Module)
    return module


# Any: the values of a user's literals.
def _parse(spec: str) -> tuple[str, list[Any], dict[str, Any]]:
    """Split `"nn.X(1, a=2)"` into its name, arguments and keyword arguments."""
    try:
        node = ast.parse(spec.strip(), mode="eval").body
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        if isinstance(node, ast.Call):
            args = [ast.literal_eval(value) for value in node.args]
            for keyword in node.keywords:
                if keyword.arg is None:
                    raise ValueError("** is not allowed")
                kwargs[keyword.arg] = ast.literal_eval(keyword.value)
            node = node.func
    except (SyntaxError, ValueError) as error:
        raise ConfigError(
            f"activation = {spec!r} cannot be read. Write a name such as 'nn.ReLU', with literal values as "
            "arguments if any: 'nn.LeakyReLU(negative_slope=0.2)'."
        ) from error
    return ast.unparse(node), args, kwargs
