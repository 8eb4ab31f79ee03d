"""Metrics of a model over a table."""

import itertools
import logging
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from tzrec_core.data.batch import Batch
from tzrec_core.data.loader import create_dataloader
from tzrec_core.engine.checkpoint import find_checkpoint, load_model, read_meta
from tzrec_core.engine.run_log import Meter, append_result
from tzrec_core.engine.setup import build, compare_plugins, num_rows
from tzrec_core.errors import ConfigError, DataError
from tzrec_core.models import TrainWrapper

_log = logging.getLogger(__name__)


EVAL_RESULT = "eval_result.txt"


def evaluate(
    config: Any, data: Any = None, *, checkpoint: str | Path | None = None
) -> tuple[Path, int, dict[str, float]]:
    """Evaluate a checkpoint and write the metrics to `<model_dir>/eval_result.txt`.

    Args:
        config: the checked config that the checkpoint was trained with.
        data: path or table; None = the config's eval_input_path.
        checkpoint: folder; None = the latest of the config's model_dir.

    Returns:
        the checkpoint's folder, its step, and the value of each metric.

    Raises:
        CheckpointError: there is no checkpoint, or it does not fit the config.
        ConfigError: there is nothing to evaluate on.
        DataError: a row cannot be read, or there are none.
    """
    folder = find_checkpoint(config.model_dir, checkpoint)
    meta = read_meta(folder)
    step = int(meta["step"])
    compare_plugins(meta.get("plugins", {}), config)
    data = config.eval_input_path if data is None else data
    if isinstance(data, str) and not data:
        raise ConfigError("eval_input_path is empty; set it, or say what to evaluate on")
    setup = build(config)
    wrapper = TrainWrapper(setup.model, setup.device, config.train_config.mixed_precision).to(setup.device)
    load_model(folder, wrapper)
    loader = create_dataloader(config.data_config, setup.features, data, mode="eval")
    metrics = evaluate_model(
        wrapper,
        loader,
        setup.device,
        num_steps=config.eval_config.num_steps,
        every=config.eval_config.log_step_count_steps,
        total=loader.num_batches,
    )
    append_result(config.model_dir, EVAL_RESULT, step, metrics)
    return folder, step, metrics


def evaluate_model(
    wrapper: TrainWrapper,
    loader: Iterable[Batch],
    device: torch.device,
    *,
    num_steps: int = 0,
    every: int = 100,
    total: int | None = None,
) -> dict[str, float]:
    """Run a model over `loader` in eval mode and compute its metrics.

    Args:
        wrapper: the model.
        loader: batches with labels.
        device: where the model is.
        num_steps: stop after this many batches; 0 = at the end.
        every: batches between progress lines.
        total: batches in `loader`, for the progress bar.

    Returns:
        value by metric name; the mean of each loss under the loss's name.

    Raises:
        DataError: there are no rows.
    """
    was_training = wrapper.training
    wrapper.eval()
    batches = itertools.islice(loader, num_steps) if num_steps else loader
    num_batches = min(num_steps, total) if num_steps and total else (num_steps or total)
    try:
        with torch.no_grad(), Meter("eval", total=num_batches, every=every) as meter:
            for batch in batches:
                batch = batch.to(device)
                _, (losses, predictions, _) = wrapper(batch)
                wrapper.model.update_metric(predictions, batch, losses)
                meter.advance(num_rows(batch), {} if meter.is_due else None)
            if not meter.num_steps:
                raise DataError("there are no rows to evaluate on; check eval_input_path")
    finally:
        wrapper.train(was_training)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        metrics = wrapper.model.compute_metric()
    for message in dict.fromkeys(str(warning.message) for warning in caught if warning.category is UserWarning):
        _log.warning("metrics: %s", message)
    return {name: value for key, metric in metrics.items() for name, value in _scalars(key, metric)}


def _scalars(key: str, metric: torch.Tensor) -> list[tuple[str, float]]:
    if metric.numel() == 1:
        return [(key, float(metric))]
    return [(f"{key}_{i}", float(v)) for i, v in enumerate(metric)]
