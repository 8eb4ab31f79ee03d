"""The running average of the dense parameters."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class DenseEMA:
    """Average = decay * average + (1 - decay) * parameter, after each step of the dense optimizer.

    Starts as a copy of the parameters. Buffers and frozen parameters have no average.

    Args:
        parameters: by name.
        decay: share of the past in each update, in [0, 1).
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self._parameters = dict(parameters)
        self._averages = {name: p.detach().clone() for name, p in self._parameters.items()}
        self._decay = decay

    @property
    def averages(self) -> dict[str, Tensor]:
        """The averages themselves, by parameter name; a checkpoint is loaded into them."""
        return dict(self._averages)

    @torch.no_grad()
    def update(self) -> None:
        """Move each average to its parameter."""
        torch._foreach_lerp_(list(self._averages.values()), list(self._parameters.values()), 1 - self._decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block the model computes with the averages; its parameters are back after it, bit for bit."""
        own = {name: p.detach().clone() for name, p in self._parameters.items()}
        self._fill(self._averages)
        try:
            yield
        finally:
            self._fill(own)

    @torch.no_grad()
    def _fill(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(values[name])
