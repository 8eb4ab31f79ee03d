"""What every layer and model shares: which kernel computes it, and whether it trains, evaluates or serves."""

from enum import Enum

from torch import nn


class Kernel(Enum):
    """Who computes the operators that have several implementations; names as in `model_config.kernel`."""

    PYTORCH = "PYTORCH"
    TRITON = "TRITON"
    CUTLASS = "CUTLASS"


class BaseModule(nn.Module):
    """A layer that knows its kernel and whether it runs for inference.

    Both settings are plain Python values: tracing a module fixes them in the graph, as it does `training`.

    Args:
        is_inference: True when the module computes predictions for users: no labels, no losses.
    """

    __jit_unused_properties__ = ["is_eval", "is_inference", "is_train"]

    def __init__(self, is_inference: bool = False) -> None:
        super().__init__()
        self._is_inference = is_inference
        self._kernel = Kernel.PYTORCH

    def kernel(self) -> Kernel:
        """The kernel that computes this module; PYTORCH unless `set_kernel` said otherwise."""
        return self._kernel

    def set_kernel(self, kernel: Kernel) -> None:
        """Choose the kernel of this module and of every `BaseModule` inside it."""
        for module in self.modules():
            if isinstance(module, BaseModule):
                module._kernel = kernel

    @property
    def is_inference(self) -> bool:
        """Whether the module computes predictions only."""
        return self._is_inference

    def set_is_inference(self, is_inference: bool) -> None:
        """Switch this module and every `BaseModule` inside it to or from inference."""
        for module in self.modules():
            if isinstance(module, BaseModule):
                module._is_inference = is_inference

    @property
    def is_train(self) -> bool:
        """Whether the module is being trained."""
        return self.training and not self._is_inference

    @property
    def is_eval(self) -> bool:
        """Whether the module is being evaluated: no training, but labels are there."""
        return not self.training and not self._is_inference
