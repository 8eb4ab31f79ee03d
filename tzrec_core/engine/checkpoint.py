"""Checkpoints: `<model_dir>/model.ckpt-<step>/`, written whole or not at all, loaded without running code.

model/       parameters and buffers   (torch.distributed.checkpoint)
optimizer/   optimizer states         (torch.distributed.checkpoint)
meta.json    step, position in the data, versions of tzrec-core and of the plugins that the config uses, and the
             sha256 of each file above: torch does not notice a flipped bit
"""

import hashlib
import io
import json
import os
import pickle
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from enum import EnumMeta
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata

from tzrec_core import __version__
from tzrec_core.errors import CheckpointError, nearest

_NAME = re.compile(r"model\.ckpt-(\d+)\Z")
_GO_BACK = "name another checkpoint, or delete this one to go on from the one before it"


def checkpoints(model_dir: str | Path) -> list[tuple[int, Path]]:
    """The checkpoints in a model_dir as (step, folder), oldest first."""
    folder = Path(model_dir)
    if not folder.is_dir():
        return []
    found = [(int(m[1]), p) for p in folder.iterdir() if (m := _NAME.match(p.name)) and p.is_dir()]
    return sorted(found)


def find_checkpoint(model_dir: str | Path, checkpoint: str | Path | None = None) -> Path:
    """The folder of `checkpoint`, or of the latest one in `model_dir`.

    Raises:
        CheckpointError: there is none.
    """
    if checkpoint is not None:
        path = Path(checkpoint)
        if not (path / "model").is_dir():
            raise CheckpointError(f"{path} is not a checkpoint: it has no folder 'model'")
        return path
    found = checkpoints(model_dir)
    if not found:
        raise CheckpointError(f"{model_dir} holds no checkpoint (model.ckpt-<step>); train first: tzrec train CONFIG")
    return found[-1][1]


