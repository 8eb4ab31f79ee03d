"""First parameters from another run's checkpoint: `train_config.fine_tune_checkpoint`."""

import json
import logging
import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.distributed.checkpoint.metadata import Metadata

from tzrec_core.engine.checkpoint import checkpoints, find_checkpoint
from tzrec_core.engine.checkpoint_files import Ranks, read_metadata, read_tensors, tensors_in, write_through
from tzrec_core.engine.shards import local_shards, size_of
from tzrec_core.engine.world import World
from tzrec_core.errors import CheckpointError, ConfigError, did_you_mean

_log = logging.getLogger(__name__)

REPORT_FILE = "warm_start.json"

Status = Literal["loaded", "reshaped", "reset", "missing", "unused"]
_MEANINGS: dict[Status, str] = {
    "loaded": "taken over",
    "reshaped": "a table with more rows now: the old rows are taken over, the new ones have their first values",
    "reset": "of another shape there: has its first values",
    "missing": "not in the checkpoint: has its first values",
    "unused": "only in the checkpoint",
}
_NUM_SHOWN = 12  # tensors of each status that the printed table names

_METRIC = re.compile(r"(^|\.)_(train_)?metric_modules\.")
_TABLE = re.compile(r"\.(embedding_bags|embeddings)\.[^.]+\.weight\Z")
_PREFIX = "model."


@dataclass(frozen=True)
class TensorReport:
    """What became of one tensor.

    Attributes:
        name: in this model; of an unused one, in the checkpoint.
        status: `loaded`, `reshaped`, `reset`, `missing` or `unused`.
        note: the name in the checkpoint, where it is another, and both shapes, where they differ.
    """

    name: str
    status: Status
    note: str = ""


@dataclass(frozen=True)
class WarmStartReport:
    """What became of the tensors of a model and of a checkpoint.

    Attributes:
        checkpoint: the folder they come from.
        tensors: those of the model in its order, then those that only the checkpoint has.
    """

    checkpoint: Path
    tensors: tuple[TensorReport, ...]

    def counts(self) -> dict[Status, int]:
        """Number of tensors by status."""
        found = Counter(tensor.status for tensor in self.tensors)
        return {status: found[status] for status in _MEANINGS}


def warm_start(train_config: Any, module: nn.Module, model_dir: str | Path, world: World) -> WarmStartReport | None:
    """Fill a model with what fits of `train_config.fine_tune_checkpoint`; every rank must call it.

    Parameters and buffers, such as BatchNorm's statistics, are taken over; optimizer states, metrics, step and position
    in the data are not. Rank 0 prints what became of each tensor and writes it to `<model_dir>/warm_start.json`.

    Args:
        train_config: the message TrainConfig.
        module: a TrainWrapper, or a DistributedModelParallel of one, with its first values.
        model_dir: of the run; one that has a checkpoint is gone on from, and the setting has no part in that.
        world: the processes of the run.

    Returns:
        what became of each tensor; None = nothing was to be done.

    Raises:
        ConfigError: fine_tune_ckpt_param_map cannot be read, or names what there is not.
        CheckpointError: there is no such checkpoint, it is damaged, or it has nothing that the model has.
    """
    source, map_file = train_config.fine_tune_checkpoint, train_config.fine_tune_ckpt_param_map
    if not source:
        return None
    if world.from_main(lambda: bool(checkpoints(model_dir))):
        if world.is_main:
            _log.info("fine_tune_checkpoint is not read: %s has a checkpoint to go on from", model_dir)
        return None
    ranks = Ranks.of(world)
    checkpoint = world.from_main(lambda: _find(source))
    metadata = read_metadata(checkpoint, "model", ranks)
    state = {n: t for n, t in module.state_dict().items() if isinstance(t, torch.Tensor) and not _METRIC.search(n)}
    there = {name: size for name, size in tensors_in(metadata).items() if not _METRIC.search(name)}
    renamed = world.from_main(lambda: _read_map(Path(map_file), state, there) if map_file else {})
    report = world.from_main(lambda: _plan(state, there, renamed, checkpoint))
    ranks.run(lambda: _fill(state, report, metadata, renamed))
    world.from_main(lambda: _tell(report, Path(model_dir)))
    return report


def _find(source: str) -> Path:
    if (Path(source) / "model").is_dir():
        return Path(source)
    found = checkpoints(source)
    if not found:
        raise CheckpointError(
            f"train_config.fine_tune_checkpoint = {source!r} is neither a checkpoint (it has no folder 'model') nor a "
            "model_dir that holds one (model.ckpt-<step>)"
        )
    return find_checkpoint(source)


