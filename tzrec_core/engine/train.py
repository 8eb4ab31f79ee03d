"""The training loop."""

import itertools
import logging
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tzrec_core.config import used_plugins
from tzrec_core.data.batch import Batch
from tzrec_core.data.loader import BatchLoader, create_dataloader
from tzrec_core.engine.checkpoint import checkpoints, load_model, load_optimizers, read_meta, save_checkpoint
from tzrec_core.engine.evaluate import evaluate_model
from tzrec_core.engine.optim import build_optimizers
from tzrec_core.engine.run_log import Meter, RunLog, append_result, read_result
from tzrec_core.engine.setup import build, compare_plugins, num_rows, save_pipeline_config, seed_everything, seed_step
from tzrec_core.errors import CheckpointError, DataError, TzrecError
from tzrec_core.models import BaseModel, TrainWrapper

_log = logging.getLogger(__name__)

TRAIN_EVAL_RESULT = "train_eval_result.txt"


@dataclass
class TrainResult:
    """What a training run ended with.

    Attributes:
        model_dir: where everything is.
        checkpoint: the last checkpoint.
        step: optimizer steps taken, earlier runs included.
        metrics: of the last evaluation, which may be an earlier run's when no step was left; empty without eval data.
        samples_per_second: of this run's training steps, evaluation and checkpoints excluded; 0 when none was left.
    """

    model_dir: str
    checkpoint: Path
    step: int
    metrics: dict[str, float] = field(default_factory=dict)
    samples_per_second: float = 0.0


@dataclass
class _Position:
    """Where a run stands: the next batch is number `in_epoch` of `epoch`."""

    step: int = 0
    epoch: int = 0
    in_epoch: int = 0


def train(config: Any, *, train_data: Any = None, eval_data: Any = None) -> TrainResult:
    """Train the model of a config, evaluating and saving on the way.

    A model_dir that already holds checkpoints is continued from the latest one, at the batch after it.

    Args:
        config: the checked config.
        train_data: path or table to train on; None = the config's train_input_path.
        eval_data: path or table to evaluate on; None = the config's eval_input_path, and no evaluation when that is
            empty.

    Raises:
        ConfigError, DataError, PluginError: as the config's parts do.
        CheckpointError: the model_dir's latest checkpoint does not fit the config.
        TzrecError: the loss is not finite.
    """
    train_config, model_dir = config.train_config, config.model_dir
    found = checkpoints(model_dir)
    meta = read_meta(found[-1][1]) if found else {}
    seed = seed_everything(train_config.seed if train_config.HasField("seed") else meta.get("seed"))
    _log.info("seed %d", seed)
    train_data = config.train_input_path if train_data is None else train_data
    eval_data = config.eval_input_path if eval_data is None else eval_data
    setup = build(config)
    wrapper = TrainWrapper(setup.model, setup.device, train_config.mixed_precision).to(setup.device)
    optimizers = build_optimizers(train_config, setup.model)
    loader = create_dataloader(config.data_config, setup.features, train_data, mode="train", seed=seed)
    at = _Position()
    if found:
        checkpoint = found[-1][1]
        load_model(checkpoint, wrapper)
        load_optimizers(checkpoint, wrapper, optimizers)
        at = _Position(meta["step"], meta.get("epoch", 0), meta.get("in_epoch", 0))
        compare_plugins(meta.get("plugins", {}), config)
        if at.in_epoch:
            _check_continuation(meta, config, checkpoint, _row_order(config, loader, seed))
        _log.info("continuing from %s", checkpoint)
    eval_loader = None
    if not isinstance(eval_data, str) or eval_data:
        eval_loader = create_dataloader(config.data_config, setup.features, eval_data, mode="eval")
    run = _Run(config, wrapper, optimizers, loader, eval_loader, setup.device, at, seed)
    return run.go()


def _row_order(config: Any, loader: BatchLoader, seed: int) -> dict[str, Any]:
    """All that decides, with the batch size, which rows a batch of an epoch holds."""
    data_config = config.data_config
    return {
        "train_input_path": loader.name,
        "num_workers": loader.num_workers,
        "seed": seed if data_config.shuffle else None,
        "shuffle_buffer_size": data_config.shuffle_buffer_size if data_config.shuffle else None,
    }


