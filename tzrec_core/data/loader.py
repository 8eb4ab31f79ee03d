"""From files to batches: readers and the parser, run in worker processes."""

import logging
import math
import multiprocessing
import os
import threading
from collections.abc import Iterator, Sequence
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from tzrec_core.config import range_mistakes, reader_problem, refused_settings
from tzrec_core.data.batch import Batch
from tzrec_core.data.parser import DataParser
from tzrec_core.data.readers import BaseReader, RowBlock, rebatch
from tzrec_core.data.readers.columns import MissingColumnError, check_columns
from tzrec_core.data.readers.table import TableReader
from tzrec_core.errors import ConfigError, DataError, TzrecError
from tzrec_core.features import BaseFeature
from tzrec_core.plugins import ReaderSpec, registry
from tzrec_core.protos.data_pb2 import DataConfig, DatasetType

_log = logging.getLogger(__name__)
_said: set[str] = set()

ALL_COLUMNS = "ALL_COLUMNS"
_MODES = ("train", "eval", "predict")
_BATCHES_AHEAD = 2  # per worker; what waits in memory is at most this many batches per worker

_ODPS_ONLY = ("is_orderby_partition", "odps_data_quota_name", "odps_data_compression")
_CSV_ONLY = ("delimiter", "with_header")


def create_dataloader(
    data_config: DataConfig,
    features: Sequence[BaseFeature],
    input_path: Any,
    *,
    mode: str = "train",
    reserved_columns: Sequence[str] = (),
    num_workers: int | None = None,
    seed: int = 0,
) -> "BatchLoader":
    """Batches of a table, parsed in worker processes.

    Labels and sample weights are read in "train" and "eval". `shuffle` and `drop_remainder` hold for "train"
    only, `eval_batch_size` for "eval"; evaluation and prediction see every row once.

    Args:
        data_config: the config's data section.
        features: what to parse.
        input_path: globs, files or folders separated by commas, see `readers.files.find_files`; or what the
            reader of a plugin takes.
        mode: "train", "eval" or "predict".
        reserved_columns: columns to carry along in `Batch.reserves`; `["ALL_COLUMNS"]` = all.
        num_workers: instead of `data_config.num_workers`; 0 = parse in this process.
        seed: of the shuffling; >= 0.

    Raises:
        ConfigError: a setting of `data_config` is wrong, or not supported.
        DataError: files or columns are missing, or a file is damaged.
    """
    if mode not in _MODES:
        raise ConfigError(f"mode = {mode!r} is not one of {', '.join(_MODES)}")
    _check(data_config)
    with_labels = mode != "predict"
    parser = DataParser(
        features,
        labels=data_config.label_fields if with_labels else (),
        sample_weights=data_config.sample_weight_fields if with_labels else (),
    )
    wanted: list[str] | None = None
    if ALL_COLUMNS not in reserved_columns:
        wanted = list(dict.fromkeys([*parser.input_columns, *reserved_columns]))
    is_eval = mode == "eval" and data_config.HasField("eval_batch_size")
    batch_size = data_config.eval_batch_size if is_eval else data_config.batch_size
    if isinstance(input_path, Path):
        input_path = str(input_path)
    cls = reader_class(data_config) if isinstance(input_path, str) else TableReader
    try:
        reader = cls(input_path, batch_size=batch_size, columns=wanted, data_config=data_config)
        if wanted is None:
            check_columns(reader.name, reader.schema.names, parser.input_columns)
            reserved_columns = reader.schema.names
    except MissingColumnError as error:
        raise error.read_by(parser.readers_of(error.column)) from None
    is_shuffled = mode == "train" and data_config.shuffle
    return BatchLoader(
        reader,
        parser,
        reserved_columns=reserved_columns,
        num_workers=_num_workers(data_config, num_workers, reader),
        num_threads=data_config.fg_threads,
        in_order=data_config.in_order,
        drop_remainder=mode == "train" and data_config.drop_remainder,
        shuffle_rows=data_config.shuffle_buffer_size * batch_size if is_shuffled else 0,
        seed=seed,
        pin_memory=data_config.pin_memory and torch.cuda.is_available(),
    )


