"""Finding and opening input files on any file system that fsspec knows."""

from glob import has_magic
from typing import Any

import fsspec
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from tzrec_core.errors import DataError

_SHOWN = 8


def find_files(paths: str) -> list[str]:
    """The files that `paths` means, sorted within each of its patterns.

    Args:
        paths: globs, files or folders, separated by commas; local paths or URLs such as
            `s3://bucket/part-*.parquet`. A folder means the files in it. Files whose name starts with `_` or
            `.` (such as `_SUCCESS`) are left out unless they are named without a glob.

    Returns:
        absolute local paths and URLs, for `open_file`.

    Raises:
        DataError: a pattern matches no file, or its file system cannot be reached.
    """
    patterns = [part for part in (part.strip() for part in paths.split(",")) if part]
    if not patterns:
        raise DataError(f"the input path {paths!r} names no file")
    return [path for pattern in patterns for path in _matches(pattern)]


def open_file(path: str) -> pa.NativeFile:
    """Open a file that `find_files` returned.

    Raises:
        OSError: it cannot be opened.
    """
    fs, root = _file_system(path)
    return pa.OSFile(root) if isinstance(fs, LocalFileSystem) else pa.PythonFile(fs.open(root, "rb"), mode="r")


def is_in_memory(path: str) -> bool:
    """Whether a file that `find_files` returned lives in this process's memory (`memory://`)."""
    return isinstance(_file_system(path)[0], MemoryFileSystem)


def _file_system(path: str) -> tuple[Any, str]:  # Any: fsspec has no type stubs
    try:
        fs, root = fsspec.core.url_to_fs(path)
    except (ImportError, ValueError) as error:
        raise DataError(f"cannot open {path!r}: {error}") from error
    return fs, root


def _matches(pattern: str) -> list[str]:
    fs, root = _file_system(pattern)
    try:
        found = _list(fs, root)
        if not found:
            raise DataError(f"no file matches {pattern!r}: {_neighbours(fs, root)}")
    except OSError as error:
        raise DataError(f"cannot list {pattern!r}: {error}") from error
    is_local = isinstance(fs, LocalFileSystem)
    return [path if is_local else fs.unstrip_protocol(path) for path in sorted(found)]


def _list(fs: Any, root: str) -> list[str]:
    if fs.isfile(root):
        return [root]
    if has_magic(root):
        return [path for path in fs.glob(root) if not _is_hidden(path) and fs.isfile(path)]
    if fs.isdir(root):
        return [entry["name"] for entry in fs.ls(root, detail=True)
                if entry["type"] == "file" and not _is_hidden(entry["name"])]  # fmt: skip
    return []


def _is_hidden(path: str) -> bool:
    return path.rstrip("/").rpartition("/")[2][:1] in ("_", ".")


def _neighbours(fs: Any, root: str) -> str:
    folder = root
    while folder and (has_magic(folder) or not fs.isdir(folder)):
        folder = folder.rstrip("/").rpartition("/")[0]
    folder = folder or "/"
    if not fs.isdir(folder):
        return "the folder does not exist"
    names = sorted(path.rstrip("/").rpartition("/")[2] for path in fs.ls(folder, detail=False))
    if not names:
        return f"{folder} is empty"
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{folder} holds {', '.join(names[:_SHOWN])}{more}"
