"""Rows of an Arrow table or a data frame that is already in memory."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any

import pyarrow as pa

from tzrec_core.data.readers.base import BaseReader
from tzrec_core.data.readers.columns import check_columns, conform, declared_types, plain_type
from tzrec_core.data.readers.row_block import RowBlock
from tzrec_core.errors import DataError
from tzrec_core.protos.data_pb2 import DataConfig

_NAME = "table in memory"


class TableReader(BaseReader):
    """A pyarrow Table, RecordBatch, or a pandas or polars DataFrame, read in this process.

    A unit is a chunk, as the table holds it.

    Args:
        data: the rows.
        batch_size: see `BaseReader`.
        columns: see `BaseReader`.
        data_config: `input_fields` and `input_fields_str` are read.

    Raises:
        DataError: `data` is not a table, or lacks a column.
    """

    in_memory = True

    def __init__(
        self,
        data: Any,
        *,
        batch_size: int,
        columns: Sequence[str] | None = None,
        data_config: DataConfig | None = None,
    ) -> None:
        super().__init__(_NAME, batch_size=batch_size, columns=columns, data_config=data_config)
        table = as_arrow(data)
        declared = declared_types(self.data_config)
        names = table.schema.names if self.columns is None else self.columns
        check_columns(_NAME, table.schema.names, [*names, *declared])
        self._schema = pa.schema(
            [(name, declared.get(name) or plain_type(table.schema.field(name).type)) for name in names]
        )
        self._chunks = table.select(names).to_batches()
        self._first_rows = list(accumulate((chunk.num_rows for chunk in self._chunks), initial=0))

    @property
    def schema(self) -> pa.Schema:
        """Names and types of the columns that are read."""
        return self._schema

    @cached_property
    def unit_rows(self) -> list[int]:
        """Rows of each chunk."""
        return [chunk.num_rows for chunk in self._chunks]

    @property
    def num_units(self) -> int:
        """Chunks that the rows are stored in."""
        return len(self._chunks)

    def read(self, unit: int) -> Iterator[RowBlock]:
        """The rows of one chunk, in one block."""
        first_row = self._first_rows[unit]
        yield RowBlock.of(_NAME, first_row, conform(self._chunks[unit], self._schema, _NAME, first_row))


def as_arrow(data: Any) -> pa.Table:
    """`data` as an Arrow table; raises DataError for what is no table."""
    if isinstance(data, pa.Table):
        return data
    if isinstance(data, pa.RecordBatch):
        return pa.Table.from_batches([data])
    if hasattr(data, "__arrow_c_stream__"):  # polars, pandas >= 2.2 and others speak Arrow themselves
        return pa.table(data)
    raise DataError(
        f"{type(data).__name__} is not a table: give a path, a pyarrow Table or RecordBatch, or a pandas or polars "
        "DataFrame"
    )
