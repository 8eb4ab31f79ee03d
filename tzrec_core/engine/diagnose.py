"""Where a number that is not finite first appears, and what is kept of such a step for `tzrec replay`."""

import hashlib
import itertools
import json
import pickle
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from torchrec import JaggedTensor, KeyedJaggedTensor, KeyedTensor
from torchrec.distributed.model_parallel import get_unwrapped_module

from tzrec_core.data.batch import Batch
from tzrec_core.data.parser import DataParser
from tzrec_core.engine.checkpoint import CheckpointSaver
from tzrec_core.engine.checkpoint_files import Ranks
from tzrec_core.engine.setup import PIPELINE_CONFIG
from tzrec_core.engine.shards import local_shards
from tzrec_core.engine.world import World
from tzrec_core.errors import CheckpointError, ConfigError, DataError

FAILURE = "failure.json"
# In the order in which a step comes to them: what is wrong earlier is the cause of what is wrong later. A step in train
# mode writes the buffers of BatchNorm, and does not read them.
_KINDS = ("input", "parameter", "output", "buffer", "loss")
_CHUNK = 2**24


@dataclass(frozen=True)
class Finding:
    """A tensor with values that are not finite.

    Attributes:
        kind: "input" = of the batch; "parameter" = of the model; "output" = what a module returned; "buffer" = one that
            checkpoints hold; "loss".
        name: of the feature, label or sample weight; of the parameter or buffer; path of the module; key of the loss.
        shape: of the tensor.
        num_nan: values that are NaN, in this process's part of the tensor.
        num_inf: values that are infinite, likewise.
        order: place among those of its kind, in the order in which a step comes to them.
        row: of the batch, counted from 0, that holds the first such value; None where values have no rows.
    """

    kind: str
    name: str
    shape: tuple[int, ...]
    num_nan: int
    num_inf: int
    order: int
    row: int | None = None

    def __str__(self) -> str:
        counts = [f"{count:,} {what}" for count, what in ((self.num_nan, "NaN"), (self.num_inf, "infinite")) if count]
        row = "" if self.row is None else f", first in row {self.row} of the batch"
        of = "the " if self.kind == "loss" else ""
        kind = {"output": "output of module"}.get(self.kind, self.kind)
        return f"{of}{kind} {self.name or 'the model'} of shape {self.shape} holds {' and '.join(counts)} values{row}"

    @classmethod
    def of_json(cls, value: Mapping[str, Any]) -> Self:
        """The finding that `asdict` made a JSON value of."""
        return cls(**{**value, "shape": tuple(value["shape"])})


def first_bad(model: nn.Module, batch: Batch) -> Finding | None:
    """Look for the first tensor of a step that is not finite; the step is made again, without gradients.

    Looks at the inputs, the parameters, the outputs of the modules in the order in which they end, the buffers, and
    the losses. Buffers, such as BatchNorm's statistics, are as before afterwards. To draw as the step did, call
    `seed_step` before.

    Args:
        model: a TrainWrapper, or the DistributedModelParallel around it; in the mode, train or eval, of the step. If
            sharded, every rank must call this, each with its own batch, as the model exchanges embeddings.
        batch: on the model's device.

    Returns:
        what this rank found; None when all is finite.
    """
    wrapper = get_unwrapped_module(model)
    found = [*_in_inputs(batch), *_in_state(wrapper)]
    outputs: list[Finding] = []
    # also when something is found already: the other ranks may wait for this one's embeddings
    with (
        _watched(wrapper, outputs),
        _buffers_kept(wrapper),
        torch.compiler.set_stance("force_eager"),  # compiled parts would hide their modules
        torch.no_grad(),
    ):
        _, (losses, _, _) = wrapper(batch)
    found += outputs
    found += _findings("loss", losses.items())
    return min(found, key=_place, default=None)


def _place(finding: Finding) -> tuple[int, int]:
    return _KINDS.index(finding.kind), finding.order


def _findings(kind: str, tensors: Iterable[tuple[str, Tensor]]) -> list[Finding]:
    """Those of the tensors that are not finite, in this process's part of them."""
    found = []
    for order, (name, tensor) in enumerate(tensors):
        counts = [_count(shard) for _, shard in local_shards(tensor.detach())]
        num_nan, num_inf = (sum(column) for column in zip(*counts, strict=True)) if counts else (0, 0)
        if num_nan or num_inf:
            found.append(Finding(kind, name, tuple(tensor.size()), num_nan, num_inf, order))
    return found


def _count(tensor: Tensor) -> tuple[int, int]:
    """How many values are NaN, and how many infinite."""
    num_nan = num_inf = 0
    if tensor.is_floating_point():
        for chunk in tensor.reshape(-1).split(_CHUNK):  # a table may fill most of the memory
            if not bool(chunk.isfinite().all()):
                num_nan += int(chunk.isnan().sum())
                num_inf += int(chunk.isinf().sum())
    return num_nan, num_inf


def _in_inputs(batch: Batch) -> list[Finding]:
    flat = batch.to_dict()
    found = []
    for finding in _findings("input", flat.items()):
        bad = ~flat[finding.name].isfinite()
        first = int(bad.reshape(len(bad), -1).any(1).nonzero()[0])
        feature = finding.name.removesuffix(".values").removesuffix(".weights")
        lengths = flat.get(f"{feature}.lengths")
        row = first if lengths is None else int(torch.searchsorted(lengths.cumsum(0), first, right=True))
        found.append(replace(finding, name=finding.name.removesuffix(".values"), row=row))
    return found


def _in_state(wrapper: nn.Module) -> list[Finding]:
    buffers = {name for name, _ in wrapper.named_buffers()}
    found = _findings("parameter", wrapper.state_dict().items())
    return [replace(f, kind="buffer") if f.name in buffers else f for f in found]