def _check_continuation(meta: dict[str, Any], config: Any, checkpoint: Path, row_order: dict[str, Any]) -> None:
    """Within an epoch, the number of the next batch must mean what it meant when the checkpoint was written."""
    batch_size = config.data_config.batch_size
    if meta.get("batch_size", batch_size) != batch_size:
        raise CheckpointError(
            f"{checkpoint} stopped within an epoch at batch_size {meta['batch_size']}, but data_config.batch_size "
            f"is {batch_size}; set it back, or train into another model_dir"
        )
    before = meta.get("row_order", {})
    changed = [f"{k} was {before[k]} and is {v}" for k, v in row_order.items() if before.get(k, v) != v]
    if changed:
        _log.warning(
            "%s stopped within an epoch, but %s: some rows of this epoch will be seen twice, others not at all",
            checkpoint,
            ", ".join(changed),
        )


class _Run:
    """One call of `train`: the loop and what it needs at each of its stops."""

    def __init__(
        self,
        config: Any,
        wrapper: TrainWrapper,
        optimizers: dict[str, torch.optim.Optimizer],
        loader: BatchLoader,
        eval_loader: BatchLoader | None,
        device: torch.device,
        at: _Position,
        seed: int,
    ) -> None:
        self.config, self.wrapper, self.optimizers = config, wrapper, optimizers
        self.loader, self.eval_loader, self.device, self.at, self.seed = loader, eval_loader, device, at, seed
        self.settings = config.train_config
        save_pipeline_config(config, config.model_dir)
        self.log = RunLog(config.model_dir, use_tensorboard=self.settings.use_tensorboard)
        self.checkpoint: Path | None = None
        self.metrics: dict[str, float] = {}
        self.saved_step = -1
        self.last_loss: torch.Tensor | None = None
        # with neither, one epoch; with both, whichever ends first
        self.num_epochs: float = self.settings.num_epochs or (math.inf if self.settings.num_steps else 1)

    def go(self) -> TrainResult:
        """Run to the end."""
        if found := checkpoints(self.config.model_dir):
            self.saved_step, self.checkpoint = found[-1]
        meter = self.meter = Meter("train", total=self._num_steps(), every=self.settings.log_step_count_steps)
        meter.skip_to(self.at.step)
        self.wrapper.train()
        try:
            with meter:
                self._loop(meter)
            if meter.num_steps:
                self.wrapper.model.on_train_end()
                if type(self.wrapper.model).on_train_end is not BaseModel.on_train_end:
                    self.saved_step = -1  # what it changed belongs into the last checkpoint, written already or not
            self._save_and_evaluate()
            if not meter.num_steps and not self.metrics:
                self.metrics = read_result(self.config.model_dir, TRAIN_EVAL_RESULT, self.at.step)
        finally:
            self.log.close()
        assert self.checkpoint is not None
        return TrainResult(
            self.config.model_dir, self.checkpoint, self.at.step, self.metrics, meter.rate if meter.num_rows else 0.0
        )

    def _num_steps(self) -> int | None:
        steps = self.settings.num_steps or math.inf
        if self.loader.num_batches is not None:
            steps = min(steps, self.loader.num_batches * self.num_epochs)
        return None if steps == math.inf else int(steps)

    def _loop(self, meter: Meter) -> None:
        for batch in self._batches():
            is_due = meter.is_due
            values = self._step(batch, is_due)
            self.at.step += 1
            self.at.in_epoch += 1
            meter.advance(num_rows(batch), values)
            if values is not None:
                self.log.write("train", self.at.step, self.at.epoch, {**values, "samples_per_second": meter.rate})
            if self._is_save_step():
                with meter.paused():
                    self._save_and_evaluate()

    def _batches(self) -> Iterator[Batch]:
        """The batches from the current position to the end of the run."""
        last_step = self.settings.num_steps or math.inf
        for epoch in itertools.count(self.at.epoch):
            if self.at.step >= last_step or epoch >= self.num_epochs:
                return
            self.at.epoch = epoch
            self.loader.set_epoch(epoch)
            seen = False
            for batch in itertools.islice(self.loader, self.at.in_epoch, None):
                seen = True
                yield batch
                if self.at.step >= last_step:
                    return
            if not seen and not self.at.in_epoch:
                raise DataError(self._no_rows())
            self.at.epoch, self.at.in_epoch = epoch + 1, 0
            self._end_of_epoch()

    def _no_rows(self) -> str:
        data_config = self.config.data_config
        text = f"there are no rows to train on in {self.loader.name}"
        if data_config.drop_remainder:
            text += f", or fewer than batch_size = {data_config.batch_size} and drop_remainder is true"
        return text

    def _end_of_epoch(self) -> None:
        every = self.settings.save_checkpoints_epochs
        if every and self.at.epoch % every == 0:
            with self.meter.paused():
                self._save_and_evaluate()

    def _step(self, batch: Batch, is_due: bool) -> dict[str, float] | None:
        seed_step(self.seed, self.at.step, self.device)
        batch = batch.to(self.device)
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        total_loss, (losses, predictions, _) = self.wrapper(batch)
        total_loss.backward()
        for optimizer in self.optimizers.values():
            optimizer.step()
        self.last_loss = total_loss.detach()
        if is_due:
            self._check_finite("the loss", self.last_loss, self.at.step + 1)
        self.wrapper.model.update_train_metric(predictions, batch)
        if not is_due:
            return None
        values = {"loss": float(self.last_loss)}
        if len(losses) > 1:
            values.update({key: float(value) for key, value in losses.items()})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the evaluation says what torchmetrics has to say
            values.update({k: float(v) for k, v in self.wrapper.model.compute_train_metric().items()})
        return values

    def _check_finite(self, what: str, value: torch.Tensor, step: int) -> None:
        low, high = (float(end) for end in torch.aminmax(value))
        if not (math.isfinite(low) and math.isfinite(high)):
            shown = high if math.isfinite(low) else low
            raise TzrecError(
                f"{what} is {shown} at step {step}: nothing was saved since then. Common causes: a learning rate (lr) "
                "that is too high, or raw features on a large scale: lower the one, give the others a normalizer"
            )

    def _check_model(self) -> None:
        """What is not finite now never will be again, and so would every checkpoint from here on."""
        if self.last_loss is None:
            return
        self._check_finite("the loss", self.last_loss, self.at.step)
        for name, parameter in self.wrapper.model.named_parameters():
            if parameter.numel():
                self._check_finite(f"parameter {name}", parameter.detach(), self.at.step)

    def _is_save_step(self) -> bool:
        if self.settings.HasField("save_checkpoints_epochs") and not self.settings.HasField("save_checkpoints_steps"):
            return False
        every = self.settings.save_checkpoints_steps
        return bool(every) and self.at.step % every == 0

    def _save_and_evaluate(self) -> None:
        if self.at.step == self.saved_step:
            return
        self._check_model()
        meta = {
            "step": self.at.step,
            "epoch": self.at.epoch,
            "in_epoch": self.at.in_epoch,
            "batch_size": self.config.data_config.batch_size,
            "seed": self.seed,
            "row_order": _row_order(self.config, self.loader, self.seed),
            "plugins": used_plugins(self.config),
        }
        self.checkpoint = save_checkpoint(
            self.config.model_dir,
            self.wrapper,
            self.optimizers,
            meta,
            keep_max=self.settings.keep_checkpoint_max,
        )
        self.saved_step = self.at.step
        if self.eval_loader is None:
            return
        eval_config = self.config.eval_config
        self.metrics = evaluate_model(
            self.wrapper,
            self.eval_loader,
            self.device,
            num_steps=eval_config.num_steps,
            every=eval_config.log_step_count_steps,
            total=self.eval_loader.num_batches,
        )
        self.log.write("eval", self.at.step, self.at.epoch, self.metrics)
        append_result(self.config.model_dir, TRAIN_EVAL_RESULT, self.at.step, self.metrics)
        shown = "  ".join(f"{name} {value:.6f}" for name, value in self.metrics.items())
        self.meter.say(f"eval step {self.at.step}  {shown}")
