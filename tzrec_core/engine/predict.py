"""Predictions of a checkpoint over a table, in the order of its rows."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import nn

from tzrec_core.data.loader import BatchLoader, create_dataloader
from tzrec_core.data.readers.files import find_files
from tzrec_core.data.writers import TableOutput, keep_inputs, prepare_output
from tzrec_core.engine.callbacks.progress import Meter
from tzrec_core.engine.checkpoint import find_checkpoint, read_meta
from tzrec_core.engine.evaluate import console_of
from tzrec_core.engine.setup import build, compare_plugins, load_sharded, torch_settings
from tzrec_core.engine.world import World, in_world
from tzrec_core.errors import ConfigError, DataError, TzrecError
from tzrec_core.models import PredictWrapper


@dataclass
class PredictResult:
    """What a prediction run wrote.

    Attributes:
        output_path: file or folder; None when the rows are in `table`.
        num_rows: rows predicted, by all processes together.
        samples_per_second: rows over the time of the loop, summed over the processes.
        table: the predictions, when no output path was given.
    """

    output_path: str | None
    num_rows: int
    samples_per_second: float
    table: pa.Table | None = None


def predict(
    config: Any,
    data: Any,
    output_path: str | None = None,
    *,
    checkpoint: str | Path | None = None,
    reserved_columns: Sequence[str] = (),
    output_columns: Sequence[str] | None = None,
    batch_size: int | None = None,
    overwrite: bool = False,
) -> PredictResult:
    """Predict every row of a table, in its order.

    Each process of the run predicts its share of the rows, one after the other, and writes a part of the output: a
    file of its own in a folder, or a piece of the one file. All return the same.

    Args:
        config: the pipeline config that the checkpoint was trained with.
        data: path or table to predict; labels are not needed.
        output_path: a folder, or a file that ends in .parquet or .csv; None = return the predictions.
        checkpoint: folder of the checkpoint; None = the latest of the config's model_dir.
        reserved_columns: input columns to write beside the predictions; `["ALL_COLUMNS"]` = all.
        output_columns: predictions to write; None = all.
        batch_size: rows per batch; None = the config's.
        overwrite: replace what an earlier run wrote.

    Raises:
        CheckpointError: there is no checkpoint, or it does not fit the config.
        ConfigError: the model does not predict one of `output_columns`, one has a reserved column's name, or several
            processes have no output path.
        DataError: a row cannot be read, there are fewer rows than processes, the output exists, or it is one of the
            files to predict.
    """
    with in_world() as world, torch_settings(config.train_config, world.device):
        if output_path is None and world.size > 1:
            raise ConfigError(f"{world.size} processes cannot return their rows; give an output path")
        # only once: a training run may write another one meanwhile
        folder = world.from_main(lambda: find_checkpoint(config.model_dir, checkpoint))
        compare_plugins(read_meta(folder).get("plugins", {}), config)
        data_config = type(config.data_config)()
        data_config.CopyFrom(config.data_config)
        if batch_size:
            data_config.batch_size = batch_size
        setup = build(config, world)
        loader = create_dataloader(
            data_config,
            setup.features,
            data,
            mode="predict",
            reserved_columns=reserved_columns,
            num_workers=min(data_config.num_workers, 1),  # several take turns, out of the order of the rows
            rank=world.rank,
            world_size=world.size,
        )
        wrapper = PredictWrapper(setup.model, world.device, config.train_config.mixed_precision, output_columns)
        model = load_sharded(wrapper, folder, config, world)
        model.eval()
        wrapper.set_is_inference(True)
        if output_path is None:
            tables: list[pa.RecordBatch] = []
            meter = _predict(model, loader, world, tables.append)
            table = pa.Table.from_batches(tables) if tables else pa.table({})
            return PredictResult(None, meter.num_rows, meter.rate, table)
        output = world.from_main(lambda: _prepare(output_path, data, overwrite, world))
        with output.writer(world.rank) as writer:
            meter = _predict(model, loader, world, writer.write)
            writer.close()
            world.barrier()
            world.from_main(output.publish)
        shares = world.gather((meter.num_rows, meter.rate))
        return PredictResult(output_path, sum(rows for rows, _ in shares), sum(rate for _, rate in shares))


def _predict(model: nn.Module, loader: BatchLoader, world: World, keep: Callable[[pa.RecordBatch], None]) -> Meter:
    """Hand the predictions of this rank's rows to `keep`; of no rows, their columns."""
    meter = Meter("predict", total=loader.num_batches, every=100, console=console_of(world))
    with meter, torch.no_grad():
        for batch in loader:
            _, (predictions, batch) = model(batch.to(world.device))
            table = _table(predictions, batch.reserves)
            keep(table)
            meter.advance(table.num_rows, {} if meter.is_due else None)
        if not meter.num_steps and (none := _no_rows(model, loader, world.device)) is not None:
            keep(none)
    return meter


def _prepare(output_path: str, data: Any, overwrite: bool, world: World) -> TableOutput:
    if isinstance(data, (str, Path)):
        keep_inputs(output_path, _files(str(data)))
    return prepare_output(output_path, overwrite=overwrite, num_parts=world.size)


def _files(paths: str) -> list[str]:
    with suppress(DataError):  # a plugin's reader may take something else than files
        return find_files(paths)
    return []


def _no_rows(model: nn.Module, loader: BatchLoader, device: torch.device) -> pa.RecordBatch | None:
    """The columns of the output without a row; None when the model or a feature cannot do with missing values."""
    try:
        _, (predictions, batch) = model(loader.missing_row().to(device))
    except (TzrecError, RuntimeError, ValueError, IndexError):
        return None
    return _table(predictions, batch.reserves).slice(0, 0)


def _table(predictions: dict[str, torch.Tensor], reserves: pa.RecordBatch | None) -> pa.RecordBatch:
    columns = dict(zip(reserves.schema.names, reserves.columns)) if reserves is not None else {}
    for name, value in predictions.items():
        if name in columns:
            raise ConfigError(
                f"the prediction {name!r} has the name of a reserved column; leave that column out of "
                f"reserved_columns, or the prediction out of output_columns"
            )
        columns[name] = _column(value)
    return pa.RecordBatch.from_pydict(columns)


def _column(value: torch.Tensor) -> pa.Array:
    column = pa.array(value.reshape(-1).numpy())
    for size in reversed(value.shape[1:]):
        column = pa.FixedSizeListArray.from_arrays(column, size)
    return column
