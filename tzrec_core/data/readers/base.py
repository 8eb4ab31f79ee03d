"""What a source of rows promises to the loader."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from tzrec_core.data.readers.row_block import RowBlock, rebatch
from tzrec_core.errors import DataError
from tzrec_core.protos.data_pb2 import DataConfig


@dataclass(frozen=True)
class Shuffle:
    """A random order of rows: units in random order, and rows in random order within windows of rows.

    Args:
        seed: equal seeds and epochs give equal orders; >= 0.
        epoch: another one gives another order; >= 0.
        window_rows: rows that are held in memory and mixed; > 0.
    """

    seed: int
    epoch: int
    window_rows: int


class BaseReader(ABC):
    """Rows of one table; the contract behind a `ReaderSpec`.

    The rows come in units that are read one after the other, such as row groups or files. A subclass tells
    how many there are, reads one (`read`), and should tell the rows of each without reading them (`unit_rows`);
    shuffling and reading a range of rows (`read_rows`) are done here. A reader travels to worker processes by
    pickle: it opens files in `read`, not before.

    Args:
        paths: where the rows are, as the user wrote it.
        batch_size: rows of the batches that the loader makes; > 0. The blocks of a reader may have any size.
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

    @property
    @abstractmethod
    def schema(self) -> pa.Schema:
        """Names and types of the columns that are read."""

    @property
    @abstractmethod
    def num_units(self) -> int:
        """How many units there are."""

    @abstractmethod
    def read(self, unit: int) -> Iterator[RowBlock]:
        """The rows of one unit, in blocks of any size, with `schema`; the same at each call.

        Args:
            unit: 0 to `num_units` - 1.

        Raises:
            DataError: the unit cannot be read; the message starts with the file.
        """

    @cached_property
    def unit_rows(self) -> list[int]:
        """The number of rows of each unit; reads all of them, unless a subclass knows better.

        Raises:
            DataError: a unit cannot be read.
        """
        return [sum(block.num_rows for block in self.read(unit)) for unit in range(self.num_units)]

    @property
    def num_rows(self) -> int:
        """Rows of all units together."""
        return sum(self.unit_rows)

    def line_of(self, source: str, row: int) -> int | None:
        """The line, counted from 1, of a row of a text file; None where files have no lines."""
        del source, row
        return None

    def read_rows(
        self, start: int = 0, end: int | None = None, *, shuffle: Shuffle | None = None
    ) -> Iterator[RowBlock]:
        """Rows `start` to `end` - 1 of an epoch, in blocks of any size.

        The order of an epoch holds all rows once: unit after unit, or as `shuffle` says. It does not depend on the
        range that is read, so that several readers of disjoint ranges share the rows. Only units that hold rows
        of the range, or of a window that reaches into it, are read.

        Args:
            start: >= 0.
            end: `start` to `num_rows`; None = `num_rows`.
            shuffle: None = in the order of the units.

        Raises:
            DataError: a unit cannot be read, or no longer has the rows that were counted.
        """
        unit_rows = self.unit_rows
        num_rows = sum(unit_rows)
        end = num_rows if end is None else end
        assert 0 <= start <= end <= num_rows
        if shuffle is None:
            return self._in_units(range(len(unit_rows)), start, end)
        return self._in_windows(shuffle, start, end, num_rows)

    def _in_windows(self, shuffle: Shuffle, start: int, end: int, num_rows: int) -> Iterator[RowBlock]:
        seed, size = (shuffle.seed, shuffle.epoch), shuffle.window_rows
        units = np.random.default_rng(seed).permutation(self.num_units).tolist()
        windows = range(start // size, -(-end // size))
        firsts = range(windows.start * size, windows.stop * size, size)
        sizes = [min(size, num_rows - first) for first in firsts]
        blocks = self._in_units(units, firsts.start, min(firsts.stop, num_rows))
        for window, first, block in zip(windows, firsts, rebatch(blocks, sizes)):
            order = np.random.default_rng((*seed, window + 1)).permutation(block.num_rows)
            yield block.take(order[max(start - first, 0) : end - first])

    def _in_units(self, units: Sequence[int], start: int, end: int) -> Iterator[RowBlock]:
        first = 0
        for unit in units:
            num_rows = self.unit_rows[unit]
            unit_start, unit_end = max(start - first, 0), min(end - first, num_rows)
            if unit_start < unit_end:
                yield from self._in_unit(unit, unit_start, unit_end)
            first += num_rows

    def _in_unit(self, unit: int, start: int, end: int) -> Iterator[RowBlock]:
        num_read = 0
        expected = self.unit_rows[unit]
        name = self.name
        for block in self.read(unit):
            first, num_read = num_read, num_read + block.num_rows
            name = block.origins[0].source if block.origins else name
            block_start, block_end = max(start - first, 0), min(end - first, block.num_rows)
            if block_start < block_end:
                yield block.slice(block_start, block_end - block_start)
            if num_read >= end and end < expected:
                return
        if num_read != expected:
            raise DataError(
                f"{name}: {num_read} rows were read where {expected} were counted before. If the data changed "
                "meanwhile, start again"
            )
