"""Rows of an Arrow table or a data frame that is already in memory."""

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from tzrec_core.data.readers.base import BaseReader
from tzrec_core.data.readers.columns import check_columns, conform, declared_types, plain_type
from tzrec_core.data.readers.row_block import RowBlock
from tzrec_core.errors import DataError
from tzrec_core.protos.data_pb2 import DataConfig

_NAME = "table in memory"


class TableReader(BaseReader):
    """A pyarrow Table, RecordBatch, or a pandas or polars DataFrame; one unit, read in this process.

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
        self._table = as_arrow(data).combine_chunks()
        declared = declared_types(self.data_config)
        names = self._table.schema.names if self.columns is None else self.columns
        check_columns(_NAME, self._table.schema.names, [*names, *declared])
        self._schema = pa.schema(
            [(name, declared.get(name) or plain_type(self._table.schema.field(name).type)) for name in names]
        )

    @property
    def schema(self) -> pa.Schema:
        """Names and types of the columns that are read."""
        return self._schema

    @property
    def num_rows(self) -> int:
        """Rows of the table."""
        return self._table.num_rows

    @property
    def num_units(self) -> int:
        """One, or none for an empty table."""
        return min(self._table.num_rows, 1)

    def read(self, unit: int) -> Iterator[RowBlock]:
        """All rows, in the chunks that they are stored in."""
        del unit
        first_row = 0
        for block in self._table.select(self._schema.names).to_batches():
            yield RowBlock.of(_NAME, first_row, conform(block, self._schema, _NAME, first_row))
            first_row += block.num_rows


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