def save_checkpoint(
    model_dir: str | Path,
    model: torch.nn.Module,
    optimizers: dict[str, torch.optim.Optimizer],
    meta: dict[str, Any],
    *,
    keep_max: int = 0,
) -> Path:
    """Write `model.ckpt-<meta["step"]>`; a crash on the way leaves the earlier ones as they are.

    Args:
        model_dir: where checkpoints are kept.
        model: the TrainWrapper.
        optimizers: by part.
        meta: what `read_meta` returns later; must hold `step`.
        keep_max: how many checkpoints to keep, the newest ones; 0 = all.

    Returns:
        the checkpoint's folder.
    """
    final = Path(model_dir) / f"model.ckpt-{meta['step']}"
    for leftover in Path(model_dir).glob(".model.ckpt-*"):
        shutil.rmtree(leftover)
    scratch = final.with_name(f".{final.name}.writing")
    scratch.mkdir(parents=True)
    _save(model.state_dict(), scratch / "model")
    _save(_optimizer_tensors(model, optimizers), scratch / "optimizer")
    files = {str(p.relative_to(scratch)): _sha256(p) for p in sorted(scratch.rglob("*")) if p.is_file()}
    text = json.dumps({**meta, "tzrec-core": __version__, "torch": torch.__version__, "files": files}, indent=2)
    (scratch / "meta.json").write_text(text + "\n", encoding="utf-8")
    if final.exists():
        os.replace(final, final.with_name(f".{final.name}.replaced"))
    os.replace(scratch, final)
    shutil.rmtree(final.with_name(f".{final.name}.replaced"), ignore_errors=True)
    if keep_max:
        for _, old in checkpoints(model_dir)[:-keep_max]:
            shutil.rmtree(old)
    return final


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_meta(checkpoint: Path) -> dict[str, Any]:
    """What `save_checkpoint` was given; raises CheckpointError when it cannot be read."""
    try:
        meta = json.loads((checkpoint / "meta.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{checkpoint / 'meta.json'} cannot be read: {error}") from None
    if not isinstance(meta, dict) or not isinstance(meta.get("step"), int):
        raise CheckpointError(f"{checkpoint / 'meta.json'} cannot be read: it has no step")
    return meta


def load_model(checkpoint: Path, model: torch.nn.Module) -> None:
    """Fill a TrainWrapper's or PredictWrapper's parameters and buffers, in place.

    Raises:
        CheckpointError: the checkpoint is damaged, or lacks a tensor or has it in another shape.
    """
    state = dict(model.state_dict())
    if state:
        _load(state, checkpoint / "model", _read_metadata(checkpoint, "model"))


def load_optimizers(checkpoint: Path, model: torch.nn.Module, optimizers: dict[str, torch.optim.Optimizer]) -> None:
    """Fill the optimizers' states, in place; raises CheckpointError as `load_model`."""
    for optimizer in optimizers.values():
        _init_state(optimizer)
    state = _optimizer_tensors(model, optimizers)
    if state:
        metadata = _read_metadata(checkpoint, "optimizer")
        _load(_drop_states_never_made(state, metadata, model, optimizers), checkpoint / "optimizer", metadata)


def _drop_states_never_made(
    state: dict[str, torch.Tensor],
    metadata: Metadata,
    model: torch.nn.Module,
    optimizers: dict[str, torch.optim.Optimizer],
) -> dict[str, torch.Tensor]:
    """Leave out parameters that no loss had reached when the checkpoint was written: torch makes states late."""
    known = {name.rpartition(".")[0] for name in metadata.state_dict_metadata}
    for name, parameter in model.named_parameters():
        for part, optimizer in optimizers.items():
            if parameter in optimizer.state and f"{part}.{name}" not in known:
                del optimizer.state[parameter]
    return {key: value for key, value in state.items() if key.rpartition(".")[0] in known}


def _optimizer_tensors(model: torch.nn.Module, optimizers: dict[str, torch.optim.Optimizer]) -> dict[str, torch.Tensor]:
    """States by parameter name: `<part>.<parameter>.<state>`."""
    names = {id(p): name for name, p in model.named_parameters()}
    tensors = {}
    for part, optimizer in optimizers.items():
        for parameter, states in optimizer.state.items():
            for key, value in states.items():
                if isinstance(value, torch.Tensor):
                    tensors[f"{part}.{names[id(parameter)]}.{key}"] = value
    return tensors


def _init_state(optimizer: torch.optim.Optimizer) -> None:
    """Make torch's lazily created states exist, by a step with zero gradients that leaves the parameters."""
    if optimizer.state:
        return
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    before = [(p, p.detach().clone()) for p in parameters]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    with torch.no_grad():
        for parameter, value in before:
            parameter.copy_(value)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without DCP's note that there is no process group: one process needs none."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _save(state: dict[str, Any], path: Path) -> None:
    tensors = {k: v for k, v in state.items() if isinstance(v, torch.Tensor)}
    if tensors:
        try:
            with _quiet():
                dcp.save(tensors, storage_writer=dcp.FileSystemWriter(path), no_dist=True)
        except dcp.CheckpointException as error:
            raise CheckpointError(f"{path} cannot be written: {_last_line(error)}") from error


def _load(state: dict[str, torch.Tensor], path: Path, metadata: Metadata) -> None:
    if not state:
        return
    known = metadata.state_dict_metadata
    problems = []
    for name, tensor in state.items():
        saved = known.get(name)
        if saved is None:
            near = nearest(name, known)
            problems.append(f"it has no {name}" + (f" (nearest: {near})" if near else ""))
        elif not isinstance(saved, TensorStorageMetadata):
            problems.append(f"{name} is not a tensor")
        elif saved.size != tensor.size():
            problems.append(f"{name} is {tuple(saved.size)} there and {tuple(tensor.size())} in this config")
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise CheckpointError(f"{path} does not fit the config: {'; '.join(problems[:5])}{more}")
    try:
        with _quiet():
            dcp.load(state, storage_reader=_SafeReader(path), no_dist=True)
    except (Exception, dcp.CheckpointException) as error:  # the latter is no Exception
        raise CheckpointError(f"{path} cannot be read, it may be damaged: {_last_line(error)}") from error


def _last_line(error: BaseException) -> str:
    """What went wrong, out of a message that holds the traceback of its cause."""
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


def _read_metadata(checkpoint: Path, part: str) -> Metadata:
    """DCP's list of what `part` holds, after a look at the files' checksums."""
    if (checkpoint / "meta.json").exists():
        for name, digest in read_meta(checkpoint).get("files", {}).items():
            file = checkpoint / name
            if name.startswith(f"{part}/") and not file.is_file():
                raise CheckpointError(f"{file} is missing; {_GO_BACK}")
            if name.startswith(f"{part}/") and _sha256(file) != digest:
                raise CheckpointError(f"{file} is damaged: its sha256 is not that in meta.json; {_GO_BACK}")
    return _SafeReader(checkpoint / part).read_metadata()


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


class _SafeReader(dcp.FileSystemReader):
    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
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
