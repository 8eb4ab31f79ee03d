"""What lies in a checkpoint's folder: checked by checksums, read without running code."""

import hashlib
import io
import json
import os
import pickle
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import EnumMeta
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata

from tzrec_core.engine.shards import size_of
from tzrec_core.engine.world import World
from tzrec_core.errors import CheckpointError, TzrecError

T = TypeVar("T")

CHECKPOINT_NAME = re.compile(r"model\.ckpt-(\d+)\Z")
META = "meta.json"
WRITER = "tzrec-core"  # stands in the DCP metadata of what we wrote
GO_BACK = "name another checkpoint, or delete this one to go on from the one before it"


@dataclass(frozen=True)
class Ranks:
    """The processes that read or write a checkpoint together.

    Attributes:
        rank: of this process.
        size: number of processes.
        gather: takes this rank's value and returns those of all ranks, by rank.
    """

    rank: int
    size: int
    gather: Callable[[Any], list[Any]]  # Any: whatever can be pickled

    @classmethod
    def of(cls, world: World | None) -> Self:
        """Those of a world; None = this process alone."""
        return cls(0, 1, lambda value: [value]) if world is None else cls(world.rank, world.size, world.gather)

    def run(self, step: Callable[[], T]) -> list[T]:
        """What `step` returns on each rank, by rank; when it fails on one, all raise."""
        value, failure = None, None
        try:
            value = step()
        except Exception as error:
            failure = error
        told = failure
        if failure is not None and not isinstance(failure, TzrecError):
            told = CheckpointError(f"rank {self.rank} failed: {type(failure).__name__}: {failure}")
        outcomes = self.gather((value, told))
        if self.size > 1 and isinstance(failure, TzrecError):
            failure.is_shared = True
        if failure is not None:
            raise failure
        for _, error in outcomes:
            if error is not None:
                error.is_shared = True
                raise error
        return [value for value, _ in outcomes]


# meta.json


def write_meta(checkpoint: Path, meta: Mapping[str, Any]) -> None:
    """Write `meta.json`, whole or not at all, with a checksum of what it says, and wait until the disk has it."""
    # as JSON has it, of which the checksum is: keys that are numbers become texts
    said = json.loads(json.dumps({name: value for name, value in meta.items() if name != "checksum"}))
    scratch = checkpoint / f".{META}.writing"
    write_through(scratch, json.dumps({**said, "checksum": _checksum(said)}, indent=2) + "\n")
    os.replace(scratch, checkpoint / META)
    sync_folder(checkpoint)


