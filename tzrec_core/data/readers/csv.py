"""Rows of CSV files."""

import csv
import io
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

import pyarrow as pa
import pyarrow.csv as pa_csv

from tzrec_core.data.readers.base import BaseReader
from tzrec_core.data.readers.columns import check_columns, declared_types
from tzrec_core.data.readers.files import find_files, is_in_memory, open_file
from tzrec_core.data.readers.row_block import RowBlock
from tzrec_core.errors import ConfigError, DataError
from tzrec_core.protos.data_pb2 import DataConfig

# Also the longest line that can be read.
_BLOCK_BYTES = 8 << 20

_CODECS = {"gz": "gzip", "bz2": "bz2", "zst": "zstd", "lz4": "lz4"}

_WRONG_COUNT = re.compile(r"Row #(\d+): Expected (\d+) columns, got (\d+)(?:: (.*))?", re.DOTALL)
_WRONG_VALUE = re.compile(
    r"In CSV column #(\d+): Row #(\d+): CSV conversion error to ([^:]+): (?:invalid value )?(.*)", re.DOTALL
)


class CsvReader(BaseReader):
    """CSV files in UTF-8, plain or compressed (`.gz`, `.bz2`, `.zst`, `.lz4`); a unit is a file.

    `data_config.input_fields` gives the columns in order when the files have no header line, and types in
    both cases. A type that is not given is inferred from the first block of the first file and then holds for
    all of them; dates and times count as text. ARRAY_* and MAP_* columns are text here, which the features
    split. An empty field is null in a number column and the empty string in a text column. Empty lines are
    skipped; quotes (`"`) protect delimiters and line breaks.

    Args:
        paths: see `find_files`.
        batch_size: see `BaseReader`.
        columns: see `BaseReader`.
        data_config: `delimiter`, `with_header`, `input_fields` and `input_fields_str` are read.

    Raises:
        DataError: no file matches, or a header line lacks a column.
        ConfigError: the delimiter is not one character, or there is neither a header line nor `input_fields`.
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
        self._delimiter, self._has_header = self.data_config.delimiter, self.data_config.with_header
        if len(self._delimiter.encode()) != 1:
            raise ConfigError(f"data_config.delimiter = {self._delimiter!r} is not one ASCII character")
        declared = declared_types(self.data_config)
        if not self._has_header and not declared:
            raise ConfigError(
                "data_config: CSV files without a header line need the names of their columns: set "
                "with_header: true, or list them in input_fields { input_name: ... input_type: ... }"
            )
        self._declared_names = list(declared)
        self._files = find_files(paths)
        self.in_memory = any(is_in_memory(path) for path in self._files)
        file_columns = {path: self._names(path) for path in self._files}
        filled = [path for path, names in file_columns.items() if names]
        asked = self.columns
        if asked is None:
            asked = file_columns[filled[0]] if filled else self._declared_names
        for path in filled:
            check_columns(path, file_columns[path], [*asked, *declared])
        types = {name: _text_or_number(given) for name, given in declared.items() if given is not None}
        inferred = {} if set(asked) <= set(types) else self._infer(filled, asked, types)
        self._schema = pa.schema([(name, types.get(name) or inferred.get(name, pa.string())) for name in asked])

    @property
    def schema(self) -> pa.Schema:
        """Names and types of the columns that are read."""
        return self._schema

    @cached_property
    def unit_rows(self) -> list[int]:
        """Rows of each file, counted in one pass over all of them.

        Raises:
            DataError: a line has a wrong number of fields; names file and line.
        """
        with ThreadPoolExecutor() as pool:
            return list(pool.map(self._count, self._files))

    @property
    def num_units(self) -> int:
        """Number of files."""
        return len(self._files)

    def read(self, unit: int) -> Iterator[RowBlock]:
        """The rows of one file.

        Raises:
            DataError: a line has a wrong number of fields, or a value has the wrong type; names file, line,
                column and value.
        """
        path, first_row = self._files[unit], 0
        try:
            reader = self._start(path, dict(zip(self._schema.names, self._schema.types)), self._schema.names)
            for table in reader or ():
                yield RowBlock.of(path, first_row, table)
                first_row += table.num_rows
        except (pa.ArrowException, OSError) as error:
            raise DataError(self._explain(path, str(error))) from error

    def line_of(self, source: str, row: int) -> int | None:
        """The line, counted from 1, of a row; reads the file up to it."""
        return self._line(source, row + 1 + self._has_header)

    def _count(self, path: str) -> int:
        names = self._schema.names[:1]
        try:
            # one column, as bytes: no value has to be converted
            reader = self._start(path, dict.fromkeys(names, pa.binary()), names)
            return sum(table.num_rows for table in reader or ())
        except (pa.ArrowException, OSError) as error:
            raise DataError(self._explain(path, str(error))) from error

    def _names(self, path: str) -> list[str]:
        try:
            with _text(path) as file:
                head = next((line for line in file if line.strip("\r\n")), "")
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path} cannot be read as CSV: {error}") from error
        if head.startswith("PAR1"):
            raise DataError(f"{path} is a Parquet file, not CSV: set data_config.dataset_type: ParquetDataset")
        if "\0" in head:
            raise DataError(f"{path} is a binary file, not CSV: check the path and data_config.dataset_type")
        if not head or not self._has_header:
            return self._declared_names if head else []
        try:
            return next(csv.reader([head], delimiter=self._delimiter))
        except csv.Error as error:
            raise DataError(f"{path}: the header line cannot be read as CSV: {error}") from error

    def _infer(self, files: list[str], asked: list[str], types: dict[str, pa.DataType]) -> dict[str, pa.DataType]:
        for path in files:
            try:
                reader = self._start(path, types, asked)
            except (pa.ArrowException, OSError) as error:
                raise DataError(self._explain(path, str(error))) from error
            if reader is not None and not all(pa.types.is_null(given) for given in reader.schema.types):
                return {field.name: _text_or_number(field.type) for field in reader.schema}
        return {}

    def _start(self, path: str, types: dict[str, pa.DataType], asked: list[str]) -> pa_csv.CSVStreamingReader | None:
        """A reader at the start of a file; None when the file has no rows."""
        try:
            return pa_csv.open_csv(
                _decompressed(path),
                pa_csv.ReadOptions(
                    use_threads=False,
                    block_size=_BLOCK_BYTES,
                    column_names=None if self._has_header else self._declared_names,
                ),
                pa_csv.ParseOptions(delimiter=self._delimiter, newlines_in_values=True),
                pa_csv.ConvertOptions(column_types=types, include_columns=asked),
            )
        except pa.ArrowInvalid as error:
            if "Empty CSV file" in str(error):
                return None
            raise

    def _explain(self, path: str, text: str) -> str:
        if found := _WRONG_COUNT.search(text):
            line = self._line(path, int(found[1]))
            where = "the header line has" if self._has_header else "data_config.input_fields has"
            text = (found[4] or "")[:200]
            return f"{path}, line {line or 'unknown'}: {found[3]} fields, but {where} {found[2]}: {text}"
        if found := _WRONG_VALUE.search(text):
            line = self._line(path, int(found[2]))
            column, value = self._names(path)[int(found[1])], found[4][:200]
            hint = "If the value is right, give the column another input_type in data_config.input_fields"
            if line == 1 and column == value.strip("'\""):
                hint = "Is it a header line? Then set data_config.with_header: true"
            where = f"{path}, line {line or 'unknown'}: column {column!r}"
            return f"{where}: {value} is not of type {found[3].strip()}. {hint}"
        if "straddling" in text:
            return f"{path}: a line is longer than {_BLOCK_BYTES >> 20} MiB, or a quote is never closed: {text}"
        return f"{path} cannot be read as CSV: {text}"

    def _line(self, path: str, nth: int) -> int | None:
        """The line at which the nth record starts, both counted from 1; None when it cannot be told."""
        with _text(path) as file:
            records = csv.reader(file, delimiter=self._delimiter)
            start = 1
            try:
                for record in records:
                    nth -= bool(record)
                    if nth == 0:
                        return start
                    start = records.line_num + 1
            except csv.Error:
                return None
        return None


def _text_or_number(given: pa.DataType) -> pa.DataType:
    is_value = pa.types.is_integer(given) or pa.types.is_floating(given) or pa.types.is_boolean(given)
    return given if is_value else pa.string()


def _decompressed(path: str) -> pa.NativeFile:
    file = open_file(path)
    codec = _CODECS.get(path.rpartition(".")[2])
    return file if codec is None else pa.CompressedInputStream(file, codec)


def _text(path: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BufferedReader(_decompressed(path)), "utf-8-sig", errors="replace", newline="\n")