def reader_class(data_config: DataConfig) -> type[BaseReader]:
    """The reader that a config asks for: `data_config.reader` of a plugin, or else `dataset_type`.

    Raises:
        ConfigError: it is not built in and no plugin offers it.
    """
    if data_config.HasField("reader"):
        wanted = data_config.reader.TypeName()
        for offer in registry().offers(ReaderSpec):
            if offer.spec.config and registry().load_config_class(offer).DESCRIPTOR.full_name == wanted:
                return registry().load(offer)
        raise ConfigError(
            f"data_config.reader: no installed plugin offers a reader with settings {wanted!r}. "
            "See `tzrec list-plugins`"
        )
    if problem := reader_problem(data_config):
        raise ConfigError(problem)
    name = DatasetType.Name(data_config.dataset_type)
    return registry().load(registry().get(ReaderSpec, name))


class BatchLoader:
    """The batches of a table, once per iteration; made by `create_dataloader`.

    All batches but the last are full, however many workers there are: what is left over in each worker is
    joined here. With one worker or none, rows come in the order of the files; with more, workers read row
    groups (or files) side by side and the order is fixed by their number, or left open when `in_order` is
    false.

    Attributes:
        name: the path as the user wrote it, or what stands for a table in memory.
        batch_size: rows per batch.
        num_workers: worker processes in use; 0 = none.
        num_rows: rows of the table, None when the reader cannot tell.
        num_batches: batches per iteration, None when the reader cannot tell.
    """

    def __init__(
        self,
        reader: BaseReader,
        parser: DataParser,
        *,
        reserved_columns: Sequence[str] = (),
        num_workers: int = 0,
        num_threads: int = 1,
        in_order: bool = True,
        drop_remainder: bool = False,
        shuffle_rows: int = 0,
        seed: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self.name = reader.name
        self.batch_size = reader.batch_size
        self.num_workers = num_workers
        self.num_rows = reader.num_rows
        self.num_batches = None
        if self.num_rows is not None:
            self.num_batches = (math.floor if drop_remainder else math.ceil)(self.num_rows / self.batch_size)
        self._rows = _ParsedRows(reader, parser, list(reserved_columns))
        self._num_threads = num_threads
        self._in_order = in_order
        self._drop_remainder = drop_remainder
        self._shuffle_rows = shuffle_rows
        self._seed = seed
        self._epoch = 0
        self._pin_memory = pin_memory

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next iteration of a shuffled loader; equal epochs give equal orders."""
        self._epoch = epoch

    def missing_row(self) -> Batch:
        """A batch of one row in which every column is null: what a model puts out tells the columns of its output.

        Raises:
            DataError: a feature refuses missing values.
        """
        schema = self._rows.reader.schema
        nulls = [pa.nulls(1, kind) for kind in schema.types]
        return self._rows.parse(RowBlock.of(self.name, 0, pa.RecordBatch.from_arrays(nulls, names=schema.names)))

    def __iter__(self) -> Iterator[Batch]:
        if self._shuffle_rows:
            self._rows.reader.shuffle(seed=self._seed, epoch=self._epoch, window_rows=self._shuffle_rows)
        rest: list[RowBlock] = []
        for item in self._from_workers() if self.num_workers else self._rows:
            if isinstance(item, TzrecError):
                raise item
            if isinstance(item, RowBlock):
                rest.append(item)
            else:
                yield item.pin_memory() if self._pin_memory and not self.num_workers else item
        for block in rebatch(rest, self.batch_size):
            if block.num_rows == self.batch_size or not self._drop_remainder:
                batch = self._rows.parse(block)
                yield batch.pin_memory() if self._pin_memory else batch

    def _from_workers(self) -> Iterator["Batch | RowBlock | TzrecError"]:
        batches = iter(
            DataLoader(
                self._rows,
                batch_size=None,
                num_workers=self.num_workers,
                collate_fn=_as_is,
                prefetch_factor=_BATCHES_AHEAD,
                multiprocessing_context=_workers_context(),
                worker_init_fn=_WorkerStart(self._num_threads),
                pin_memory=self._pin_memory,
                in_order=self._in_order,
            )
        )
        while True:
            try:
                item = next(batches)
            except StopIteration:
                return
            except RuntimeError as error:
                if not str(error).startswith("DataLoader worker"):
                    raise
                raise DataError(
                    f"a data worker process died: {error}. The system may have been out of memory: try "
                    "a smaller data_config.num_workers or batch_size; num_workers: 0 parses in the main "
                    "process and shows where it fails. If your own script dies so at its start, put its code "
                    'under `if __name__ == "__main__":`'
                ) from error
            yield item


class _ParsedRows(IterableDataset["Batch | RowBlock | TzrecError"]):
    """Batches, then the rows that do not fill one; in a worker also, as a value, the error that ended it."""

    def __init__(self, reader: BaseReader, parser: DataParser, reserved_columns: list[str]) -> None:
        self.reader = reader
        self.parser = parser
        self.reserved_columns = reserved_columns

    def __iter__(self) -> Iterator[Batch | RowBlock | TzrecError]:
        worker = get_worker_info()
        self.reader.shard(*((worker.id, worker.num_workers) if worker else (0, 1)))
        try:
            for block in self.reader:
                yield self.parse(block) if block.num_rows == self.reader.batch_size else block.compact()
        except TzrecError as error:
            if worker is None:
                raise
            # As an exception it would arrive wrapped in the text of the worker's traceback.
            yield error

    def parse(self, block: RowBlock) -> Batch:
        columns = dict(zip(block.table.schema.names, block.table.columns))
        try:
            batch = self.parser.to_batch(self.parser.parse(columns, first_row=None))
        except DataError as error:
            raise DataError(f"{self._place(block, error.row)}: {error}") from error
        if self.reserved_columns:
            batch.reserves = pa.concat_batches([block.table.select(self.reserved_columns)])
        return batch

    def _place(self, block: RowBlock, row: int | None) -> str:
        if row is not None:
            source, row = block.locate(row)
            line = self.reader.line_of(source, row)
            return f"{source}, row {row}" + (f" (line {line})" if line else "")
        (first, first_row), (last, last_row) = block.locate(0), block.locate(block.num_rows - 1)
        if block.order is not None or first != last:
            return ", ".join(dict.fromkeys(origin.source for origin in block.origins))
        return f"{first}, rows {first_row} to {last_row}"


class _WorkerStart:
    """What each worker does first: limit the threads of its libraries, and arrange to die with the run."""

    def __init__(self, num_threads: int) -> None:
        self.num_threads = num_threads

    def __call__(self, worker_index: int) -> None:
        del worker_index
        torch.set_num_threads(self.num_threads)
        pa.set_cpu_count(self.num_threads)
        # Read when polars starts its pool, at its first use.
        os.environ["POLARS_MAX_THREADS"] = str(self.num_threads)
        # It warns about torchrec's own code.
        logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
        # torch watches the process that forked the worker: the fork server, which outlives a killed run.
        if run := multiprocessing.parent_process():
            threading.Thread(target=_exit_with, args=(run,), daemon=True).start()


def _exit_with(run: Any) -> None:  # Any: multiprocessing.process._ParentProcess has no public name
    run.join()
    os._exit(1)


def _as_is(item: Batch | RowBlock | TzrecError) -> Batch | RowBlock | TzrecError:
    return item


def _workers_context() -> BaseContext:
    # Not fork: the thread pools of polars and of remote file systems do not survive it, and a worker forked
    # after their first use hangs. The fork server imports torch once (2 s); each worker then starts in 0.3 s.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torchrec", "pyarrow.parquet", "pyarrow.csv"])
    return context


def _num_workers(data_config: DataConfig, asked: int | None, reader: BaseReader) -> int:
    wanted = data_config.num_workers if asked is None else asked
    num_cores = os.cpu_count() or 1
    if wanted > num_cores:
        text = f"num_workers = {wanted} is more than this machine's {num_cores} cores: using {num_cores}"
        is_default = asked is None and not data_config.HasField("num_workers")
        _say_once(text, logging.INFO if is_default else logging.WARNING)
    return 0 if reader.in_memory else min(wanted, num_cores, reader.num_units)


def _say_once(text: str, level: int = logging.WARNING) -> None:
    if text not in _said:
        _said.add(text)
        _log.log(level, text)


def _check(data_config: DataConfig) -> None:
    problems = [*range_mistakes(data_config, "data_config"), *refused_settings(data_config, "data_config")]
    if data_config.shuffle and not data_config.shuffle_buffer_size:
        problems.append("data_config.shuffle_buffer_size = 0: it must be 1 batch or more when shuffle is true")
    dataset_type = DatasetType.Name(data_config.dataset_type)
    if not data_config.HasField("reader") and not reader_problem(data_config):
        for field in _ODPS_ONLY:
            if _is_changed(data_config, field):
                problems.append(f"data_config.{field} is for OdpsDataset, but dataset_type = {dataset_type}: remove it")
        if dataset_type != "CsvDataset":
            for field in _CSV_ONLY:
                if _is_changed(data_config, field):
                    _say_once(f"data_config.{field} is read for CsvDataset only; {dataset_type} does without it")
    if problems:
        raise ConfigError(problems)


def _is_changed(data_config: DataConfig, field: str) -> bool:
    return bool(getattr(data_config, field) != getattr(DataConfig(), field))
