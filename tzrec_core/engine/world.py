"""The processes of a run: one, or as many as `torchrun` or `tzrec ... --nproc N` started."""

import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from tzrec_core.errors import ConfigError

T = TypeVar("T")

_TIMEOUT = timedelta(minutes=30)  # what one rank may take longer than the others, such as listing files


@dataclass(frozen=True)
class World:
    """Where this process stands among those of the run.

    Attributes:
        rank: of this process, 0 to `size` - 1.
        size: number of processes.
        local_rank: rank among the processes of this machine.
        local_size: processes of this machine.
        device: where this process computes: the GPU of its local rank, or the CPU.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is the process that prints and writes for all."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:  # Any: whatever can be pickled
        """The values of all ranks, by rank; every rank must call it."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=_cpu_group())
        return values

    def from_main(self, make: Callable[[], T]) -> T:
        """What `make` returns on rank 0, on every rank; an error there is raised everywhere."""
        if self.size == 1:
            return make()
        box: list[Any] = [None, None]
        if self.is_main:
            try:
                box[0] = make()
            except Exception as error:  # the other ranks would wait for ever
                box[1] = _portable(error)
        dist.broadcast_object_list(box, src=0, group=_cpu_group())
        if box[1] is not None:
            box[1].is_shared = True  # rank 0 tells it to people
            raise box[1]
        return box[0]  # type: ignore[no-any-return]

    def largest(self, *values: float) -> list[float]:
        """The largest of all ranks, value by value; every rank must call it."""
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, dist.ReduceOp.MAX, group=_cpu_group())
        return tensor.tolist()

    def mean(self, *values: float) -> list[float]:
        """The mean over all ranks, value by value; every rank must call it."""
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, group=_cpu_group())
        return (tensor / self.size).tolist()

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.size > 1:
            dist.barrier(group=_cpu_group())


def _portable(error: Exception) -> Exception:
    """The error, or one with its text when it cannot travel between processes."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        kind = next(c for c in type(error).__mro__ if c.__module__ in ("tzrec_core.errors", "builtins"))
        return kind(str(error))
    return error


_groups: dict[str, Any] = {}  # Any: a process group has no public type


def _cpu_group() -> Any:
    """The group for values in host memory: the default one on CPUs, a gloo group of its own beside NCCL."""
    if dist.get_backend() == "gloo":
        return dist.group.WORLD
    if "cpu" not in _groups:
        _groups["cpu"] = dist.new_group(backend="gloo", timeout=_TIMEOUT)
    return _groups["cpu"]


def join_world() -> World:
    """Join the processes of the run, as torchrun's environment describes them; without it, be the only one.

    May be called again: the process group is made once.

    Raises:
        ConfigError: the machine has fewer GPUs than processes.
    """
    env = {name: int(os.environ.get(name, default)) for name, default in _ALONE.items()}
    if torch.cuda.is_available():
        if env["LOCAL_RANK"] >= torch.cuda.device_count():
            raise ConfigError(
                f"process {env['LOCAL_RANK'] + 1} of this machine has no GPU to itself: there are "
                f"{torch.cuda.device_count()}. Start that many processes or fewer (--nproc)"
            )
        device = torch.device("cuda", env["LOCAL_RANK"])
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        if env["WORLD_SIZE"] == 1:
            # without a port: two runs on one machine must not meet
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=_TIMEOUT)
        else:
            dist.init_process_group(backend, timeout=_TIMEOUT)
    return World(dist.get_rank(), dist.get_world_size(), env["LOCAL_RANK"], env["LOCAL_WORLD_SIZE"], device)


def leave_world() -> None:
    """Take the process group down, as torch wants before a process ends; a later `join_world` makes a new one."""
    _groups.clear()
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def in_world() -> Iterator[World]:
    """`join_world`; a world of this process alone is left at the end of the block, unless somebody had joined before.

    Several processes stay together until they end: their store does not let them meet a second time.
    """
    was_joined = dist.is_initialized()
    world = join_world()
    try:
        yield world
    finally:
        if world.size == 1 and not was_joined:
            leave_world()


_ALONE = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}
