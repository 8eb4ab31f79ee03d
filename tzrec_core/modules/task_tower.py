"""The last layers of one task."""

# B batch, I features in, C classes

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from tzrec_core.modules.mlp import MLP


class TaskTower(nn.Module):
    """What turns the input of one task of a multi-task model into its logits: an MLP and a linear layer.

    Args:
        tower_feature_in: I.
        num_class: C.
        mlp: arguments of `MLP` behind the first, such as `{"hidden_units": [64, 32]}`; None = no MLP.

    Raises:
        ConfigError: see `MLP`.
    """

    def __init__(self, tower_feature_in: int, num_class: int, mlp: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.tower_mlp = None if mlp is None else MLP(tower_feature_in, **mlp)
        self.linear = nn.Linear(tower_feature_in if self.tower_mlp is None else self.tower_mlp.output_dim(), num_class)

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, I) to (B, C)."""
        return self.linear(features if self.tower_mlp is None else self.tower_mlp(features))
