"""Metrics of a model over a table."""

import itertools
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn
from torchmetrics import Metric
from torchrec.distributed.model_parallel import get_unwrapped_module

from tzrec_core.data.loader import BatchLoader, create_dataloader
from tzrec_core.engine.callbacks.progress import Meter
from tzrec_core.engine.checkpoint import find_checkpoint, load_optimizer, read_meta
from tzrec_core.engine.checkpoint_files import SafeReader
from tzrec_core.engine.results import append_result
from tzrec_core.engine.setup import build, compare_plugins, load_sharded, num_rows, torch_settings
from tzrec_core.engine.world import World, in_world
from tzrec_core.errors import CheckpointError, ConfigError, DataError
from tzrec_core.models import TrainWrapper

_log = logging.getLogger(__name__)


EVAL_RESULT = "eval_result.txt"


def evaluate(
    config: Any, data: Any = None, *, checkpoint: str | Path | None = None
) -> tuple[Path, int, dict[str, float]]:
    """Evaluate a checkpoint and write the metrics to `<model_dir>/eval_result.txt`.

    Every process of the run reads its share of the rows, and all return the same.

    Args:
        config: the checked config that the checkpoint was trained with.
        data: path or table; None = the config's eval_input_path.
        checkpoint: folder; None = the latest of the config's model_dir.

    Returns:
        the checkpoint's folder, its step, and the value of each metric.

    Raises:
        CheckpointError: there is no checkpoint, or it does not fit the config, or `use_dense_ema` is set and it has
            no averages.
        ConfigError: there is nothing to evaluate on.
        DataError: a row cannot be read, or there are none, or fewer than processes.
    """
    with in_world() as world, torch_settings(config.train_config, world.device):
        # only once: a training run may write another one meanwhile
        folder = world.from_main(lambda: find_checkpoint(config.model_dir, checkpoint))
        meta = read_meta(folder)
        step = int(meta["step"])
        compare_plugins(meta.get("plugins", {}), config)
        data = config.eval_input_path if data is None else data
        if isinstance(data, str) and not data:
            raise ConfigError("eval_input_path is empty; set it, or say what to evaluate on")
        setup = build(config, world)
        loader = create_dataloader(
            config.data_config, setup.features, data, mode="eval", rank=world.rank, world_size=world.size
        )
        wrapper = TrainWrapper(setup.model, world.device, config.train_config.mixed_precision)
        model = load_sharded(wrapper, folder, config, world)
        if config.eval_config.use_dense_ema:
            _load_dense_ema(folder, model, world)
        metrics = evaluate_model(
            model,
            loader,
            world,
            num_steps=config.eval_config.num_steps,
            every=config.eval_config.log_step_count_steps,
        )
        world.from_main(lambda: _note(config.model_dir, step, metrics))
        return folder, step, metrics


def _note(model_dir: str, step: int, metrics: dict[str, float]) -> None:
    try:
        append_result(model_dir, EVAL_RESULT, step, metrics)
    except OSError as error:  # what took long to measure is told nevertheless
        _log.warning("the metrics are not in %s: %s", Path(model_dir) / EVAL_RESULT, error.strerror)


def _load_dense_ema(checkpoint: Path, model: nn.Module, world: World) -> None:
    """Replace the dense parameters by their moving averages."""
    part = checkpoint / "optimizer"
    saved = SafeReader(part).read_metadata().state_dict_metadata if part.is_dir() else {}
    averages = {f"ema.{name}": tensor for name, tensor in model.state_dict().items() if f"ema.{name}" in saved}
    if not averages:
        raise CheckpointError(
            f"{checkpoint} holds no moving averages, which eval_config.use_dense_ema asks for: they are kept when "
            "train_config.dense_optimizer.ema is set in training"
        )
    load_optimizer(checkpoint, averages, world)


def evaluate_model(
    model: nn.Module,
    loader: BatchLoader,
    world: World,
    *,
    num_steps: int = 0,
    every: int = 100,
) -> dict[str, float]:
    """Run a model over `loader` in eval mode and compute its metrics; every rank must call it.

    What a metric draws at random is the same in each evaluation, and the caller's random state is left alone.

    Args:
        model: a TrainWrapper, or the DistributedModelParallel around it.
        loader: this rank's batches, with labels.
        world: the processes that evaluate together.
        num_steps: stop after this many batches of each rank; 0 = at the end.
        every: batches between progress lines.

    Returns:
        value by metric name, over the rows of all ranks and equal on all of them; the mean of each loss under the
        loss's name.

    Raises:
        DataError: there are no rows.
    """
    wrapper = get_unwrapped_module(model)
    num_batches = min(num_steps or loader.num_batches, loader.num_batches)
    if not num_batches:
        raise DataError("there are no rows to evaluate on; check eval_input_path")
    was_training = model.training
    model.eval()
    meter = Meter("eval", total=num_batches, every=every, console=console_of(world))
    cuda = [world.device] if world.device.type == "cuda" else []
    try:
        with torch.no_grad(), torch.random.fork_rng(cuda), meter:
            torch.manual_seed(0)
            for batch in itertools.islice(loader, num_batches):
                batch = batch.to(world.device, non_blocking=True)
                _, (losses, predictions, _) = model(batch)
                wrapper.model.update_metric(predictions, batch, losses)
                meter.advance(num_rows(batch), {} if meter.is_due else None)
            values = _compute(wrapper, world)
    finally:
        model.train(was_training)
    return world.from_main(lambda: values)


def console_of(world: World) -> Console | None:
    """Where the progress of all ranks is shown: the default on rank 0, nowhere on the others."""
    return None if world.is_main else Console(quiet=True, force_terminal=False)


def _compute(wrapper: TrainWrapper, world: World) -> dict[str, float]:
    for module in wrapper.model.modules():
        if isinstance(module, Metric):
            # torchmetrics would copy all that is kept, also in a group of one
            module.distributed_available_fn = _has_others
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        metrics = wrapper.model.compute_metric()
    if world.is_main:
        for message in dict.fromkeys(str(warning.message) for warning in caught if warning.category is UserWarning):
            _log.warning("metrics: %s", message)
    return {name: value for key, metric in metrics.items() for name, value in _scalars(key, metric)}


def _has_others() -> bool:
    return torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1


def _scalars(key: str, metric: torch.Tensor) -> list[tuple[str, float]]:
    if metric.numel() == 1:
        return [(key, float(metric))]
    return [(f"{key}_{i}", float(v)) for i, v in enumerate(metric)]
