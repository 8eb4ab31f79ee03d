"""Rows that remember which file they came from."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa


@dataclass(frozen=True)
class Origin:
    """A run of rows of one file: rows `first_row` to `first_row + num_rows - 1`, counted from 0."""

    source: str
    first_row: int
    num_rows: int


@dataclass(frozen=True)
class RowBlock:
    """Some rows of a table, and where each of them stands in its file.

    Args:
        table: the rows.
        origins: the runs of rows that `table` was put together from, in order.
        order: None, or for each row of `table` its position in the rows that `origins` counts off; int64
            (rows,).
    """

    table: pa.RecordBatch
    origins: tuple[Origin, ...]
    order: np.ndarray | None = None

    @classmethod
    def of(cls, source: str, first_row: int, table: pa.RecordBatch) -> "RowBlock":
        """The block that holds `table`, read from file `source` from row `first_row` on."""
        return cls(table, (Origin(source, first_row, table.num_rows),))

    @classmethod
    def concat(cls, blocks: Sequence["RowBlock"]) -> "RowBlock":
        """One block with the rows of all `blocks`, which are at least one and share a schema."""
        if len(blocks) == 1:
            return blocks[0]
        table = pa.concat_batches([block.table for block in blocks])
        origins = tuple(origin for block in blocks for origin in block.origins)
        if all(block.order is None for block in blocks):
            return cls(table, origins)
        orders, offset = [], 0
        for block in blocks:
            orders.append(offset + (np.arange(block.num_rows) if block.order is None else block.order))
            offset += sum(origin.num_rows for origin in block.origins)
        return cls(table, origins, np.concatenate(orders))

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return int(self.table.num_rows)

    def locate(self, row: int) -> tuple[str, int]:
        """File, and row in that file counted from 0, of a row of this block."""
        index = row if self.order is None else int(self.order[row])
        for origin in self.origins:
            if index < origin.num_rows:
                return origin.source, origin.first_row + index
            index -= origin.num_rows
        raise IndexError(f"row {row} of a block of {self.num_rows} rows")

    def slice(self, start: int, num_rows: int) -> "RowBlock":
        """The `num_rows` rows from `start` on; copies no column."""
        table = self.table.slice(start, num_rows)
        if self.order is not None:
            return RowBlock(table, self.origins, self.order[start : start + num_rows])
        origins, begin = [], 0
        for origin in self.origins:
            first = max(start - begin, 0)
            last = min(start + num_rows - begin, origin.num_rows)
            if first < last:
                origins.append(Origin(origin.source, origin.first_row + first, last - first))
            begin += origin.num_rows
        return RowBlock(table, tuple(origins))

    def take(self, rows: np.ndarray) -> "RowBlock":
        """The given rows, int64 (any number,), in that order."""
        order = rows if self.order is None else self.order[rows]
        return RowBlock(self.table.take(pa.array(rows)), self.origins, order)


def rebatch(blocks: Iterable[RowBlock], sizes: Iterable[int]) -> Iterator[RowBlock]:
    """Cut and join blocks into blocks of the given sizes.

    Args:
        blocks: with at least as many rows as `sizes` add up to; what is beyond that is not read.
        sizes: rows of each block to make; > 0.
    """
    given = iter(blocks)
    block, start = next(given, None), 0
    for size in sizes:
        parts, missing = [], size
        while True:
            assert block is not None, f"{missing} rows are missing"
            taken = min(missing, block.num_rows - start)
            if taken:
                parts.append(block.slice(start, taken))
            missing, start = missing - taken, start + taken
            if not missing:
                break
            block, start = next(given, None), 0
        yield RowBlock.concat(parts)
