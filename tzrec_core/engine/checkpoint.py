"""Checkpoints: `<model_dir>/model.ckpt-<step>/`, written whole or not at all, loaded without running code.

model/       parameters and buffers   (torch.distributed.checkpoint)
optimizer/   optimizer states         (torch.distributed.checkpoint)
meta.json    step, position in the data, versions of tzrec-core and of the plugins that the config uses, and the
             sha256 of each file above: torch does not notice a flipped bit

`<model_dir>/best.json` says which one had the best evaluation.
"""

import json
import logging
import math
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, StorageMeta
from torch.distributed.checkpoint.planner import WriteItem

from tzrec_core import __version__
from tzrec_core.engine.checkpoint_files import (
    CHECKPOINT_NAME,
    WRITER,
    Ranks,
    is_foreign,
    last_line,
    misfits,
    quiet,
    read_meta,
    read_metadata,
    read_tensors,
    sha256,
    sync_folder,
    tensors_in,
    write_meta,
    write_through,
)
from tzrec_core.engine.shards import local_shards, num_bytes
from tzrec_core.engine.world import World
from tzrec_core.errors import CheckpointError, ConfigError, TzrecError, did_you_mean, nearest

_log = logging.getLogger(__name__)

BEST = "best.json"

_TIMEOUT = timedelta(minutes=30)  # what one rank may write longer than the others
_COPY_SHARE = 0.5  # of the free memory that the copy for a background save may take
_MAX_COPY = 2**29  # bytes of it that may double what is in host memory already

__all__ = [
    "BEST",
    "CheckpointSaver",
    "checkpoints",
    "find_checkpoint",
    "load_model",
    "load_optimizer",
    "read_meta",
]

# Which there are


def checkpoints(model_dir: str | Path) -> list[tuple[int, Path]]:
    """The checkpoints in a model_dir as (step, folder), oldest first."""
    folder = Path(model_dir)
    if not folder.is_dir():
        return []
    found = {int(m[1]): p for p in folder.iterdir() if (m := CHECKPOINT_NAME.match(p.name)) and p.is_dir()}
    for replaced in folder.glob(".model.ckpt-*.replaced"):  # a crash came between two renames
        if m := CHECKPOINT_NAME.match(_name_behind(replaced)):
            found.setdefault(int(m[1]), replaced)
    return sorted(found.items())


def _name_behind(leftover: Path) -> str:
    """`model.ckpt-5` of `.model.ckpt-5.replaced`."""
    return leftover.name[1:].rpartition(".")[0]


def find_checkpoint(model_dir: str | Path, checkpoint: str | Path | None = None) -> Path:
    """The folder of a checkpoint.

    Args:
        model_dir: where to look.
        checkpoint: `latest` or None; `best`, which train_config.best_checkpoint asks to keep; a step number; or a
            folder, which may lie elsewhere.

    Raises:
        CheckpointError: there is none.
    """
    if checkpoint == "best":
        return _best(Path(model_dir))
    if checkpoint is None or checkpoint == "latest" or str(checkpoint).isdigit():
        found = dict(checkpoints(model_dir))
        if not found:
            raise CheckpointError(
                f"{model_dir} holds no checkpoint (model.ckpt-<step>); train first: tzrec train CONFIG"
            )
        step = int(checkpoint) if str(checkpoint).isdigit() else max(found)  # type: ignore[arg-type]
        if step not in found:
            raise CheckpointError(f"{model_dir} holds no checkpoint of step {step}; its steps: {_listed(found)}")
        return found[step]
    path = Path(checkpoint)
    if not (path / "model").is_dir():
        raise CheckpointError(
            f"{path} is not a checkpoint: it has no folder 'model'. Give a folder model.ckpt-<step>, a step number, "
            "latest or best"
        )
    return path


def _best(model_dir: Path) -> Path:
    noted = _read_best(model_dir)
    if not noted:
        raise CheckpointError(
            f"{model_dir} has no best checkpoint: {BEST} is written when train_config.best_checkpoint names a metric "
            "and an evaluation has been made"
        )
    found = dict(checkpoints(model_dir))
    if noted["step"] not in found:
        raise CheckpointError(
            f"{model_dir / BEST} names step {noted['step']}, but its checkpoint is not there; the steps that are: "
            f"{_listed(found)}"
        )
    return found[noted["step"]]


