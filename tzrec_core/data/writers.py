"""Tables written whole or not at all: what `predict` puts out."""

import os
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import fsspec
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from tzrec_core.errors import ConfigError, DataError, did_you_mean

_ROWS_PER_GROUP = 65536


class TableWriter(ABC):
    """A file of rows, appended in record batches; as a context manager it closes, or aborts on an exception.

    The rows go to a hidden file beside `path`, which takes its final name in `close`: a crash leaves no file
    that looks whole.

    Args:
        path: the file to write, on any file system that fsspec knows.
        overwrite: replace what is there; else it is an error.

    Attributes:
        path: the file.
        num_rows: rows written so far.

    Raises:
        DataError: the file is there already, or its folder cannot be written to.
    """

    def __init__(self, path: str, *, overwrite: bool = False) -> None:
        self.path = path
        self.num_rows = 0
        self._schema: pa.Schema | None = None
        self._fs, self._root = _file_system(path)
        folder, _, name = self._root.rpartition("/")
        self._hidden = f"{folder}/.{name}.{uuid.uuid4().hex[:8]}.tmp"
        try:
            if not overwrite and self._fs.exists(self._root):
                raise DataError(f"{path} is there already: choose another output path, or allow to overwrite it")
            self._made = _missing_folders(self._fs, folder)
            self._fs.makedirs(folder, exist_ok=True)
            self._file = self._fs.open(self._hidden, "wb")
        except OSError as error:
            raise DataError(f"cannot write {path}: {error}") from error

    @abstractmethod
    def _start(self, file: Any, schema: pa.Schema) -> None: ...  # Any: fsspec has no type stubs

    @abstractmethod
    def _append(self, table: pa.RecordBatch) -> None: ...

    @abstractmethod
    def _finish(self) -> None: ...

    def write(self, table: pa.RecordBatch) -> None:
        """Append rows; all calls must bring the same columns.

        Raises:
            DataError: the columns differ from the first call's, the format cannot hold one, or writing fails.
        """
        try:
            if self._schema is None:
                self._start(self._file, table.schema)
                self._schema = table.schema
            if not table.schema.equals(self._schema):
                raise DataError(
                    f"{self.path}: these rows have the columns {_describe(table.schema)}, "
                    f"but those before them had {_describe(self._schema)}"
                )
            self._append(table)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"cannot write {self.path}: {error}") from error
        self.num_rows += table.num_rows

    def close(self) -> None:
        """Finish the file and give it its name; without any `write` it has neither rows nor columns.

        Raises:
            DataError: writing fails.
        """
        if self._file.closed:
            return
        try:
            if self._schema is None:
                self._start(self._file, pa.schema([]))
            self._finish()
            self._file.close()
            self._fs.mv(self._hidden, self._root)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"cannot write {self.path}: {error}") from error

    def abort(self) -> None:
        """Throw the rows away; nothing appears at `path`, nor a folder made for it. Does nothing after `close`."""
        if self._file.closed:
            return
        if self._schema is not None:
            with suppress(pa.ArrowException, OSError):
                self._finish()
        self._file.close()
        self._fs.rm(self._hidden)
        with suppress(OSError):  # someone else may have put a file there
            for folder in self._made:
                self._fs.rmdir(folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()


class ParquetWriter(TableWriter):
    """A Parquet file in zstd, with row groups of about 65536 rows."""

    def _start(self, file: Any, schema: pa.Schema) -> None:
        self._rows = pq.ParquetWriter(file, schema, compression="zstd")
        self._pending: list[pa.RecordBatch] = []
        self._num_pending = 0

    def _append(self, table: pa.RecordBatch) -> None:
        self._pending.append(table)
        self._num_pending += table.num_rows
        if self._num_pending >= _ROWS_PER_GROUP:
            self._flush()

    def _finish(self) -> None:
        if self._pending:
            self._flush()
        self._rows.close()

    def _flush(self) -> None:
        self._rows.write_table(pa.Table.from_batches(self._pending), row_group_size=self._num_pending or None)
        self._pending, self._num_pending = [], 0


class CsvWriter(TableWriter):
    """A CSV file in UTF-8 with a header line; it holds numbers and text, no lists."""

    def _start(self, file: Any, schema: pa.Schema) -> None:
        for field in schema:
            if pa.types.is_nested(field.type):
                raise DataError(
                    f"{self.path}: CSV cannot hold column {field.name!r} of type {field.type}: write Parquet"
                )
        self._rows = pa_csv.CSVWriter(file, schema)

    def _append(self, table: pa.RecordBatch) -> None:
        self._rows.write_batch(table)

    def _finish(self) -> None:
        self._rows.close()


_WRITERS: dict[str, type[TableWriter]] = {"parquet": ParquetWriter, "csv": CsvWriter}


def create_writer(path: str, format: str | None = None, *, overwrite: bool = False) -> TableWriter:
    """A writer for a file, or for `part-0` of a folder.

    Args:
        path: a file that ends in `.parquet` or `.csv`, or else a folder; local or any fsspec URL.
        format: "parquet" or "csv"; None = what the file's name says, Parquet in a folder.
        overwrite: replace the file, or all `part-*` files of that format in the folder.

    Raises:
        ConfigError: the format does not exist, or the file's name says another.
        DataError: the file or parts are there already, or the folder cannot be written to.
    """
    if format is not None and format not in _WRITERS:
        raise ConfigError(
            f"output format {format!r} is not one of {', '.join(_WRITERS)}.{did_you_mean(format, _WRITERS)}"
        )
    named = next((name for name in _WRITERS if path.endswith(f".{name}")), None)
    if named is not None:
        if format not in (None, named):
            raise ConfigError(
                f"output path {path!r} ends in .{named}, but the format is {format!r}: change one of them"
            )
        return _WRITERS[named](path, overwrite=overwrite)
    format = format or "parquet"
    folder = path.rstrip("/")
    _clear_parts(folder, format, overwrite)
    return _WRITERS[format](f"{folder}/part-0.{format}", overwrite=overwrite)


def keep_inputs(path: str, inputs: Iterable[str]) -> None:
    """Make sure that writing to `path`, as `create_writer` does, neither replaces nor joins files that are read.

    Args:
        path: see `create_writer`.
        inputs: files, as `readers.files.find_files` returns them.

    Raises:
        DataError: `path` is one of the files, or a folder that holds one; names both.
    """
    output = _real(path)
    for file in inputs:
        if output in (_real(file), _real(file).rpartition("/")[0]):
            verb = "is" if output == _real(file) else "holds"
            raise DataError(f"the output {path} {verb} the input file {file}: choose another output path")


def _real(path: str) -> str:
    fs, root = _file_system(path)
    return os.path.realpath(root) if isinstance(fs, LocalFileSystem) else str(fs.unstrip_protocol(root)).rstrip("/")


def _missing_folders(fs: Any, folder: str) -> list[str]:
    """The folders that `makedirs` will make, the innermost first; other file systems than local have no real ones."""
    missing: list[str] = []
    while isinstance(fs, LocalFileSystem) and folder and not fs.exists(folder):
        missing.append(folder)
        folder = folder.rpartition("/")[0]
    return missing


def _clear_parts(folder: str, format: str, overwrite: bool) -> None:
    fs, root = _file_system(folder)
    try:
        parts = fs.glob(f"{root}/part-*.{format}") if fs.isdir(root) else []
        if parts and not overwrite:
            raise DataError(
                f"{folder} holds {len(parts)} part-*.{format} already: choose another output path, or "
                "allow to overwrite it"
            )
        for part in parts:
            fs.rm(part)
    except OSError as error:
        raise DataError(f"cannot write {folder}: {error}") from error


def _file_system(path: str) -> tuple[Any, str]:
    try:
        fs, root = fsspec.core.url_to_fs(path)
    except (ImportError, ValueError) as error:
        raise DataError(f"cannot write {path!r}: {error}") from error
    return fs, root


def _describe(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in schema) or "none"
