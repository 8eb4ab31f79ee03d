"""A sequence encoder."""

from typing import Any

import torch
from torch import Tensor

from tzrec_core.modules import MLP, SequenceEncoder


class LastSteps(SequenceEncoder):
    """Mean of the last steps, and an MLP on it."""

    def __init__(
        self,
        sequence_dim: int,
        query_dim: int,
        input: str,
        steps: int = 1,
        mlp: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(sequence_dim, query_dim, input)
        self._steps = steps
        self.mlp = None if mlp is None else MLP(sequence_dim, **mlp)

    def output_dim(self) -> int:
        """Width of the vector it writes."""
        return super().output_dim() if self.mlp is None else self.mlp.output_dim()

    def forward(self, sequence_embedded: dict[str, Tensor]) -> Tensor:
        """Encode `<input>.sequence` as (B, output_dim())."""
        sequence_BTD = sequence_embedded[f"{self.input()}.sequence"]
        length_B = sequence_embedded[f"{self.input()}.sequence_length"]
        step_T = torch.arange(sequence_BTD.shape[1], device=length_B.device)
        counts_BT = (step_T < length_B[:, None]) & (step_T >= length_B[:, None] - self._steps)
        mean_BD = (sequence_BTD * counts_BT[:, :, None]).sum(1) / counts_BT.sum(1, keepdim=True).clamp(min=1)
        return mean_BD if self.mlp is None else self.mlp(mean_BD)
