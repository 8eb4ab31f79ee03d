"""From files to batches: readers and the parser, run in worker processes."""

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from tzrec_core.config import range_mistakes, reader_problem, refused_settings
from tzrec_core.data.batch import Batch
from tzrec_core.data.batch_plan import BatchPlan, plan_batches
from tzrec_core.data.parser import DataParser
from tzrec_core.data.readers import BaseReader, RowBlock, Shuffle, rebatch
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
    rank: int = 0,
    world_size: int = 1,
) -> "BatchLoader":
    """Batches of a table, parsed in worker processes.

    Labels and sample weights are read in "train" and "eval". `shuffle` and `drop_remainder` hold for "train"
    only, `eval_batch_size` for "eval"; evaluation and prediction see every row once. Each process of a run reads a
    share of its own, one after the other in the order of the rows, and makes as many batches as the others.

    Args:
        data_config: the config's data section.
        features: what to parse.
        input_path: globs, files or folders separated by commas, see `readers.files.find_files`; or what the
            reader of a plugin takes.
        mode: "train", "eval" or "predict".
        reserved_columns: columns to carry along in `Batch.reserves`; `["ALL_COLUMNS"]` = all.
        num_workers: instead of `data_config.num_workers`; 0 = parse in this process.
        seed: of the shuffling; >= 0, equal in all processes.
        rank: of this process among those that share the rows, 0 to `world_size` - 1.
        world_size: number of these processes.

    Raises:
        ConfigError: a setting of `data_config` is wrong, or not supported.
        DataError: files or columns are missing, a file is damaged, or there are fewer rows than processes.
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
        rank=rank,
        world_size=world_size,
        reserved_columns=reserved_columns,
        num_workers=_num_workers(data_config, num_workers),
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
    """The batches of one process's share of a table; made by `create_dataloader`.

    Which rows a batch holds depends only on what `order_key` lists, the epoch and the number of the batch. All
    batches but the last are full; the last one has fewer rows, or one more where the rows do not divide evenly
    among the processes. With one worker or none, rows come in the order of the table, or of its shuffle; with more,
    each worker reads a range of rows of its own, side by side, and they take turns in giving a batch, or, when
    `in_order` is false, whoever has one gives it.

    Attributes:
        name: the path as the user wrote it, or what stands for a table in memory.
        batch_size: rows per batch.
        num_workers: worker processes in use; 0 = none.
        num_rows: rows of the table, those of all processes together.
        num_batches: batches of an epoch; the same in all processes.
        last_batch_size: rows of the last batch of an epoch.
    """

    def __init__(
        self,
        reader: BaseReader,
        parser: DataParser,
        *,
        rank: int = 0,
        world_size: int = 1,
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
        self.num_rows = sum(reader.unit_rows)
        if 0 < self.num_rows < world_size:
            raise DataError(
                f"{self.name} has too few rows to share: {self.num_rows} for {world_size} processes, of which each "
                f"needs one at least. Start {self.num_rows} processes or fewer (--nproc)"
            )
        if reader.in_memory:
            num_workers = 0
        self._plan = plan_batches(
            self.num_rows,
            self.batch_size,
            rank=rank,
            world_size=world_size,
            num_workers=num_workers,
            drop_remainder=drop_remainder,
        )
        self.num_batches = self._plan.num_batches
        self.last_batch_size = len(self._plan.rows) - max(0, self.num_batches - 1) * self.batch_size
        self.num_workers = min(num_workers, self.num_batches)
        self._rows = _RowParser(reader, parser, list(reserved_columns))
        self._world_size = world_size
        self._num_threads = num_threads
        self._in_order = in_order
        self._drop_remainder = drop_remainder
        self._shuffle_rows = shuffle_rows
        self._seed = seed
        self._epoch = 0
        self._first_batch = 0
        self._pin_memory = pin_memory

    def start(self, epoch: int = 0, batch: int = 0) -> None:
        """Choose where iterations begin from now on.

        They give what is left of the epoch from that batch on, the very batches that a whole iteration would give;
        nothing when `batch` is `num_batches` or more. When several workers do not keep their order (`in_order` is
        false), which batches came first is not known: some rows are then seen twice, others not at all.

        Args:
            epoch: of a shuffled loader, each with an order of its own; >= 0.
            batch: its number, from 0; the same in all processes.
        """
        assert epoch >= 0 and batch >= 0
        if batch and self.num_workers > 1 and not self._in_order:
            _say_once(
                "data_config.in_order is false, so which batches of this epoch came first is not known: some of its "
                "rows will be seen twice, others not at all"
            )
        self._epoch, self._first_batch = epoch, batch

    def order_key(self) -> dict[str, Any]:  # Any: JSON values
        """All that decides, with the epoch, which rows a batch number stands for; JSON values.

        Another run may go on at a batch number of this one when the keys are equal. What does not matter is None:
        `seed`, `window_rows` and `num_units` without shuffling.
        """
        shuffled = bool(self._shuffle_rows)
        return {
            "input_path": self.name,
            "num_rows": self.num_rows,
            "batch_size": self.batch_size,
            "world_size": self._world_size,
            "num_workers": self._plan.num_workers,
            "in_order": self._in_order or self._plan.num_workers == 1,
            "drop_remainder": self._drop_remainder,
            "seed": self._seed if shuffled else None,
            "window_rows": self._shuffle_rows if shuffled else None,
            "num_units": self._rows.reader.num_units if shuffled else None,
        }

    def missing_row(self) -> Batch:
        """A batch of one row in which every column is null: what a model puts out tells the columns of its output.

        Raises:
            DataError: a feature refuses missing values.
        """
        schema = self._rows.reader.schema
        nulls = [pa.nulls(1, kind) for kind in schema.types]
        return self._rows.parse(RowBlock.of(self.name, 0, pa.RecordBatch.from_arrays(nulls, names=schema.names)))

    def __iter__(self) -> Iterator[Batch]:
        shuffle = None
        if self._shuffle_rows:
            shuffle = Shuffle(self._seed, self._epoch, self._shuffle_rows)
        part = _ParsedPart(self._rows, self._plan, shuffle, self._first_batch)
        return self._in_this_process(part) if self.num_workers == 0 else self._from_workers(part)

    def _in_this_process(self, part: "_ParsedPart") -> Iterator[Batch]:
        for batch in part.batches(0):
            yield batch.pin_memory() if self._pin_memory else batch

    def _from_workers(self, part: "_ParsedPart") -> Iterator[Batch]:
        num_left = self.num_batches - part.first_batch
        if num_left <= 0:
            return
        batches = iter(
            DataLoader(
                part,
                batch_size=None,
                num_workers=min(self.num_workers, num_left),
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
            if isinstance(item, TzrecError):
                raise item
            yield item


class _RowParser:
    """What makes a batch of rows of a reader."""

    def __init__(self, reader: BaseReader, parser: DataParser, reserved_columns: list[str]) -> None:
        self.reader = reader
        self.parser = parser
        self.reserved_columns = reserved_columns

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


class _ParsedPart(IterableDataset["Batch | TzrecError"]):
    """The batches of this worker process; the last value may be the error that ended them."""

    def __init__(self, rows: _RowParser, plan: BatchPlan, shuffle: Shuffle | None, first_batch: int) -> None:
        self.rows = rows
        self.plan = plan
        self.shuffle = shuffle
        self.first_batch = first_batch

    def batches(self, index: int) -> Iterator[Batch]:
        """The batches of worker process `index`."""
        part, sizes = self.plan.part(index, self.first_batch)
        blocks = self.rows.reader.read_rows(part.start, part.stop, shuffle=self.shuffle)
        return map(self.rows.parse, rebatch(blocks, sizes))

    def __iter__(self) -> Iterator[Batch | TzrecError]:
        worker = get_worker_info()
        assert worker is not None
        try:
            yield from self.batches(worker.id)
        except TzrecError as error:
            # As an exception it would arrive wrapped in the text of the worker's traceback.
            yield error


class _WorkerStart:
    """What each worker does first: limit the threads of its libraries, leave Ctrl-C to the run and die with it."""

    def __init__(self, num_threads: int) -> None:
        self.num_threads = num_threads

    def __call__(self, worker_index: int) -> None:
        del worker_index
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        # Out of the process group, and only then open to SIGTERM; one that came meanwhile was for the run.
        os.setpgid(0, 0)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
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


def _as_is(item: Batch | TzrecError) -> Batch | TzrecError:
    return item


def _workers_context() -> BaseContext:
    # Not fork: the thread pools of polars and of remote file systems do not survive it, and a worker forked
    # after their first use hangs. The fork server imports torch once (2 s); each worker then starts in 0.3 s.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torchrec", "pyarrow.parquet", "pyarrow.csv"])
    # A terminal sends Ctrl-C, and a launcher SIGTERM, to the whole process group; the run saves then, and needs its
    # workers until it has. What is blocked here stays so in the fork server and in its children, also before they
    # reach _WorkerStart. A signal for this process waits until the mask is back.
    resource_tracker.ensure_running()  # when the fork server starts it, it unblocks SIGINT again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def _num_workers(data_config: DataConfig, asked: int | None) -> int:
    wanted = data_config.num_workers if asked is None else asked
    num_cores = os.cpu_count() or 1
    if wanted > num_cores:
        text = f"num_workers = {wanted} is more than this machine's {num_cores} cores: using {num_cores}"
        is_default = asked is None and not data_config.HasField("num_workers")
        _say_once(text, logging.DEBUG if is_default else logging.WARNING)
    return min(wanted, num_cores)


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