def read_meta(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint says of itself: `step`, and all else that was given when it was written.

    Of a checkpoint by TorchEasyRec, which has no `meta.json`, only the step is known, by the folder's name.

    Raises:
        CheckpointError: meta.json cannot be read, was changed, or is missing where we wrote one.
    """
    file = checkpoint / META
    if is_foreign(checkpoint):
        return {"step": _step_by_name(checkpoint)}
    try:
        meta = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}; {GO_BACK}") from None
    if not isinstance(meta, dict) or not isinstance(meta.get("step"), int):
        raise CheckpointError(f"{file} cannot be read: it has no step; {GO_BACK}")
    if meta.pop("checksum", None) != _checksum(meta):
        raise CheckpointError(f"{file} is damaged: its checksum is not that of what it says; {GO_BACK}")
    return meta


def is_foreign(checkpoint: Path) -> bool:
    """Whether another program, such as TorchEasyRec, wrote a checkpoint: it has no `meta.json`.

    Raises:
        CheckpointError: it has none, but we wrote it.
    """
    if (checkpoint / META).exists():
        return False
    storage = SafeReader(checkpoint / "model").read_metadata().storage_meta
    if storage is not None and storage.checkpoint_id == WRITER:
        raise CheckpointError(f"{checkpoint / META} is missing; {GO_BACK}")
    return True


def _step_by_name(checkpoint: Path) -> int:
    match = CHECKPOINT_NAME.match(checkpoint.name)
    return int(match[1]) if match else 0


def _checksum(meta: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def write_through(file: Path, text: str) -> None:
    """Write a text file and wait until the disk has it."""
    with file.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the disk has the names of what lies in a folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# Tensors


def sha256(file: Path) -> str:
    """The checksum of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_metadata(checkpoint: Path, part: str, ranks: Ranks) -> Metadata:
    """DCP's list of what `part` holds, after a look at the checksums: each file is read by one of the ranks.

    A foreign checkpoint has no checksums.

    Raises:
        CheckpointError: on all ranks, when a file is missing, damaged, or no metadata of a checkpoint.
    """

    metadata = []

    def verify_and_read() -> None:
        files = {} if is_foreign(checkpoint) else read_meta(checkpoint).get("files", {})
        mine = sorted(name for name in files if name.startswith(f"{part}/"))[ranks.rank :: ranks.size]
        for name in mine:
            file = checkpoint / name
            if not file.is_file():
                raise CheckpointError(f"{file} is missing; {GO_BACK}")
            if sha256(file) != files[name]:
                raise CheckpointError(f"{file} is damaged: its sha256 is not that in {META}; {GO_BACK}")
        metadata.append(SafeReader(checkpoint / part).read_metadata())

    ranks.run(verify_and_read)
    return metadata[0]


def tensors_in(metadata: Metadata) -> dict[str, torch.Size]:
    """The tensors that a part of a checkpoint holds, with their sizes."""
    found = metadata.state_dict_metadata.items()
    return {name: saved.size for name, saved in found if isinstance(saved, TensorStorageMetadata)}


def misfits(state: Mapping[str, torch.Tensor], metadata: Metadata) -> dict[str, str]:
    """Why tensors cannot be read from a checkpoint with that metadata, by name; empty when all can."""
    known = metadata.state_dict_metadata
    problems = {}
    for name, tensor in state.items():
        saved = known.get(name)
        if saved is None:
            problems[name] = f"it has no {name}"
        elif not isinstance(saved, TensorStorageMetadata):
            problems[name] = f"{name} is not a tensor"
        elif saved.size != size_of(tensor):
            problems[name] = f"{name} is {tuple(saved.size)} there and {tuple(size_of(tensor))} in this config"
    return problems


def read_tensors(path: Path, state: dict[str, torch.Tensor]) -> None:
    """Fill tensors, plain or sharded, from a part of a checkpoint that has them; no other rank is waited for.

    Raises:
        CheckpointError: a file cannot be read.
    """
    if not state:
        return
    planner = dcp.DefaultLoadPlanner(flatten_state_dict=False)  # flattening alters a global, and a save may be on
    try:
        with quiet():
            dcp.load(dict(state), storage_reader=SafeReader(path), planner=planner, no_dist=True)
    except (Exception, dcp.CheckpointException) as error:  # the latter is no Exception
        raise CheckpointError(f"{path} cannot be read, it may be damaged: {last_line(error)}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Without DCP's note that it asks no other process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def last_line(error: BaseException) -> str:
    """What went wrong, out of a message that holds the traceback of its cause."""
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


# Metadata, which is a pickle


_DATA_CLASSES = {
    "torch.distributed.checkpoint.metadata": (
        "Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata", "TensorProperties",
        "MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING",
    ),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
    "torch.serialization": ("_get_layout",),
    "torch": ("Size",),
    "pathlib": ("PosixPath",),
    "pathlib._local": ("PosixPath",),
}  # fmt: skip


class _SafeUnpickler(pickle.Unpickler):
    """Reads DCP's metadata file, which is a pickle, without letting it name anything but DCP's own data classes.

    Exact names only: a dotted one, such as `torch.utils...subprocess.Popen`, reaches everything that is imported.
    """

    def find_class(self, module: str, name: str) -> Any:
        if name in _DATA_CLASSES.get(module, ()):
            return super().find_class("pathlib" if module.startswith("pathlib") else module, name)
        if (module, name) == ("builtins", "getattr"):  # how some Pythons pickle a member of an Enum
            return _enum_member
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}, which checkpoint metadata never does")


def _enum_member(owner: Any, name: str) -> Any:
    if isinstance(owner, EnumMeta):
        return owner[name]
    raise pickle.UnpicklingError(f"it asks for attribute {name!r}, which checkpoint metadata never does")


class SafeReader(dcp.FileSystemReader):
    """DCP's reader, with a metadata file that cannot run code."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The list of what there is; raises CheckpointError when there is none."""
        path = Path(self.path) / ".metadata"
        try:
            metadata = _SafeUnpickler(io.BytesIO(path.read_bytes())).load()
        except FileNotFoundError:
            raise CheckpointError(f"{path} is missing: the checkpoint was not written to its end") from None
        except Exception as error:  # a damaged pickle can raise anything
            raise CheckpointError(f"{path} cannot be read: {error}") from error
        if not isinstance(metadata, Metadata):
            raise CheckpointError(f"{path} holds no checkpoint metadata")
        if metadata.storage_meta is None:
            metadata.storage_meta = StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata
