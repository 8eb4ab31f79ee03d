"""The training loop."""

import itertools
import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tzrec_core.config import used_plugins
from tzrec_core.data.batch import Batch
from tzrec_core.data.loader import BatchLoader, create_dataloader
from tzrec_core.engine.callbacks import Run, StepOutput
from tzrec_core.engine.callbacks.callbacks import Callbacks
from tzrec_core.engine.callbacks.early_stopping import check_metric
from tzrec_core.engine.callbacks.step_timer import StepTimer
from tzrec_core.engine.checkpoint import CheckpointSaver, checkpoints, load_model, load_optimizer, read_meta
from tzrec_core.engine.checkpoint_files import Ranks
from tzrec_core.engine.constraints import unshardable_tables
from tzrec_core.engine.diagnose import first_bad, save_failure
from tzrec_core.engine.evaluate import evaluate_model
from tzrec_core.engine.model_dir_lock import model_dir_lock
from tzrec_core.engine.optim import TrainOptimizer, check_processes, fuse_sparse_optimizer, is_fused
from tzrec_core.engine.pipeline import Output, compile_dense, create_pipeline
from tzrec_core.engine.results import append_result, read_result
from tzrec_core.engine.setup import (
    build,
    compare_plugins,
    keep_freed_memory,
    num_rows,
    save_pipeline_config,
    seed_everything,
    seed_step,
    torch_settings,
)
from tzrec_core.engine.sharding import shard
from tzrec_core.engine.shards import first_not_finite, sync_buffers
from tzrec_core.engine.signals import StopSignals
from tzrec_core.engine.warm_start import warm_start
from tzrec_core.engine.world import World, in_world
from tzrec_core.errors import CheckpointError, ConfigError, DataError, TzrecError
from tzrec_core.features import BaseFeature
from tzrec_core.models import BaseModel, TrainWrapper
from tzrec_core.protos.train_pb2 import BestCheckpoint

_log = logging.getLogger(__name__)

TRAIN_EVAL_RESULT = "train_eval_result.txt"
_CAUSES = (
    "Common causes: a learning rate (lr) that is too high, or raw features on a large scale: lower the one, give the "
    "others a normalizer"
)
_CUDA_CHECK_STEPS = 10  # to look at the loss, the host must wait for the device


@dataclass
class TrainResult:
    """What a training run ended with.

    Attributes:
        model_dir: where everything is.
        checkpoint: the last checkpoint.
        step: optimizer steps taken, earlier runs included.
        metrics: of the last evaluation, which may be an earlier run's when no step was left; empty without eval data.
        samples_per_second: of this run's training steps on all processes, evaluation and checkpoints excluded; 0 when
            none was left.
        stopped: why the run ended before its last step, such as `SIGTERM`; empty = it did not.
    """

    model_dir: str
    checkpoint: Path
    step: int
    metrics: dict[str, float] = field(default_factory=dict)
    samples_per_second: float = 0.0
    stopped: str = ""


def train(config: Any, *, train_data: Any = None, eval_data: Any = None) -> TrainResult:
    """Train the model of a config, evaluating and saving on the way.

    Runs in this process, or as one of the processes that torchrun started. A model_dir that already holds checkpoints
    is continued from the latest one, at the batch after it. SIGTERM and Ctrl-C save and end the run.

    Args:
        config: the checked config.
        train_data: path or table to train on; None = the config's train_input_path.
        eval_data: path or table to evaluate on; None = the config's eval_input_path, and no evaluation when that is
            empty.

    Raises:
        ConfigError, DataError, PluginError: as the config's parts do; also when another run trains in model_dir.
        CheckpointError: the model_dir's latest checkpoint does not fit the config.
        TzrecError: the loss is not finite.
    """
    with in_world() as world, ExitStack() as stack:
        world.from_main(lambda: _lock(config, stack))
        stack.enter_context(torch_settings(config.train_config, world.device))
        training = _Training(config, world, train_data, eval_data)
        world.from_main(lambda: save_pipeline_config(config, config.model_dir))
        return training.go()


def _lock(config: Any, stack: ExitStack) -> None:
    stack.enter_context(model_dir_lock(config.model_dir))


class _Training:
    """One call of `train`: the loop and what it needs at each of its stops.

    Attributes:
        in_epoch: steps taken of the current epoch, which is the number of its next batch.
    """

    def __init__(self, config: Any, world: World, train_data: Any, eval_data: Any) -> None:
        self.config, self.world, self.settings = config, world, config.train_config
        found = world.from_main(lambda: checkpoints(config.model_dir))
        self.saved_step, self.checkpoint = found[-1] if found else (-1, None)
        meta = world.from_main(lambda: read_meta(self.checkpoint) if self.checkpoint else {})
        wanted = self.settings.seed if self.settings.HasField("seed") else meta.get("seed")
        self.seed = world.from_main(lambda: seed_everything(wanted))
        seed_everything(self.seed)
        _log.info("seed %d", self.seed)
        self.callbacks = Callbacks.from_config(config)
        self._build(train_data, eval_data)
        self.saver = CheckpointSaver(
            config.model_dir,
            world,
            keep_max=self.settings.keep_checkpoint_max,
            best=self.best,
        )
        self.timer = StepTimer(world)
        self.in_epoch = 0
        self.metrics: dict[str, float] = {}
        self.evaluated_step = -1
        self.owes_evaluation = False
        self.unannounced: Path | None = None
        self.num_steps_done = 0
        self.is_stopping = False
        self.output: Output | None = None
        if self.checkpoint:
            self._go_on(self.checkpoint, meta)

    def _build(self, train_data: Any, eval_data: Any) -> None:
        config, world, settings = self.config, self.world, self.settings
        ranks = Ranks.of(world)
        ranks.run(lambda: check_processes(settings, world.device.type, world.size))
        if world.device.type == "cpu":
            keep_freed_memory()
        setup = build(config, world)
        ranks.run(lambda: self._open_data(setup.features, train_data, eval_data))
        wrapper = TrainWrapper(setup.model, world.device, settings.mixed_precision)
        if settings.torch_compile and not compile_dense(setup.model):
            _log.warning("train_config.torch_compile: the model has no part without embedding tables to compile")
        # on one process the lazy optimizers take the tables that fused kernels cannot
        fused = is_fused(settings, world.device.type) and (world.size > 1 or not unshardable_tables(setup.model))
        if fused:
            fuse_sparse_optimizer(settings, setup.model)
        self.model: BaseModel = setup.model
        self.dmp = shard(wrapper, config, world, is_fused=fused)
        self.dmp.register_forward_hook(self._keep_output)
        if self.checkpoint is None:
            warm_start(settings, self.dmp, config.model_dir, world)
        self.optimizer = TrainOptimizer(settings, self.dmp, is_fused=fused)
        # with neither, one epoch; with both, whichever ends first
        self.num_epochs: float = settings.num_epochs or (math.inf if settings.num_steps else 1)
        self.last_step = min(settings.num_steps or math.inf, self.num_epochs * self.loader.num_batches)
        ranks.run(self._check_last_batch)
        self.run = Run(
            config=config,
            model=self.model,
            features=setup.features,
            world=world,
            optimizer=self.optimizer,
            num_steps=int(self.last_step),
            num_epochs=None if self.num_epochs == math.inf else int(self.num_epochs),
            has_eval_data=self.eval_loader is not None,
        )
        self.best: BestCheckpoint | None = None
        if settings.HasField("best_checkpoint"):
            rule = settings.best_checkpoint
            written = rule.higher_is_better if rule.HasField("higher_is_better") else None
            is_higher = check_metric("train_config.best_checkpoint", rule.metric, written, self.run)
            self.best = BestCheckpoint(metric=rule.metric, higher_is_better=is_higher)

    def _open_data(self, features: list[BaseFeature], train_data: Any, eval_data: Any) -> None:
        config, ranks = self.config, {"rank": self.world.rank, "world_size": self.world.size}
        data = config.train_input_path if train_data is None else train_data
        self.loader = create_dataloader(config.data_config, features, data, mode="train", seed=self.seed, **ranks)
        if not self.loader.num_batches:
            raise DataError(self._no_rows())
        data = config.eval_input_path if eval_data is None else eval_data
        self.eval_loader: BatchLoader | None = None
        if not isinstance(data, str) or data:
            self.eval_loader = create_dataloader(config.data_config, features, data, mode="eval", **ranks)
            if not self.eval_loader.num_batches:
                raise DataError(f"there are no rows to evaluate on in {self.eval_loader.name}; check eval_input_path")

    def _check_last_batch(self) -> None:
        if self.last_step < self.loader.num_batches or self.loader.last_batch_size != 1:
            return
        if any(isinstance(module, _BatchNorm) for module in self.model.modules()):
            raise ConfigError(
                f"the last batch of each epoch has one row with data_config.batch_size = {self.loader.batch_size}, and "
                "batch normalisation needs two: set data_config.drop_remainder: true, or another batch_size"
            )

    def _no_rows(self) -> str:
        data_config = self.config.data_config
        text = f"there are no rows to train on in {self.loader.name}"
        if data_config.drop_remainder:
            text += f", or fewer than batch_size = {data_config.batch_size} for each process and drop_remainder is true"
        return text

    def _go_on(self, checkpoint: Path, meta: dict[str, Any]) -> None:
        """Take everything up where `checkpoint` left it."""
        load_model(checkpoint, self.dmp, self.world)
        if "optimizer" in meta:
            self.optimizer.load_scalars(meta["optimizer"])
        else:  # another program's, which knows its step only
            step, epochs = meta["step"], meta["step"] // self.loader.num_batches
            self.optimizer.load_scalars({"steps": step, "epochs": epochs, "accumulated": 0, "gradients": []})
            _log.info("%s does not say where in the data it was: the rows begin anew", checkpoint)
        load_optimizer(checkpoint, self.optimizer.tensors(), self.world)
        self.optimizer.after_load()
        self.callbacks.load_state_dict(meta.get("callbacks", {}))
        compare_plugins(meta.get("plugins", {}), self.config)
        self.run.step, self.run.epoch, self.in_epoch = meta["step"], meta.get("epoch", 0), meta.get("in_epoch", 0)
        if self.in_epoch:
            self._check_order(checkpoint, meta.get("order", {}))
        self.owes_evaluation = meta.get("owes_evaluation", False)
        before = read_result(self.config.model_dir, TRAIN_EVAL_RESULT, self.run.step)
        if before and not self.owes_evaluation:
            self.metrics, self.evaluated_step = before, self.run.step
        _log.info("continuing from %s", checkpoint)

    def _check_order(self, checkpoint: Path, before: dict[str, Any]) -> None:
        """Within an epoch, the number of the next batch must mean what it meant when the checkpoint was written."""
        now = self.loader.order_key()
        if before.get("batch_size", now["batch_size"]) != now["batch_size"]:
            raise CheckpointError(
                f"{checkpoint} stopped within an epoch at batch_size {before['batch_size']}, but "
                f"data_config.batch_size is {now['batch_size']}; set it back, or train into another model_dir"
            )
        changed = [f"{k} was {before[k]} and is {v}" for k, v in now.items() if before.get(k, v) != v]
        if not changed:
            return
        _log.warning(
            "%s stopped within an epoch, but %s: some rows of this epoch will be seen twice, others not at all",
            checkpoint,
            ", ".join(changed),
        )
        # with other processes, as many rows of the epoch are left as there were, if not the very same
        taken = self.in_epoch * before.get("world_size", self.world.size) // self.world.size
        self.in_epoch = min(taken, self.loader.num_batches)

    def go(self) -> TrainResult:
        """Run to the end."""
        self.pipeline = create_pipeline(self.dmp, self.optimizer, self.world.device, self._look_at_loss)
        self.signals = StopSignals(several=self.world.size > 1)
        try:
            with self.signals, self.saver:
                self.callbacks.on_train_start(self.run)
                self._agree_on_stopping()
                self.dmp.train()
                if self.owes_evaluation:
                    with self._paused():
                        self._evaluate()
                    self._agree_on_stopping()
                self._all_steps()
                return self._end()
        except BaseException as error:
            self.callbacks.on_error(self.run, error)
            raise

    def _end(self) -> TrainResult:
        if self.num_steps_done:
            self.model.on_train_end()
            if type(self.model).on_train_end is not BaseModel.on_train_end:
                self.saved_step = -1  # what it changed belongs into the last checkpoint, written already or not
        stopped = self._why_stopped()
        is_signalled = any(self.world.gather(bool(self.signals.received)))  # all do the same, whoever was told
        with self._paused():
            self._save(is_last=True, is_evaluated=not is_signalled)
            if not is_signalled:
                self._evaluate()
        self.callbacks.on_train_end(self.run)
        if stopped:
            self.run.say(f"stopped at step {self.run.step}: {stopped}")
        rate = self.timer.overall() if self.num_steps_done else 0.0
        assert self.checkpoint is not None
        return TrainResult(self.config.model_dir, self.checkpoint, self.run.step, self.metrics, rate, stopped)

    def _why_stopped(self) -> str:
        mine = self.signals.received or self.run.stop_reason
        return next((reason for reason in self.world.gather(mine) if reason), "")

    # Steps

    def _all_steps(self) -> None:
        run = self.run
        for epoch in itertools.count(run.epoch):
            if self._is_over() or epoch >= self.num_epochs:
                return
            run.epoch = epoch
            self.loader.start(epoch, self.in_epoch)
            batches = self.timer.batches(self.loader)
            self.pipeline = create_pipeline(self.dmp, self.optimizer, self.world.device, self._look_at_loss)
            while self.in_epoch < self.loader.num_batches:
                self._step(batches)
                if self._is_over():
                    break
            self.pipeline.detach()
            if self.in_epoch < self.loader.num_batches:
                return
            run.epoch, self.in_epoch = epoch + 1, 0
            self.optimizer.end_epoch()
            every = self.settings.save_checkpoints_epochs
            if every and run.epoch % every == 0:
                self._save_and_evaluate()

    def _is_over(self) -> bool:
        if self.run.step >= self.last_step or self.is_stopping:
            return True
        # one process needs nobody's consent; several agree in the next step
        return self.world.size == 1 and self._wants_to_stop()

    def _wants_to_stop(self) -> bool:
        return bool(self.signals.received or self.run.stop_reason)

    def _agree_on_stopping(self) -> None:
        self.is_stopping = bool(self.world.largest(self._wants_to_stop())[0])

    def _step(self, batches: Iterator[Batch]) -> None:
        run = self.run
        seed_step(self.seed, run.step, self.world.device, self.world.rank)
        losses, predictions, batch = self.pipeline.progress(batches)
        run.step += 1
        self.in_epoch += 1
        self.num_steps_done += 1
        self.timer.step(num_rows(batch))
        self.model.update_train_metric(predictions, batch)
        output = StepOutput(self.loss, losses, predictions, batch)
        self.callbacks.on_step_end(run, output)
        if self._is_log_step(run.step):
            self._log(output)
        if self._is_save_step():
            self._save_and_evaluate()
        self.output = None

    def _is_log_step(self, step: int) -> bool:
        return step % max(self.settings.log_step_count_steps, 1) == 0

    def _log(self, output: StepOutput) -> None:
        values = {"loss": float(output.loss)}
        if len(output.losses) > 1:
            values.update({key: float(value) for key, value in output.losses.items()})
        values = dict(zip(values, self.world.mean(*values.values())))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the evaluation says what torchmetrics has to say
            values.update({k: float(v) for k, v in self.model.compute_train_metric().items()})
        self.callbacks.on_log(self.run, {**values, **self.timer.values()})

    def _keep_output(self, module: nn.Module, args: Any, output: tuple[Tensor, Output]) -> None:
        self.output = output[1]

    def _look_at_loss(self, loss: Tensor) -> None:
        """Between forward and backward: end the run before a bad loss changes the model; agree on stopping."""
        self.loss = loss.detach()
        step = self.run.step + 1
        if self.world.device.type == "cuda" and step % _CUDA_CHECK_STEPS and not self._is_log_step(step):
            return
        is_bad = not math.isfinite(float(self.loss))
        any_bad, any_stopping = self.world.largest(is_bad, self._wants_to_stop())
        self.is_stopping = bool(any_stopping)
        if any_bad:
            self._fail()
        if self._is_log_step(step):
            self.optimizer.before_step = lambda: self.callbacks.on_before_step(self.run)

    def _fail(self) -> None:
        """End the run at a loss that is not finite, leaving behind what `tzrec replay` needs."""
        assert self.output is not None
        step, batch = self.run.step + 1, self.output[2]
        self.pipeline.detach()
        seed_step(self.seed, self.run.step, self.world.device, self.world.rank)
        finding = first_bad(self.dmp, batch)
        failure = save_failure(self.config.model_dir, step, batch, self.seed, finding, self.world, self.dmp)
        values = [value for value in self.world.gather(float(self.loss)) if not math.isfinite(value)]
        first = f": the first bad tensor is {failure.finding}" if failure.finding else ""
        earlier = ""
        if self.world.device.type == "cuda":
            earlier = f" (on GPUs the loss is looked at every {_CUDA_CHECK_STEPS} steps: it may have begun earlier)"
        error = TzrecError(
            f"the loss is {values[0]} at step {step}{earlier}{first}. {_CAUSES}. The batch and the model as it "
            f"was are in {failure.folder}; `tzrec replay CONFIG` runs that step again"
        )
        error.is_shared = True  # type: ignore[attr-defined]
        raise error

    # Checkpoints and evaluations

    def _is_save_step(self) -> bool:
        settings = self.settings
        if settings.save_checkpoints_epochs and not settings.HasField("save_checkpoints_steps"):
            return False
        every = settings.save_checkpoints_steps
        return bool(every) and self.run.step % every == 0

    @contextmanager
    def _paused(self) -> Iterator[None]:
        self.pipeline.detach()
        with self.timer.paused(), self.callbacks.paused():
            yield

    def _save_and_evaluate(self) -> None:
        if self.run.step == self.saved_step:
            return
        with self._paused():
            self._save()
            self._evaluate()
        self._agree_on_stopping()

    def _save(self, *, is_last: bool = False, is_evaluated: bool = True) -> None:
        if self.run.step != self.saved_step:
            sync_buffers(self.dmp.module, self.world)
            state = self.dmp.state_dict()
            if bad := first_not_finite(state, self.world):
                name, value = bad
                raise TzrecError(
                    f"{name} holds {value} at step {self.run.step}, and so would every checkpoint from here on; it was "
                    f"not saved. {_CAUSES}"
                )
            self._announce()
            # the last one has nothing to run beside, and so needs no copy in memory
            self.checkpoint = self.saver.save(state, self.optimizer.tensors(), self._meta(is_evaluated), wait=is_last)
            self.unannounced = self.checkpoint
            self.saved_step = self.run.step
        if is_last:
            self._announce()

    def _announce(self) -> None:
        """Tell of the checkpoint that was being written meanwhile."""
        self.saver.wait()
        if self.unannounced is not None:
            self.callbacks.on_save(self.run, self.unannounced)
            self.unannounced = None

    def _meta(self, is_evaluated: bool) -> dict[str, Any]:
        return {
            # a run that is killed before the evaluation makes up for it
            "owes_evaluation": is_evaluated and self.eval_loader is not None,
            "step": self.run.step,
            "epoch": self.run.epoch,
            "in_epoch": self.in_epoch,
            "seed": self.seed,
            "order": self.loader.order_key(),
            "optimizer": self.optimizer.scalars(),
            "callbacks": self.callbacks.state_dict(),
            "plugins": used_plugins(self.config),
        }

    def _evaluate(self) -> None:
        step = self.run.step
        if self.eval_loader is None or self.evaluated_step == step:
            return
        self.evaluated_step = step
        eval_config = self.config.eval_config
        ema = self.optimizer.ema if eval_config.use_dense_ema else None
        with ema.applied() if ema else nullcontext():
            self.metrics = evaluate_model(
                self.dmp,
                self.eval_loader,
                self.world,
                num_steps=eval_config.num_steps,
                every=eval_config.log_step_count_steps,
            )
        if self.world.is_main:
            append_result(self.config.model_dir, TRAIN_EVAL_RESULT, step, self.metrics)
        self.saver.evaluated(step, self.metrics)
        self.callbacks.on_evaluate(self.run, self.metrics)
        assert self.checkpoint is not None
        self.saver.update_meta(self.checkpoint, {"callbacks": self.callbacks.state_dict(), "owes_evaluation": False})
