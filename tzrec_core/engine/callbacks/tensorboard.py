"""TensorBoard events of a run."""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingCollection
from torchrec.distributed.types import ShardedModule

from tzrec_core.engine.callbacks.callback import Callback, Run

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_DEFAULT = ("loss", "learning_rate")


class TensorBoard(Callback):
    """Writes `<model_dir>/tensorboard/{train,eval}` on rank 0: events at log steps and after evaluations.

    Metrics, throughput and memory are always there. Of the dense parameters, those outside of embedding tables,
    `parameter` shows a histogram each, `gradient` a histogram of each gradient, `gradient_norm` the L2 norm of each
    gradient, and `global_gradient_norm` that of all together: unscaled and before clipping. Embedding tables have no
    gradients to show, for their optimizer may be fused into the backward pass.

    Args:
        summaries: as `train_config.tensorboard_summaries`; empty = loss and learning_rate.
    """

    def __init__(self, summaries: Collection[str] = ()) -> None:
        self._summaries = frozenset(summaries or _DEFAULT)
        self._folder: Path | None = None
        self._first_step = 0
        self._writers: dict[str, SummaryWriter] = {}
        self._gradients: dict[str, Tensor] = {}

    def on_train_start(self, run: Run) -> None:
        """Find the folder."""
        if run.is_main:
            self._folder = run.model_dir / "tensorboard"
            self._first_step = run.step + 1

    def on_before_step(self, run: Run) -> None:
        """Keep the gradients, which the step may clip."""
        if self._folder is None or not self._summaries & {"gradient", "gradient_norm", "global_gradient_norm"}:
            return
        self._gradients = {
            name: parameter.grad.detach().to(torch.float32, copy=True)
            for name, parameter in _dense_parameters(run.model)
            if parameter.grad is not None
        }

    def on_log(self, run: Run, values: dict[str, float]) -> None:
        """Write the events of a step."""
        if self._folder is None:
            return
        writer = self._writer("train")
        losses = {"loss", *(run.output.losses if run.output is not None else ())}
        for name, value in values.items():
            if name not in losses or "loss" in self._summaries:
                writer.add_scalar(name, value, run.step)
        if "learning_rate" in self._summaries:
            for part, rate in run.optimizer.learning_rates().items():
                writer.add_scalar(f"learning_rate/{part}", rate, run.step)
        if "parameter" in self._summaries:
            for name, parameter in _dense_parameters(run.model):
                _add_histogram(writer, f"parameter/{name}", parameter.detach(), run.step)
        self._write_gradients(writer, run.step)

    def on_evaluate(self, run: Run, metrics: dict[str, float]) -> None:
        """Write the metrics."""
        if self._folder is not None:
            writer = self._writer("eval")
            for name, value in metrics.items():
                writer.add_scalar(name, value, run.step)
            writer.flush()

    def on_train_end(self, run: Run) -> None:
        """Close the files."""
        self._close()

    def on_error(self, run: Run, error: BaseException) -> None:
        """Close the files."""
        self._close()

    def _write_gradients(self, writer: "SummaryWriter", step: int) -> None:
        norms = {name: float(torch.linalg.vector_norm(gradient)) for name, gradient in self._gradients.items()}
        if "global_gradient_norm" in self._summaries and norms:
            writer.add_scalar("global_gradient_norm", sum(norm**2 for norm in norms.values()) ** 0.5, step)
        if "gradient_norm" in self._summaries:
            for name, norm in norms.items():
                writer.add_scalar(f"gradient_norm/{name}", norm, step)
        if "gradient" in self._summaries:
            for name, gradient in self._gradients.items():
                _add_histogram(writer, f"gradient/{name}", gradient, step)
        self._gradients = {}

    def _writer(self, split: str) -> "SummaryWriter":
        if split not in self._writers:
            from torch.utils.tensorboard import SummaryWriter

            assert self._folder is not None
            # A killed run may have written points of steps that come again.
            purge = self._first_step if self._first_step > 1 else None
            self._writers[split] = SummaryWriter(str(self._folder / split), purge_step=purge)
        return self._writers[split]

    def _close(self) -> None:
        for writer in self._writers.values():
            writer.close()


def _dense_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Names and parameters outside of embedding tables, sharded ones or not."""
    tables = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, (EmbeddingBagCollection, EmbeddingCollection, ShardedModule))
        for parameter in module.parameters()
    }
    return ((name, p) for name, p in model.named_parameters() if id(p) not in tables)


def _add_histogram(writer: "SummaryWriter", tag: str, values: Tensor, step: int) -> None:
    finite = values[torch.isfinite(values)]  # FP16 gradients overflow now and then, and TensorBoard refuses infinity
    if finite.numel():
        writer.add_histogram(tag, finite.float(), step)
