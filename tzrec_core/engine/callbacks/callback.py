"""What a callback can do, and the run that it sees."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from tzrec_core.data.batch import Batch
from tzrec_core.engine.world import World
from tzrec_core.features import BaseFeature
from tzrec_core.models import BaseModel

if TYPE_CHECKING:
    from tzrec_core.engine.optim import TrainOptimizer


@dataclass
class StepOutput:
    """What a training step put out, on the device of the run and detached.

    Attributes:
        loss: the total, a scalar.
        losses: scalars by loss name.
        predictions: by key, as the model's task says.
        batch: the rows that this process trained on.
    """

    loss: Tensor
    losses: dict[str, Tensor]
    predictions: dict[str, Tensor]
    batch: Batch


def _print_line(line: str) -> None:
    print(line, file=sys.stderr)


@dataclass(eq=False)
class Run:
    """A training run as callbacks see it; the loop keeps it up to date.

    Attributes:
        config: the checked EasyRecConfig.
        model: the model, in train mode but during evaluations. With several processes its embedding tables are this
            process's part of them.
        features: all features of the config.
        world: this process among those of the run.
        optimizer: `optimizer.learning_rates()` are those of the next step, by part.
        num_steps: steps of the whole run, earlier ones included; None = unknown.
        num_epochs: epochs of the whole run; None = as many as num_steps takes.
        has_eval_data: whether the run evaluates after each checkpoint.
        step: steps taken, earlier runs included.
        epoch: number of the epoch, from 0.
        output: of the last step; None before the first one.
        stop_reason: why the run shall end early; empty = it shall not.
        printer: prints a line; the progress bar puts one here that prints above it.
    """

    config: Any  # a message of an assembled class
    model: BaseModel
    features: Sequence[BaseFeature]
    world: World
    optimizer: "TrainOptimizer"
    num_steps: int | None = None
    num_epochs: int | None = None
    has_eval_data: bool = False
    step: int = 0
    epoch: int = 0
    output: StepOutput | None = None
    stop_reason: str = ""
    printer: Callable[[str], None] = _print_line

    @property
    def model_dir(self) -> Path:
        """Where everything of the run goes."""
        return Path(self.config.model_dir)

    @property
    def is_main(self) -> bool:
        """Whether this is the process that prints and writes for all."""
        return self.world.is_main

    def stop(self, reason: str) -> None:
        """End the run after this step on all processes, as if it had been the last one; the first reason counts."""
        self.stop_reason = self.stop_reason or reason

    def say(self, line: str) -> None:
        """Print a line above the progress bar, on rank 0."""
        if self.is_main:
            self.printer(line)


class Callback:
    """Watches a training run; every method is optional.

    All callbacks are called on every rank, the built-in ones first, then those of `train_config.callbacks` in their
    order. Any exception ends the run: a TzrecError as it is, any other as a PluginError that names the callback.
    Collective operations are allowed where every rank makes them.
    """

    def on_train_start(self, run: Run) -> None:
        """Before the first step, after `load_state_dict`; a `run.stop` here means that no step is taken."""

    def on_before_step(self, run: Run) -> None:
        """At log steps in which the dense parameters move, just before they do.

        Their gradients are there, with the loss's scale taken out and before clipping. Those of embedding tables are
        not: an optimizer that is fused into the backward pass leaves none.
        """

    def on_step_end(self, run: Run, step_output: StepOutput) -> None:
        """After every step; must be cheap, and on GPUs must not wait for the device."""

    def on_log(self, run: Run, values: dict[str, float]) -> None:
        """At log steps, after `on_step_end`.

        Args:
            run: the run.
            values: `loss`, each loss by name when there are several, train metrics, and what StepTimer measures:
                `samples_per_second`, `data_wait`, `device_wait`, `memory_mib`, `device_memory_mib`.
        """

    def on_evaluate(self, run: Run, metrics: dict[str, float]) -> None:
        """After an evaluation; equal metrics on every rank."""

    def on_save(self, run: Run, checkpoint: Path) -> None:
        """After a checkpoint was written to the folder `checkpoint`."""

    def on_train_end(self, run: Run) -> None:
        """After the last step, the last checkpoint and the last evaluation."""

    def on_error(self, run: Run, error: BaseException) -> None:
        """When the run ends by an error, perhaps before `on_train_start` or after `on_train_end`.

        What is raised here is logged and passed over.
        """

    def state_dict(self) -> dict[str, Any]:  # Any: JSON
        """What a continued run needs, as JSON values; rank 0's is kept in the checkpoint."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the state that `state_dict` gave when the checkpoint was written; called on every rank."""
