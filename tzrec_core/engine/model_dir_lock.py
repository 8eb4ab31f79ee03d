"""One training run per model_dir: two would overwrite each other's checkpoints."""

import errno
import fcntl
import json
import logging
import os
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from tzrec_core.errors import ConfigError

_log = logging.getLogger(__name__)

LOCK_FILE = ".lock"
_NOT_SUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)

_held: set[int] = set()


def _let_go_in_child() -> None:
    """A data worker that outlives a killed run must not keep its lock."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go_in_child)


@contextmanager
def model_dir_lock(model_dir: str | Path) -> Iterator[None]:
    """Keep other training runs out of `model_dir` while entered; to be taken by rank 0 of a run.

    The lock is the operating system's (flock on `<model_dir>/.lock`, which says who holds it), so it ends with the
    process, however that ends. On a network file system it reaches other machines only if that system passes locks
    on, as NFS does since Linux 2.6.12 and Lustre with `-o flock`. On one that has no locks at all the run goes on
    without, and says so.

    Raises:
        ConfigError: another run holds the lock, or model_dir cannot be written to.
    """
    folder = Path(model_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK_FILE).open("a+", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"model_dir = {str(model_dir)!r} cannot be written to: {error.strerror}") from None
    with file:
        _take(file, model_dir)
        _held.add(file.fileno())
        try:
            yield
        finally:
            file.truncate(0)
            _held.discard(file.fileno())


def _take(file: IO[str], model_dir: str | Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError(
            f"model_dir = {str(model_dir)!r} is in use by another training run: {_holder(file)}. Wait for it, end it, "
            "or set another model_dir"
        ) from None
    except OSError as error:
        if error.errno not in _NOT_SUPPORTED:
            raise
        _log.warning("the file system of model_dir = %r has no locks: do not train into it twice at once", model_dir)
    holder = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": shlex.join(sys.argv),
    }
    file.truncate(0)
    file.write(json.dumps(holder) + "\n")
    file.flush()


def _holder(file: IO[str]) -> str:
    """Who holds the lock, in words."""
    file.seek(0)
    try:
        holder: dict[str, Any] = json.loads(file.read())
        return f"process {holder['pid']} on {holder['host']}, started {holder['started']}: {holder['command']}"
    except (ValueError, KeyError):
        return "one that is just starting or ending"
