"""torchrec's train pipelines, with our optimizer and a look at every loss before it changes the model."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torchrec.distributed.train_pipeline import TrainPipelineBase, TrainPipelineSparseDist

from tzrec_core.data.batch import Batch
from tzrec_core.modules.embedding_group import EmbeddingGroup

# What a TrainWrapper gives beside the loss: losses, predictions, batch.
Output = tuple[dict[str, Tensor], dict[str, Tensor], Batch]


class _Watched:
    """Between forward and backward: `on_loss`, then the optimizer's own backward."""

    on_loss: Callable[[Tensor], None]
    _optimizer: Any  # a TrainOptimizer, which has more than torch's

    def _backward(self, losses: Tensor) -> None:
        self.on_loss(losses)
        self._optimizer.backward(losses)


class _OneStream(_Watched, TrainPipelineBase[Batch, Output]):
    def detach(self) -> nn.Module:
        return self._model


class _SparseDist(_Watched, TrainPipelineSparseDist[Batch, Output]):
    pass


_BY_DEVICE = {"cpu": _OneStream, "cuda": _SparseDist}


def create_pipeline(
    model: nn.Module, optimizer: Any, device: torch.device, on_loss: Callable[[Tensor], None]
) -> _OneStream | _SparseDist:
    """The pipeline for a device: on CUDA it sends the ids of the next batches while the model computes.

    Between steps, `detach` gives the model back for other uses, such as evaluation; the next step takes it again.

    Args:
        model: a DistributedModelParallel around a TrainWrapper.
        optimizer: the TrainOptimizer.
        device: where the model is.
        on_loss: called with the total loss of each step before its backward pass; may raise.
    """
    pipeline = _BY_DEVICE[device.type](model, optimizer, device)
    pipeline.on_loss = on_loss
    return pipeline


def compile_dense(model: nn.Module) -> int:
    """Compile, in place, the parts of a model that hold no embedding tables, for batches of any size.

    Returns:
        how many parts there were.
    """
    count = 0
    for child in model.children():
        if isinstance(child, EmbeddingGroup) or not any(True for _ in child.parameters()):
            continue
        holds_tables = any(isinstance(module, EmbeddingGroup) for module in child.modules())
        if holds_tables or isinstance(child, nn.ModuleList | nn.ModuleDict):  # a container is never called itself
            count += compile_dense(child)
        else:
            child.compile(dynamic=True)
            count += 1
    return count
