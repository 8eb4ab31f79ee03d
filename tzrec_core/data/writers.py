"""Tables written whole or not at all, by one process or several: what `predict` puts out."""

import os
import shutil
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
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
    """One part of a table, appended in record batches to a hidden file; made by `TableOutput.writer`.

    As a context manager it closes, or aborts on an exception. `TableOutput.publish`, within or after its block,
    makes the rows visible.

    Args:
        output: the table.
        file: the hidden file.
        is_continued: the part is glued to the end of another one.

    Attributes:
        num_rows: rows written so far.

    Raises:
        DataError: the file cannot be written.
    """

    def __init__(self, output: "TableOutput", file: str, *, is_continued: bool) -> None:
        self._output = output
        self._fs, self._hidden = _file_system(output.path)[0], file
        self._is_continued = is_continued
        self._schema: pa.Schema | None = None
        self.num_rows = 0
        try:
            self._file = self._fs.open(file, "wb")
        except OSError as error:
            raise DataError(f"cannot write {output.path}: {error}") from error

    @abstractmethod
    def _start(self, file: Any, schema: pa.Schema) -> None: ...  # Any: fsspec has no type stubs

    @abstractmethod
    def _append(self, table: pa.RecordBatch) -> None: ...

    @abstractmethod
    def _finish(self) -> None: ...

    @staticmethod
    @abstractmethod
    def join(parts: Iterable[Any], file: Any) -> None:
        """Write the rows of finished parts, all open for reading, into an open file; holds few of them at a time."""

    def write(self, table: pa.RecordBatch) -> None:
        """Append rows; all calls must bring the same columns.

        Raises:
            DataError: the columns differ from the first call's, the format cannot hold one, or writing fails.
        """
        path = self._output.path
        try:
            if self._schema is None:
                self._start(self._file, table.schema)
                self._schema = table.schema
            if not table.schema.equals(self._schema):
                raise DataError(
                    f"{path}: these rows have the columns {_describe(table.schema)}, "
                    f"but those before them had {_describe(self._schema)}"
                )
            self._append(table)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"cannot write {path}: {error}") from error
        self.num_rows += table.num_rows

    def close(self) -> None:
        """Finish the hidden file; without any `write` it has neither rows nor columns.

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
        except (pa.ArrowException, OSError) as error:
            self.abort()
            raise DataError(f"cannot write {self._output.path}: {error}") from error

    def abort(self) -> None:
        """Throw away what is not published yet, with the folders that were made for it."""
        if not self._file.closed:
            if self._schema is not None:
                with suppress(pa.ArrowException, OSError):
                    self._finish()
            self._file.close()
        with suppress(OSError):  # it is in its place already
            self._fs.rm(self._hidden)
        with suppress(OSError):  # someone else may have put a file there
            for folder in self._output.made_folders:
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

    @staticmethod
    def join(parts: Iterable[Any], file: Any) -> None:
        """Copy the row groups, one at a time."""
        with ExitStack() as stack:
            rows: pq.ParquetWriter | None = None
            for part in map(pq.ParquetFile, parts):
                if rows is None:
                    rows = stack.enter_context(pq.ParquetWriter(file, part.schema_arrow, compression="zstd"))
                for group in range(part.num_row_groups):
                    rows.write_table(part.read_row_group(group))


class CsvWriter(TableWriter):
    """A CSV file in UTF-8 with a header line; it holds numbers and text, no lists."""

    def _start(self, file: Any, schema: pa.Schema) -> None:
        for field in schema:
            if pa.types.is_nested(field.type):
                raise DataError(
                    f"{self._output.path}: CSV cannot hold column {field.name!r} of type {field.type}: write Parquet"
                )
        options = pa_csv.WriteOptions(include_header=not self._is_continued)
        self._rows = pa_csv.CSVWriter(file, schema, write_options=options)

    def _append(self, table: pa.RecordBatch) -> None:
        self._rows.write_batch(table)

    def _finish(self) -> None:
        self._rows.close()

    @staticmethod
    def join(parts: Iterable[Any], file: Any) -> None:
        """Copy the bytes: only the first part has a header."""
        for part in parts:
            shutil.copyfileobj(part, file, 2**20)


_WRITERS: dict[str, type[TableWriter]] = {"parquet": ParquetWriter, "csv": CsvWriter}


@dataclass(frozen=True)
class TableOutput:
    """Where the processes of a run write one table; made in one of them by `prepare_output`, and given to the others.

    Each writes its part with `writer`; when all are closed, one of them calls `publish`. Until then nothing is to be
    seen at `path`, and what was there stays.

    Attributes:
        path: the file or folder, as the user wrote it.
        format: "parquet" or "csv".
        num_parts: how many there will be.
        is_file: whether the parts become one file; else they become `part-<number>` in a folder, named so that
            sorting the names gives the order of the parts.
        made_folders: folders that were made for it, the innermost first.
        token: what the names of this run's hidden files share.
    """

    path: str
    format: str
    num_parts: int
    is_file: bool
    made_folders: tuple[str, ...]
    token: str

    def writer(self, part: int = 0) -> TableWriter:
        """The writer of part number `part`, from 0; raises DataError when its file cannot be written."""
        return _WRITERS[self.format](self, self._hidden(part), is_continued=self.is_file and part > 0)

    def publish(self) -> None:
        """Put the rows of all parts in their place, one part after the other, and remove what they replace.

        Raises:
            DataError: a part is missing, or writing fails; what was at `path` is there still.
        """
        fs, _ = _file_system(self.path)
        parts = [self._hidden(part) for part in range(self.num_parts)]
        try:
            for number, part in enumerate(parts):
                if not fs.exists(part):
                    raise DataError(
                        f"cannot write {self.path}: part {number} is not there; all processes must write to the same "
                        "file system"
                    )
            if self.is_file:
                self._publish_file(fs, parts)
            else:
                self._publish_folder(fs, parts)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"cannot write {self.path}: {error}") from error

    def _publish_file(self, fs: Any, parts: list[str]) -> None:
        if len(parts) == 1:
            fs.mv(parts[0], self._root)
            return
        joined = self._hidden(len(parts))
        try:
            with ExitStack() as stack:
                opened = (stack.enter_context(fs.open(part, "rb")) for part in parts)
                _WRITERS[self.format].join(opened, stack.enter_context(fs.open(joined, "wb")))
        except BaseException:
            with suppress(OSError):
                fs.rm(joined)
            raise
        fs.mv(joined, self._root)
        for part in parts:
            fs.rm(part)

    def _publish_folder(self, fs: Any, parts: list[str]) -> None:
        width = len(str(len(parts) - 1))
        names = [f"part-{number:0{width}}.{self.format}" for number in range(len(parts))]
        for part, name in zip(parts, names):
            fs.mv(part, f"{self._root}/{name}")
        for file in _parts(fs, self._root, self.format):
            if file.rpartition("/")[2] not in names:
                fs.rm(file)

    @property
    def _root(self) -> str:
        return _file_system(self.path)[1].rstrip("/")

    def _hidden(self, part: int) -> str:
        folder, _, name = self._root.rpartition("/") if self.is_file else (self._root, "/", "part")
        return f"{folder}/.{name}.{self.token}-{part}.tmp"


def prepare_output(path: str, format: str | None = None, *, overwrite: bool = False, num_parts: int = 1) -> TableOutput:
    """Check that a table may be written to `path`, and make its folder.

    Args:
        path: a file that ends in `.parquet` or `.csv`, or else a folder; local or any fsspec URL.
        format: "parquet" or "csv"; None = what the file's name says, Parquet in a folder.
        overwrite: replace the file, or all `part-*` files of that format in the folder.
        num_parts: processes that write a part each; > 0.

    Raises:
        ConfigError: the format does not exist, or the file's name says another.
        DataError: the file or parts are there already, or the folder cannot be written to.
    """
    if format is not None and format not in _WRITERS:
        raise ConfigError(
            f"output format {format!r} is not one of {', '.join(_WRITERS)}.{did_you_mean(format, _WRITERS)}"
        )
    named = next((name for name in _WRITERS if path.endswith(f".{name}")), None)
    if named is not None and format not in (None, named):
        raise ConfigError(f"output path {path!r} ends in .{named}, but the format is {format!r}: change one of them")
    format = format or named or "parquet"
    fs, root = _file_system(path)
    folder = root.rpartition("/")[0] if named else root.rstrip("/")
    try:
        if named and fs.isdir(root):
            raise DataError(f"cannot write {path}: it is a folder; name another file")
        if named and fs.exists(root) and not overwrite:
            raise DataError(f"{path} is there already: choose another output path, or allow to overwrite it")
        if not named and not overwrite and (parts := _parts(fs, folder, format)):
            raise DataError(
                f"{path} holds {len(parts)} part-*.{format} already: choose another output path, or allow to "
                "overwrite it"
            )
        made = _missing_folders(fs, folder)
        fs.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error}") from error
    return TableOutput(path, format, num_parts, named is not None, tuple(made), uuid.uuid4().hex[:8])


def keep_inputs(path: str, inputs: Iterable[str]) -> None:
    """Make sure that a table written to `path` neither replaces nor joins files that are read.

    Args:
        path: see `prepare_output`.
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


def _parts(fs: Any, folder: str, format: str) -> list[str]:
    return list(fs.glob(f"{folder}/part-*.{format}")) if fs.isdir(folder) else []


def _missing_folders(fs: Any, folder: str) -> list[str]:
    """The folders that `makedirs` will make, the innermost first; other file systems than local have no real ones."""
    missing: list[str] = []
    while isinstance(fs, LocalFileSystem) and folder and not fs.exists(folder):
        missing.append(folder)
        folder = folder.rpartition("/")[0]
    return missing


def _file_system(path: str) -> tuple[Any, str]:
    try:
        fs, root = fsspec.core.url_to_fs(path)
    except (ImportError, ValueError) as error:
        raise DataError(f"cannot write {path!r}: {error}") from error
    return fs, root


def _describe(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in schema) or "none"