def _read_map(file: Path, here: Collection[str], there: Collection[str]) -> dict[str, str]:
    """The names in the checkpoint by names here, of lines `<name here> <name there>`."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise ConfigError(f"train_config.fine_tune_ckpt_param_map = {str(file)!r} cannot be read: {error}") from None
    names: dict[str, str] = {}
    mistakes = []
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        place = f"{file}:{number}"
        if len(words) != 2:
            mistakes.append(f"{place}: {line.strip()!r} is not of the form `<name here> <name in the checkpoint>`")
            continue
        mine, theirs = (_full_name(word, known) for word, known in zip(words, (here, there)))
        if mine is None:
            mistakes.append(f"{place}: the model has no tensor {words[0]!r}.{_near(words[0], here)}")
        if theirs is None:
            mistakes.append(f"{place}: the checkpoint has no tensor {words[1]!r}.{_near(words[1], there)}")
        if mine in names:
            mistakes.append(f"{place}: {words[0]!r} was given a name before")
        if mine is not None and theirs is not None:
            names[mine] = theirs
    if mistakes:
        raise ConfigError(mistakes, title="train_config.fine_tune_ckpt_param_map")
    return names


def _full_name(name: str, known: Collection[str]) -> str | None:
    """The name as it is known, with or without the `model.` that starts all of a TrainWrapper's."""
    return next((n for n in (name, _PREFIX + name, name.removeprefix(_PREFIX)) if n in known), None)


def _near(name: str, known: Collection[str]) -> str:
    return did_you_mean(name if name.startswith(_PREFIX) else _PREFIX + name, known)


def _plan(
    state: Mapping[str, torch.Tensor], there: Mapping[str, torch.Size], renamed: Mapping[str, str], checkpoint: Path
) -> WarmStartReport:
    """What is to become of each tensor."""
    tensors = []
    for name, tensor in state.items():
        source = renamed.get(name, name)
        label = "" if source == name else f"from {source}"
        before, now = there.get(source), size_of(tensor)
        if before is None:
            tensors.append(TensorReport(name, "missing"))
        elif before == now:
            tensors.append(TensorReport(name, "loaded", label))
        else:
            shapes = f"{_shape(before)} -> {_shape(now)}"
            status: Status = "reshaped" if _is_grown_table(name, before, now) else "reset"
            tensors.append(TensorReport(name, status, " ".join(filter(None, (label, shapes)))))
    if not any(tensor.status in ("loaded", "reshaped") for tensor in tensors):
        raise CheckpointError(
            f"train_config.fine_tune_checkpoint: {checkpoint} has no tensor of this model. It has {_some(there)}; the "
            f"model has {_some(state)}. If only the names differ, set fine_tune_ckpt_param_map"
        )
    used = {renamed.get(name, name) for name in state}
    tensors += [TensorReport(name, "unused") for name in there if name not in used]
    return WarmStartReport(checkpoint, tuple(tensors))


def _is_grown_table(name: str, before: torch.Size, now: torch.Size) -> bool:
    """Only of a table it is plain what goes where: its rows are numbered, and new ones come last."""
    return bool(_TABLE.search(name)) and len(before) == len(now) == 2 and before[1] == now[1] and before[0] < now[0]


def _shape(size: torch.Size) -> str:
    return "x".join(map(str, size)) or "scalar"


def _some(names: Collection[str]) -> str:
    return ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")


def _fill(
    state: Mapping[str, torch.Tensor], report: WarmStartReport, metadata: Metadata, renamed: Mapping[str, str]
) -> None:
    path = report.checkpoint / "model"
    waiting = {t.name: renamed.get(t.name, t.name) for t in report.tensors if t.status == "loaded"}
    while waiting:  # more than once only when a map gives one source to several tensors
        by_source = {source: name for name, source in waiting.items()}
        read_tensors(path, {source: state[name] for source, name in by_source.items()})
        waiting = {name: source for name, source in waiting.items() if by_source[source] != name}
    for tensor in report.tensors:
        if tensor.status == "reshaped":
            source = renamed.get(tensor.name, tensor.name)
            saved = metadata.state_dict_metadata[source]
            whole = torch.empty(saved.size, dtype=saved.properties.dtype)
            read_tensors(path, {source: whole})
            _copy_rows(whole, state[tensor.name])


def _copy_rows(whole: torch.Tensor, target: torch.Tensor) -> None:
    """Copy rows to where they are in `target`, as far as this process holds it; the others stay."""
    with torch.no_grad():
        for (row, column), shard in local_shards(target):
            rows = whole[row : row + shard.size(0), column : column + shard.size(1)]
            shard[: rows.size(0)].copy_(rows)


def _tell(report: WarmStartReport, model_dir: Path) -> None:
    model_dir.mkdir(parents=True, exist_ok=True)
    tensors = [{"name": t.name, "status": t.status, "note": t.note} for t in report.tensors]
    values = {"checkpoint": str(report.checkpoint), "counts": report.counts(), "tensors": tensors}
    write_through(model_dir / REPORT_FILE, json.dumps(values, indent=2) + "\n")
    counts = ", ".join(f"{number} {status}" for status, number in report.counts().items())
    table = Table(title=f"warm start from {report.checkpoint}: {counts}", title_justify="left")
    for column in ("status", "tensor", "note"):
        table.add_column(column, overflow="fold")
    for status, meaning in _MEANINGS.items():
        found = [tensor for tensor in report.tensors if tensor.status == status]
        for tensor in found[:_NUM_SHOWN]:
            table.add_row(status, tensor.name, tensor.note or meaning)
        if len(found) > _NUM_SHOWN:
            table.add_row(status, f"... and {len(found) - _NUM_SHOWN} more", f"see {model_dir / REPORT_FILE}")
    Console(stderr=True).print(table)
    if report.counts()["reshaped"]:
        _log.warning(
            "the rows of reshaped tables keep their numbers: right for ids and for a vocabulary that grew at its end, "
            "wrong for hashed ids (hash_bucket_size), whose rows all changed"
        )
