"""Rows of Parquet files."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from tzrec_core.data.readers.base import BaseReader
from tzrec_core.data.readers.columns import check_columns, conform, declared_types, plain_type
from tzrec_core.data.readers.files import find_files, is_in_memory, open_file
from tzrec_core.data.readers.row_block import RowBlock
from tzrec_core.errors import DataError
from tzrec_core.protos.data_pb2 import DataConfig

# Decoding large and slicing is two to three times as fast as decoding batch by batch.
_ROWS_PER_READ = 65536


class _RowGroup(NamedTuple):
    path: str
    row_group: int
    first_row: int
    num_rows: int


class ParquetReader(BaseReader):
    """Parquet files; a unit is a row group.

    Only the asked columns are read. Types come from the files and must agree; a type that
    `data_config.input_fields` declares wins, and the column is cast to it. Strings and lists arrive as plain
    string and list, however the file stores them.

    Args:
        paths: see `find_files`.
        batch_size: see `BaseReader`.
        columns: see `BaseReader`.
        data_config: `input_fields` and `input_fields_str` are read.

    Raises:
        DataError: no file matches, a file is damaged, lacks a column, or has another type than the first
            file.
    """

    def __init__(
        self,
        paths: str,
        *,
        batch_size: int,
        columns: Sequence[str] | None = None,
        data_config: DataConfig | None = None,
    ) -> None:
        super().__init__(paths, batch_size=batch_size, columns=columns, data_config=data_config)
        declared = declared_types(self.data_config)
        self._row_groups: list[_RowGroup] = []
        self._opened: tuple[str, pq.ParquetFile] | None = None
        schemas: dict[str, pa.Schema] = {}
        files = find_files(paths)
        for path in files:
            file = self._open(path)
            schemas[path] = file.schema_arrow
            first_row = 0
            for index in range(file.num_row_groups):
                num_rows = file.metadata.row_group(index).num_rows
                self._row_groups.append(_RowGroup(path, index, first_row, num_rows))
                first_row += num_rows
        names = schemas[files[0]].names if self.columns is None else self.columns
        for path, schema in schemas.items():
            check_columns(path, schema.names, [*names, *declared])
        self._schema = pa.schema([(name, declared.get(name) or _common_type(name, schemas)) for name in names])
        self.in_memory = any(is_in_memory(path) for path in files)

    @property
    def schema(self) -> pa.Schema:
        """Names and types of the columns that are read."""
        return self._schema

    @cached_property
    def unit_rows(self) -> list[int]:
        """Rows of each row group, from the files' footers."""
        return [group.num_rows for group in self._row_groups]

    @property
    def num_units(self) -> int:
        """Row groups of all files together."""
        return len(self._row_groups)

    def read(self, unit: int) -> Iterator[RowBlock]:
        """The rows of one row group, 65536 at a time.

        Raises:
            DataError: the file is damaged, or a value does not fit its declared type.
        """
        path, index, first_row, _ = self._row_groups[unit]
        batches = self._open(path).iter_batches(
            _ROWS_PER_READ, row_groups=[index], columns=self._schema.names, use_threads=False
        )
        while True:
            try:
                table = next(batches)
            except StopIteration:
                return
            except (pa.ArrowException, OSError) as error:
                raise DataError(f"{path}, row {first_row}: the Parquet file is damaged: {error}") from error
            yield RowBlock.of(path, first_row, conform(table, self._schema, path, first_row))
            first_row += table.num_rows

    def _open(self, path: str) -> pq.ParquetFile:
        if self._opened is None or self._opened[0] != path:
            try:
                self._opened = path, pq.ParquetFile(open_file(path))
            except (pa.ArrowException, OSError) as error:
                raise DataError(f"{path} cannot be read as Parquet: {error}") from error
        return self._opened[1]

    def __getstate__(self) -> dict[str, Any]:  # Any: the attributes of an object
        return {**self.__dict__, "_opened": None}


def _common_type(name: str, schemas: dict[str, pa.Schema]) -> pa.DataType:
    found, found_in = pa.null(), ""
    for path, schema in schemas.items():
        here = plain_type(schema.field(name).type)
        if pa.types.is_null(here) or here == found:
            continue
        if not pa.types.is_null(found):
            raise DataError(
                f"column {name!r} is {found} in {found_in} but {here} in {path}. Rewrite one of the "
                f"files, or say which type to read: data_config.input_fields with input_name: {name!r}"
            )
        found, found_in = here, path
    return found
