"""Stacks of dense layers."""

# B batch, T steps, I features in, O features out

from collections.abc import Sequence

from torch import Tensor, nn

from tzrec_core.errors import ConfigError
from tzrec_core.modules.activation import create_activation


class Perceptron(nn.Module):
    """One dense layer: Linear, then BatchNorm or LayerNorm, then the activation, then dropout.

    Args:
        in_features: I.
        out_features: O.
        activation: see `create_activation`; empty = none.
        use_bn: normalise over the batch; the Linear then has no bias.
        bias: whether the Linear has a bias.
        dropout_ratio: share of outputs set to 0 in training, in [0, 1].
        dim: 2 for inputs (B, I), 3 for (B, T, I); with 3 the batch norm runs over rows and steps, padded ones
            included.
        use_ln: normalise over the features of a row.

    Raises:
        ConfigError: both norms are asked for, the activation is unknown, or the ratio is out of range.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        activation: str = "nn.ReLU",
        use_bn: bool = False,
        bias: bool = True,
        dropout_ratio: float = 0.0,
        dim: int = 2,
        use_ln: bool = False,
    ) -> None:
        super().__init__()
        assert dim in (2, 3), dim
        if use_bn and use_ln:
            raise ConfigError("an MLP has use_bn and use_ln both true: a layer takes one norm, remove one of them.")
        if not 0.0 <= dropout_ratio <= 1.0:
            raise ConfigError(f"an MLP has dropout_ratio = {dropout_ratio:g}: it is a share, write 0 to 1.")
        self.perceptron = nn.Sequential(nn.Linear(in_features, out_features, bias=bias and not use_bn))
        if use_bn and dim == 3:
            self.perceptron.extend([_SwapLastTwo(), nn.BatchNorm1d(out_features), _SwapLastTwo()])
        elif use_bn:
            self.perceptron.append(nn.BatchNorm1d(out_features))
        elif use_ln:
            self.perceptron.append(nn.LayerNorm(out_features))
        active = create_activation(activation, hidden_size=out_features, dim=dim)
        if active is not None:
            self.perceptron.append(active)
        if dropout_ratio > 0.0:
            self.perceptron.append(nn.Dropout(dropout_ratio))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, I) to (B, O), or (B, T, I) to (B, T, O)."""
        return self.perceptron(x)


class MLP(nn.Module):
    """A stack of `Perceptron`s; every layer, the last included, ends in the activation.

    Args:
        in_features: width of the input.
        hidden_units: width of each layer.
        bias: see `Perceptron`.
        activation: see `Perceptron`.
        use_bn: see `Perceptron`.
        dropout_ratio: none or empty, one value for all layers, or one per layer.
        return_hidden_layer_feature: give back every layer's output instead of the last one's.
        dim: see `Perceptron`.
        use_ln: see `Perceptron`.

    Attributes:
        hidden_units: width of each layer.

    Raises:
        ConfigError: there is no layer, a width is not positive, or the number of dropout ratios fits neither;
            and what `Perceptron` raises.
    """

    def __init__(
        self,
        in_features: int,
        hidden_units: Sequence[int],
        bias: bool = True,
        activation: str = "nn.ReLU",
        use_bn: bool = False,
        dropout_ratio: float | Sequence[float] | None = None,
        return_hidden_layer_feature: bool = False,
        dim: int = 2,
        use_ln: bool = False,
    ) -> None:
        super().__init__()
        self.hidden_units = list(hidden_units)
        if not self.hidden_units or min(self.hidden_units) < 1:
            raise ConfigError(
                f"an MLP has hidden_units = {self.hidden_units}: write the width of each layer, 1 or more, "
                "such as hidden_units: [64, 32]."
            )
        self.return_hidden_layer_feature = return_hidden_layer_feature
        ratios = _ratio_per_layer(dropout_ratio, len(self.hidden_units))
        widths = [in_features, *self.hidden_units]
        self.mlp = nn.ModuleList(
            Perceptron(
                width_in,
                width_out,
                activation=activation,
                use_bn=use_bn,
                bias=bias,
                dropout_ratio=ratio,
                dim=dim,
                use_ln=use_ln,
            )
            for width_in, width_out, ratio in zip(widths, self.hidden_units, ratios)
        )

    def output_dim(self) -> int:
        """Width of the last layer."""
        return self.hidden_units[-1]

    def forward(self, x: Tensor) -> Tensor | dict[str, Tensor]:
        """Run the layers.

        Args:
            x: (B, in_features), or (B, T, in_features) with dim = 3.

        Returns:
            The last layer's output (.., output_dim()); with `return_hidden_layer_feature` a dict of
            "hidden_layer0", "hidden_layer1", .. and "hidden_layer_end", which is the last one again.
        """
        hidden = {}
        for i, layer in enumerate(self.mlp):
            x = layer(x)
            hidden[f"hidden_layer{i}"] = x
        if not self.return_hidden_layer_feature:
            return x
        hidden["hidden_layer_end"] = x
        return hidden


class _SwapLastTwo(nn.Module):
    """(B, T, C) to (B, C, T) and back: BatchNorm1d wants the channels in the middle."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


def _ratio_per_layer(dropout_ratio: float | Sequence[float] | None, num_layers: int) -> list[float]:
    """One dropout ratio for each layer."""
    if dropout_ratio is None:
        return [0.0] * num_layers
    if isinstance(dropout_ratio, (int, float)):
        return [float(dropout_ratio)] * num_layers
    ratios = list(dropout_ratio) or [0.0]
    if len(ratios) == 1:
        return ratios * num_layers
    if len(ratios) != num_layers:
        raise ConfigError(
            f"an MLP has {num_layers} hidden_units but dropout_ratio = {ratios}: write none, one for all "
            f"layers, or {num_layers}."
        )
    return ratios