@contextmanager
def _watched(wrapper: nn.Module, found: list[Finding]) -> Iterator[None]:
    """Within the block the first module output that is not finite goes to `found`; modules of losses are left out."""
    num_calls = itertools.count()

    def watch(name: str) -> RemovableHandle:
        def look(module: nn.Module, args: Any, output: Any) -> None:
            order = next(num_calls)
            if not found and (bad := _findings("output", ((name, tensor) for tensor in _tensors_of(output)))):
                found.append(replace(bad[0], order=order))

        return modules[name].register_forward_hook(look)

    modules = dict(wrapper.named_modules())
    handles = [watch(name) for name in modules if name and "_loss_modules" not in name.split(".")]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _tensors_of(output: Any) -> Iterator[Tensor]:  # Any: whatever a module returns
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, (KeyedTensor, JaggedTensor, KeyedJaggedTensor)):
        yield output.values()
    elif isinstance(output, Mapping):
        yield from itertools.chain.from_iterable(map(_tensors_of, output.values()))
    elif isinstance(output, (list, tuple)):
        yield from itertools.chain.from_iterable(map(_tensors_of, output))


@contextmanager
def _buffers_kept(wrapper: nn.Module) -> Iterator[None]:
    persistent = wrapper.state_dict()
    buffers = [b for name, b in wrapper.named_buffers() if name in persistent and type(b) is Tensor]
    before = [b.clone() for b in buffers]
    try:
        yield
    finally:
        for buffer, value in zip(buffers, before):
            buffer.copy_(value)


@dataclass(frozen=True)
class Failure:
    """A step that was kept to be run again.

    Attributes:
        folder: `<model_dir>/failed-<step>`, which holds `failure.json`, the batch of each rank as `batch-<rank>.pt`,
            and the model as a checkpoint.
        step: its number, from 1.
        seed: of the run.
        rank: whose batch shows it.
        finding: what was found there.
        config_hash: SHA-256 of the config's text.
    """

    folder: Path
    step: int
    seed: int
    rank: int
    finding: Finding | None
    config_hash: str


def save_failure(
    model_dir: str | Path,
    step: int,
    batch: Batch,
    seed: int,
    finding: Finding | None,
    world: World,
    model: nn.Module,
) -> Failure:
    """Keep all that a step read, for `tzrec replay`; every rank must call it.

    Args:
        model_dir: gets the folder `failed-<step>`; one of an earlier run is replaced.
        step: number of the step, from 1; `seed_step` was given the one before.
        batch: of this rank.
        seed: of the run.
        finding: what `first_bad` found on this rank.
        world: the processes of the run.
        model: the wrapper, or the DistributedModelParallel around it, with the parameters that the step read.

    Returns:
        the failure, with the earliest finding of all ranks.

    Raises:
        CheckpointError: on all ranks, when it cannot be written.
    """
    folder = Path(model_dir) / f"failed-{step}"
    found = [(_place(f), rank, f) for rank, f in enumerate(world.gather(finding)) if f is not None]
    rank, first = min(found)[1:] if found else (0, None)
    flat = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in batch.to_dict().items()}

    def write_batch() -> None:
        try:
            torch.save(flat, folder / f"batch-{world.rank}.pt")
        except (OSError, RuntimeError) as error:
            raise CheckpointError(f"{folder} cannot be written: {error}") from error

    world.from_main(lambda: _make_anew(folder))
    Ranks.of(world).run(write_batch)
    with CheckpointSaver(folder, world) as saver:
        saver.save(model.state_dict(), {}, {"step": step}, wait=True)
    failure = Failure(folder, step, seed, rank, first, world.from_main(lambda: _config_hash_of(model_dir)))
    world.from_main(lambda: _write(failure))
    return failure


def _make_anew(folder: Path) -> None:
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be written: {error}") from error


def _write(failure: Failure) -> None:
    values = {name: value for name, value in asdict(failure).items() if name != "folder"}
    (failure.folder / FAILURE).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _config_hash_of(model_dir: str | Path) -> str:
    file = Path(model_dir) / PIPELINE_CONFIG
    return config_hash(file.read_text(encoding="utf-8")) if file.exists() else ""


def config_hash(text: str) -> str:
    """SHA-256 of a config's text, as `pipeline.config` holds it."""
    return hashlib.sha256(text.encode()).hexdigest()


def find_failure(model_dir: str | Path, folder: str | Path | None = None) -> Failure:
    """What `save_failure` kept.

    Args:
        model_dir: whose latest failure is wanted.
        folder: of another one; None = the latest.

    Raises:
        ConfigError: there is none.
        DataError: it cannot be read.
    """
    if folder is None:
        files = list(Path(model_dir).glob(f"failed-*/{FAILURE}"))
        if not files:
            raise ConfigError(
                f"{model_dir} holds no failed step (failed-<step>); a run that stops at one writes it there"
            )
        file = max(files, key=lambda path: path.stat().st_mtime)
    else:
        file = Path(folder) / FAILURE
        if not file.exists():
            raise ConfigError(f"{folder} holds no failed step: it has no {FAILURE}")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        finding = values.pop("finding")
        return Failure(file.parent, finding=finding and Finding.of_json(finding), **values)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{file} cannot be read: {error}") from error


def read_batch(failure: Failure, parser: DataParser) -> Batch:
    """The batch that shows a failure; raises DataError when it cannot be read."""
    file = failure.folder / f"batch-{failure.rank}.pt"
    try:
        return parser.to_batch(torch.load(file, weights_only=True))
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
        raise DataError(f"{file} cannot be read: {error}") from error