def _read_best(model_dir: Path) -> dict[str, Any]:
    """What `best.json` says: step, metric, value, higher_is_better; empty when there is none."""
    file = model_dir / BEST
    if not file.exists():
        return {}
    try:
        noted = json.loads(file.read_text(encoding="utf-8"))
        return {**noted, "step": int(noted["step"]), "value": float(noted["value"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{file} cannot be read: {error!r}; delete it, and the next evaluation is the best"
        ) from None


def _listed(found: Mapping[int, Path]) -> str:
    return ", ".join(map(str, found)) or "none"


# Saving


class CheckpointSaver:
    """Writes the checkpoints of a run, also while it trains on, and keeps the newest and the best of them.

    Every rank makes one and calls its methods alike. All ranks must see the same `model_dir`. A crash at any moment
    leaves the earlier checkpoints usable; what it leaves half-written, the next save removes.

    Args:
        model_dir: where checkpoints are kept.
        world: the processes of the run.
        keep_max: how many to keep, the newest ones; 0 = all. The best one is kept besides.
        best: the message TrainConfig.best_checkpoint, its direction said; None = none is the best.
    """

    def __init__(self, model_dir: str | Path, world: World, keep_max: int = 0, best: Any = None) -> None:
        self._model_dir, self._world, self._keep_max, self._rule = Path(model_dir), world, keep_max, best
        # of its own, for what a background save exchanges must not mix with what training exchanges
        self._group = dist.new_group(backend="gloo", timeout=_TIMEOUT) if dist.is_initialized() else None
        self._ranks = Ranks(world.rank, world.size, self._gather) if world.size > 1 else Ranks.of(None)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._has_said_memory = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        try:
            self._stop()  # the other ranks may not be on their way out
        except CheckpointError as second:  # must not hide what happened first
            _log.error("%s", second)

    def close(self) -> None:
        """Wait for a save in the background, and make no more; raises as `wait`."""
        self._stop()
        if self._group is not None:
            self._world.barrier()  # a connection that closes early can take the last message with it
            dist.destroy_process_group(self._group)
            self._group = None

    def _stop(self) -> None:
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def wait(self) -> None:
        """Wait until nothing is being written.

        Raises:
            CheckpointError: on all ranks, when the save in the background failed.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            pending.result()
        except TzrecError:
            raise
        except Exception as error:
            raise CheckpointError(f"the last checkpoint was not written: {type(error).__name__}: {error}") from error

    def save(
        self,
        model_state: Mapping[str, Any],
        optimizer_tensors: Mapping[str, Any],
        meta: Mapping[str, Any],
        *,
        wait: bool,
    ) -> Path:
        """Write `model.ckpt-<meta["step"]>`, after the save before it has ended.

        Args:
            model_state: the model's state dict; only its tensors, plain or sharded, are written.
            optimizer_tensors: by name; those of a rank need not be those of the others.
            meta: what `read_meta` returns later, besides versions; JSON values; must hold `step`. Rank 0's counts.
            wait: False copies the tensors to host memory and writes in the background, so that the next step may
                change them. When that would take more than half of the free memory, or hold more than 512 MiB of host
                memory twice, it waits nevertheless.

        Returns:
            the checkpoint's folder, which is there once the save has ended.

        Raises:
            CheckpointError: on all ranks, when this save or the one before it cannot be written.
        """
        self.wait()
        meta = json.loads(json.dumps(meta))
        final = self._model_dir / f"model.ckpt-{meta['step']}"
        parts = {"model": _tensors(model_state), "optimizer": _tensors(optimizer_tensors)}
        if wait or not self._has_memory_for_copy(parts):
            self._write(final, {part: (state, _Planner()) for part, state in parts.items()}, meta)
        else:
            copied = {part: (state, _Planner(_host_copies(state))) for part, state in parts.items()}
            self._pending = self._thread.submit(self._write, final, copied, meta)
        return final

    def update_meta(self, checkpoint: Path, changes: Mapping[str, Any]) -> None:
        """Change what a checkpoint says of itself, such as what an evaluation has brought; waits for the last save.

        Raises:
            CheckpointError: the save in the background failed, or meta.json cannot be written.
        """
        self.wait()
        self._world.from_main(lambda: write_meta(checkpoint, {**read_meta(checkpoint), **changes}))

    def _has_memory_for_copy(self, parts: Mapping[str, Mapping[str, torch.Tensor]]) -> bool:
        tensors = [tensor for state in parts.values() for tensor in state.values()]
        needed, doubled, free = self._world.largest(
            num_bytes(tensors),
            num_bytes(tensor for tensor in tensors if tensor.device.type == "cpu"),
            -psutil.virtual_memory().available / self._world.local_size,
        )
        is_short = needed > -free * _COPY_SHARE or doubled > _MAX_COPY
        if is_short and not self._has_said_memory and self._world.is_main:
            _log.warning(
                "training waits while a checkpoint is written: a copy of it takes %.1f MiB of memory per process, and "
                "may take half of the %.1f MiB that are free, but not more than %.0f MiB beside tensors in host memory",
                needed / 2**20,
                -free / 2**20,
                _MAX_COPY / 2**20,
            )
        self._has_said_memory |= is_short
        return not is_short

    def _write(self, final: Path, parts: "Mapping[str, tuple[dict[str, torch.Tensor], _Planner]]", meta: Any) -> None:
        scratch = final.with_name(f".{final.name}.writing")
        try:
            self._ranks.run(lambda: self._prepare(scratch))
            for part, (state, planner) in parts.items():
                self._write_part(scratch / part, state, planner)
            digests = self._ranks.run(lambda: self._own_digests(scratch))
            files = dict(sorted(item for own in digests for item in own.items()))
            self._ranks.run(lambda: self._finish(scratch, final, meta, files))
        except OSError as error:
            raise CheckpointError(f"{final} cannot be written: {error}") from error

    def _prepare(self, scratch: Path) -> None:
        if not self._world.is_main:
            return
        self._model_dir.mkdir(parents=True, exist_ok=True)
        for leftover in self._model_dir.glob(".model.ckpt-*"):
            original = leftover.with_name(_name_behind(leftover))
            if leftover.suffix == ".replaced" and not original.exists():
                os.replace(leftover, original)
            else:
                shutil.rmtree(leftover)
        scratch.mkdir()

    def _write_part(self, path: Path, state: dict[str, torch.Tensor], planner: "_Planner") -> None:
        try:
            with quiet() if self._group is None else nullcontext():
                dcp.save(
                    state,
                    storage_writer=_Writer(path, per_thread_copy_ahead=0),
                    planner=planner,
                    process_group=self._group,
                    no_dist=self._group is None,
                )
        except dcp.CheckpointException as error:  # raised on all ranks; no Exception
            raise CheckpointError(f"{path} cannot be written: {last_line(error)}") from error

    def _own_digests(self, scratch: Path) -> dict[str, str]:
        """The sha256 of each file that this rank wrote."""
        own = list(scratch.glob(f"*/__{self._world.rank}_*"))
        if self._world.is_main:
            own += scratch.glob("*/.metadata")
        return {str(file.relative_to(scratch)): sha256(file) for file in own}

    def _finish(self, scratch: Path, final: Path, meta: dict[str, Any], files: dict[str, str]) -> None:
        if not self._world.is_main:
            return
        for name in files:
            if not (scratch / name).is_file():
                raise CheckpointError(
                    f"rank 0 does not see {scratch / name}, which another rank wrote: model_dir must be one folder "
                    "that all machines share"
                )
        write_meta(scratch, {**meta, "tzrec-core": __version__, "torch": torch.__version__, "files": files})
        for folder in (scratch / "model", scratch / "optimizer", scratch):
            sync_folder(folder)
        if final.exists():
            os.replace(final, final.with_name(f".{final.name}.replaced"))
        os.replace(scratch, final)
        sync_folder(self._model_dir)
        shutil.rmtree(final.with_name(f".{final.name}.replaced"), ignore_errors=True)
        self._prune()

    def _prune(self) -> None:
        if not self._keep_max:
            return
        best = self._noted().get("step")
        for step, old in checkpoints(self._model_dir)[: -self._keep_max]:
            if step != best:
                gone = old.with_name(f".{old.name}.deleted")  # a crash must not leave half of it under its name
                os.replace(old, gone)
                shutil.rmtree(gone)

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        """Note an evaluation of the checkpoint of `step`: the best one is kept; the first one of equals; NaN never is.

        Waits for the checkpoint. Rank 0's metrics count.

        Raises:
            ConfigError: best_checkpoint.metric is none of the metrics.
            CheckpointError: the save in the background failed.
        """
        if self._rule is None:
            return
        self.wait()
        self._world.from_main(lambda: self._note(step, metrics))

    def _note(self, step: int, metrics: Mapping[str, float]) -> None:
        rule = self._rule
        if rule.metric not in metrics:
            raise ConfigError(
                f"train_config.best_checkpoint.metric = {rule.metric!r} is not a metric of the evaluation; its metrics "
                f"are: {', '.join(metrics) or 'none'}.{did_you_mean(rule.metric, metrics)}"
            )
        value, before = float(metrics[rule.metric]), self._noted()
        if math.isnan(value):
            return
        if before and before["step"] != step:
            is_better = value > before["value"] if rule.higher_is_better else value < before["value"]
            if not is_better:
                return
        noted = {"step": step, "metric": rule.metric, "value": value, "higher_is_better": rule.higher_is_better}
        file = self._model_dir / BEST
        write_through(file.with_suffix(".writing"), json.dumps(noted) + "\n")
        os.replace(file.with_suffix(".writing"), file)
        sync_folder(self._model_dir)
        self._prune()

    def _noted(self) -> dict[str, Any]:
        """The best one so far by the rule of this run; empty when there is none, or it is gone."""
        noted = {} if self._rule is None else _read_best(self._model_dir)
        rule = (noted.get("metric"), noted.get("higher_is_better"))
        if not noted or rule != (self._rule.metric, self._rule.higher_is_better):
            return {}
        return noted if noted["step"] in dict(checkpoints(self._model_dir)) else {}

    def _gather(self, value: Any) -> list[Any]:
        values: list[Any] = [None] * self._world.size
        dist.all_gather_object(values, value, group=self._group)
        return values


def _tensors(state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}


def _host_copies(state: Mapping[str, torch.Tensor]) -> dict[MetadataIndex, torch.Tensor]:
    """Copies in host memory of what this process holds, by DCP's index of each shard."""
    return {
        MetadataIndex(name, offsets): shard.detach().to("cpu", copy=True)
        for name, tensor in state.items()
        for offsets, shard in local_shards(tensor)
    }


class _Planner(dcp.DefaultSavePlanner):
    """Plans by the tensors of the run, but writes their copies, when there are some.

    Hands out each tensor in a storage of its own, without a copy: DCP would clone those that share one, as fused
    tables do, and keep all clones until their file is written.
    """

    def __init__(self, copies: dict[MetadataIndex, torch.Tensor] | None = None) -> None:
        super().__init__()
        self._copies = copies

    def lookup_object(self, index: MetadataIndex) -> Any:
        return super().lookup_object(index) if self._copies is None else self._copies[index]

    def resolve_data(self, write_item: WriteItem) -> Any:
        data = super().resolve_data(write_item)
        return _storage_of_its_own(data.detach()) if isinstance(data, torch.Tensor) else data


def _storage_of_its_own(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor over the same memory, whose storage holds no other one's; itself when that cannot be."""
    if tensor.device.type != "cpu" or not tensor.is_contiguous():
        return tensor
    start = tensor.storage_offset() * tensor.itemsize
    storage = tensor.untyped_storage()[start : start + tensor.nbytes]
    return torch.empty(0, dtype=tensor.dtype).set_(storage, 0, tensor.shape, tensor.stride())


class _Writer(dcp.FileSystemWriter):
    """DCP's writer, without path and random ids in the metadata: equal tensors make equal files."""

    def storage_meta(self) -> StorageMeta:
        return StorageMeta(checkpoint_id=WRITER)


# Loading


def load_model(checkpoint: Path, module: nn.Module, world: World | None = None) -> None:
    """Fill the parameters and buffers of a module, plain or sharded in whatever way, in place.

    Of a foreign checkpoint, buffers that it lacks keep their values, and the log says so.

    Args:
        checkpoint: its folder.
        module: a TrainWrapper or PredictWrapper, or a DistributedModelParallel of one.
        world: the processes that load together, each of which must call this; None = this one alone.

    Raises:
        CheckpointError: on all ranks, when the checkpoint is damaged, or lacks a tensor or has it in another shape.
    """
    ranks = Ranks.of(world)
    state = _tensors(module.state_dict())
    metadata = read_metadata(checkpoint, "model", ranks)

    def load() -> None:
        problems = misfits(state, metadata)
        if is_foreign(checkpoint):
            parameters = {name for name, _ in module.named_parameters()}
            absent = [n for n in problems if n not in parameters and n not in metadata.state_dict_metadata]
            unused = [name for name in tensors_in(metadata) if name not in state]
            _say_foreign(checkpoint / "model", absent, unused, ranks)
            for name in absent:
                del state[name], problems[name]
        _refuse(problems, metadata, checkpoint / "model")
        read_tensors(checkpoint / "model", state)

    ranks.run(load)


def load_optimizer(checkpoint: Path, tensors: Mapping[str, Any], world: World | None = None) -> list[str]:
    """Fill optimizer states, plain or sharded in whatever way, in place.

    A parameter of which a checkpoint holds no state at all is left out: no loss had reached it then. Of a foreign
    checkpoint, each state is left out that it does not hold in the same shape.

    Args:
        checkpoint: its folder.
        tensors: `state.<parameter>.<state>` and others, by name; those of a rank need not be those of the others.
        world: the processes that load together, each of which must call this; None = this one alone.

    Returns:
        the names that were left out, on this rank.

    Raises:
        CheckpointError: on all ranks, when the checkpoint is damaged, or lacks a tensor or has it in another shape.
    """
    ranks = Ranks.of(world)
    state = _tensors(tensors)
    path = checkpoint / "optimizer"
    if not path.is_dir() and is_foreign(checkpoint):
        _say_foreign(path, list(state), [], ranks)
        return list(state)
    metadata = read_metadata(checkpoint, "optimizer", ranks)
    left_out: list[str] = []

    def load() -> None:
        problems = misfits(state, metadata)
        if is_foreign(checkpoint):
            left_out.extend(problems)
            unused = [name for name in tensors_in(metadata) if name not in state]
            _say_foreign(path, left_out, unused, ranks)
        else:
            parameters = {_parameter(name) for name in metadata.state_dict_metadata}
            left_out.extend(n for n in problems if n.startswith("state.") and _parameter(n) not in parameters)
            if left_out and ranks.rank == 0:
                _log.warning(
                    "%s holds no state of %d parameters, such as %s: their states start anew",
                    path,
                    len({_parameter(name) for name in left_out}),
                    _parameter(left_out[0]),
                )
        fitting = {name: tensor for name, tensor in state.items() if name not in left_out}
        _refuse({name: text for name, text in problems.items() if name in fitting}, metadata, path)
        read_tensors(path, fitting)

    ranks.run(load)
    return left_out


def _parameter(name: str) -> str:
    """`state.<parameter>` of `state.<parameter>.<state>`."""
    return name.rpartition(".")[0]


def _refuse(problems: Mapping[str, str], metadata: Metadata, path: Path) -> None:
    if not problems:
        return
    texts = []
    for name, text in list(problems.items())[:5]:
        near = None if name in metadata.state_dict_metadata else nearest(name, metadata.state_dict_metadata)
        texts.append(text + (f" (nearest: {near})" if near else ""))
    more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
    raise CheckpointError(f"{path} does not fit the config: {'; '.join(texts)}{more}")


def _say_foreign(path: Path, absent: list[str], unused: list[str], ranks: Ranks) -> None:
    """Say what a checkpoint of another program and the model do not have in common."""
    if ranks.rank:
        return
    for names, fate in ((absent, "are not in it and keep their values"), (unused, "of it are not used")):
        if names:
            more = ", ..." if len(names) > 3 else ""
            _log.warning("%s: %d tensors %s: %s%s", path, len(names), fate, ", ".join(names[:3]), more)
