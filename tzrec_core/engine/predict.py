"""Predictions of a checkpoint over a table, in the order of its rows."""

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from tzrec_core.data.loader import BatchLoader, create_dataloader
from tzrec_core.data.readers.files import find_files
from tzrec_core.data.writers import create_writer, keep_inputs
from tzrec_core.engine.checkpoint import find_checkpoint, load_model, read_meta
from tzrec_core.engine.run_log import Meter
from tzrec_core.engine.setup import build, compare_plugins
from tzrec_core.errors import ConfigError, DataError, TzrecError
from tzrec_core.models import PredictWrapper


@dataclass
class PredictResult:
    """What a prediction run wrote.

    Attributes:
        output_path: file or folder; None when the rows are in `table`.
        num_rows: rows predicted.
        samples_per_second: rows over the time of the loop.
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
        ConfigError: the model does not predict one of `output_columns`, or one has a reserved column's name.
        DataError: a row cannot be read, the output exists, or it is one of the files to predict.
    """
    folder = find_checkpoint(config.model_dir, checkpoint)
    compare_plugins(read_meta(folder).get("plugins", {}), config)
    data_config = type(config.data_config)()
    data_config.CopyFrom(config.data_config)
    if batch_size:
        data_config.batch_size = batch_size
    setup = build(config)
    wrapper = PredictWrapper(setup.model, setup.device, config.train_config.mixed_precision, output_columns).to(
        setup.device
    )
    load_model(folder, wrapper)
    wrapper.eval()
    wrapper.set_is_inference(True)
    loader = create_dataloader(
        data_config,
        setup.features,
        data,
        mode="predict",
        reserved_columns=reserved_columns,
        num_workers=min(data_config.num_workers, 1),  # several workers would interleave the files' rows
    )
    if output_path is not None and isinstance(data, (str, Path)):
        keep_inputs(output_path, _files(str(data)))
    meter = Meter("predict", total=loader.num_batches, every=100)
    tables: list[pa.RecordBatch] = []
    with ExitStack() as stack:
        keep = tables.append
        if output_path is not None:
            keep = stack.enter_context(create_writer(output_path, overwrite=overwrite)).write
        stack.enter_context(meter)
        stack.enter_context(torch.no_grad())
        for batch in loader:
            _, (predictions, batch) = wrapper(batch.to(setup.device))
            table = _table(predictions, batch.reserves)
            keep(table)
            meter.advance(table.num_rows, {} if meter.is_due else None)
        if not meter.num_steps and (table := _no_rows(wrapper, loader, setup.device)) is not None:
            keep(table)
    result = PredictResult(output_path, meter.num_rows, meter.rate)
    if output_path is None:
        result.table = pa.Table.from_batches(tables) if tables else pa.table({})
    return result


def _files(paths: str) -> list[str]:
    with suppress(DataError):  # a plugin's reader may take something else than files
        return find_files(paths)
    return []


def _no_rows(wrapper: PredictWrapper, loader: BatchLoader, device: torch.device) -> pa.RecordBatch | None:
    """The columns of the output without a row; None when the model or a feature cannot do with missing values."""
    try:
        _, (predictions, batch) = wrapper(loader.missing_row().to(device))
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
