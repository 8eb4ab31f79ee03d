"""What a source of rows promises to the loader."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import pyarrow as pa

from tzrec_core.data.readers.row_block import RowBlock, rebatch
from tzrec_core.protos.data_pb2 import DataConfig


@dataclass(frozen=True)
class _Shuffle:
    seed: int
    epoch: int
    window_rows: int


class BaseReader(ABC):
    """Rows of one table, in blocks of `batch_size`; the contract behind a `ReaderSpec`.

    The rows come in units that are read one after the other, such as row groups or files. A subclass tells
    how many there are and reads one (`read`); cutting into batches, sharing units among workers and shuffling
    are done here. A reader travels to worker processes by pickle: it opens files in `read`, not before.

    Args:
        paths: where the rows are, as the user wrote it.
        batch_size: rows per block that iteration yields; only the last may have fewer. > 0.
        columns: the columns to read, in this order; None = all.
        data_config: the config's data section; a plugin's own settings stand in `data_config.reader`.

    Raises:
        DataError: there is nothing at `paths`, or a column is missing.
        ConfigError: `data_config` does not fit the reader.
    """

    #: What messages call the source: what the user wrote.
    name: str
    #: As given to the constructor.
    columns: list[str] | None
    data_config: DataConfig
    #: True when the rows live in this process's memory, where worker processes cannot see them.
    in_memory: bool = False

    def __init__(
        self,
        paths: str,
        *,
        batch_size: int,
        columns: Sequence[str] | None = None,
        data_config: DataConfig | None = None,
    ) -> None:
        assert batch_size > 0
        self.batch_size = batch_size
        self.name = paths
        self.columns = None if columns is None else list(columns)
        self.data_config = DataConfig() if data_config is None else data_config
        self._worker_index, self._num_workers = 0, 1
        self._shuffle: _Shuffle | None = None

    @property
    @abstractmethod
    def schema(self) -> pa.Schema:
        """Names and types of the columns that are read."""

    @property
    @abstractmethod
    def num_rows(self) -> int | None:
        """Rows of all units together; None when that is known only after reading them."""

    @property
    @abstractmethod
    def num_units(self) -> int:
        """How many units there are; more workers than units have nothing to do."""

    @abstractmethod
    def read(self, unit: int) -> Iterator[RowBlock]:
        """The rows of one unit, in blocks of any size, with `schema`.

        Args:
            unit: 0 to `num_units` - 1.

        Raises:
            DataError: the unit cannot be read; the message starts with the file.
        """

    def line_of(self, source: str, row: int) -> int | None:
        """The line, counted from 1, of a row of a text file; None where files have no lines."""
        del source, row
        return None

    def shard(self, worker_index: int, num_workers: int) -> None:
        """Iterate only over every `num_workers`-th unit, starting at `worker_index`.

        The shards of workers 0 to `num_workers` - 1 are disjoint and complete, also when shuffled with equal
        seeds.
        """
        assert 0 <= worker_index < num_workers
        self._worker_index, self._num_workers = worker_index, num_workers

    def shuffle(self, *, seed: int, epoch: int, window_rows: int) -> None:
        """Iterate over the units in random order, and over the rows in random order within windows of rows.

        Args:
            seed: equal seeds and epochs give equal orders; >= 0.
            epoch: another one gives another order; >= 0.
            window_rows: rows that are held in memory and mixed; > 0.
        """
        self._shuffle = _Shuffle(seed, epoch, window_rows)

    def __iter__(self) -> Iterator[RowBlock]:
        units = range(self.num_units)
        if self._shuffle is not None:
            seed = (self._shuffle.seed, self._shuffle.epoch)
            units = np.random.default_rng(seed).permutation(self.num_units).tolist()
        mine = units[self._worker_index :: self._num_workers]
        blocks: Iterator[RowBlock] = chain.from_iterable(self.read(unit) for unit in mine)
        if self._shuffle is not None:
            rng = np.random.default_rng((*seed, self._worker_index + 1))
            windows = rebatch(blocks, self._shuffle.window_rows)
            blocks = (window.take(rng.permutation(window.num_rows)) for window in windows)
        return rebatch(blocks, self.batch_size)
