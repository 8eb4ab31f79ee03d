"""How fast a training loop is, what it waits for, and how much memory it holds."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import psutil
import torch

from tzrec_core.data.batch import Batch
from tzrec_core.engine.world import World

MEASURES = ("samples_per_second", "data_wait", "device_wait", "memory_mib", "device_memory_mib")
_MIB = 2**20


class StepTimer:
    """Measures the steps of a training loop, in windows from one log step to the next.

    Args:
        world: whose processes are measured together.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._process = psutil.Process()
        self._on_cuda = world.device.type == "cuda"
        self._started: float | None = None  # of the window
        self._rows = 0
        self._data_s = self._device_s = 0.0
        self._closed_rows = 0
        self._closed_s = 0.0

    def batches(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The same batches; the time that the loop waits for each is counted. The first one starts the clock."""
        iterator = iter(batches)
        while True:
            asked = time.perf_counter()
            if self._started is None:
                self._started = asked
            try:
                batch = next(iterator)
            except StopIteration:
                return
            finally:
                self._data_s += time.perf_counter() - asked
            yield batch

    def step(self, num_rows: int) -> None:
        """Count a step on so many rows of this process."""
        self._rows += num_rows

    def values(self) -> dict[str, float]:
        """What the window measured, and start a new one; every rank must call it, and gets the same.

        Returns:
            samples_per_second: of all ranks together.
            data_wait: share, 0 to 1, of the time in which the loop waited for its next batch; mean over ranks.
            device_wait: share in which it waited, at the end of the window, for the GPU to be done with what it was
                told; 0 on CPUs. Mean over ranks.
            memory_mib: resident memory of the process, without those of data workers; the largest of the ranks.
            device_memory_mib: most memory that tensors took on the GPU so far; the largest of the ranks. On CUDA only.
        """
        self._wait_for_device()
        seconds = self._window_s()
        device_memory = torch.cuda.max_memory_allocated(self._world.device) if self._on_cuda else 0
        mine = (self._rows, seconds, self._data_s, self._device_s, self._process.memory_info().rss, device_memory)
        self._closed_rows += self._rows
        self._closed_s += seconds
        self._rows, self._data_s, self._device_s = 0, 0.0, 0.0
        rows, times, data, device, memory, device_memories = zip(*self._world.gather(mine))
        values = {
            "samples_per_second": sum(rows) / max(times),
            "data_wait": _mean_share(data, times),
            "device_wait": _mean_share(device, times),
            "memory_mib": max(memory) / _MIB,
        }
        if self._on_cuda:
            values["device_memory_mib"] = max(device_memories) / _MIB
        self._started = time.perf_counter()
        return values

    def overall(self) -> float:
        """Samples per second of all ranks since the start, without pauses; every rank must call it."""
        self._wait_for_device()
        mine = (self._closed_rows + self._rows, self._closed_s + self._window_s())
        rows, times = zip(*self._world.gather(mine))
        return float(sum(rows) / max(times))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count the time of the block, such as saving and evaluating."""
        self._wait_for_device()
        stopped = time.perf_counter()
        try:
            yield
        finally:
            if self._started is not None:
                self._started += time.perf_counter() - stopped

    def _window_s(self) -> float:
        return 1e-9 if self._started is None else max(time.perf_counter() - self._started, 1e-9)

    def _wait_for_device(self) -> None:
        if self._on_cuda:
            before = time.perf_counter()
            torch.cuda.synchronize(self._world.device)
            self._device_s += time.perf_counter() - before


def _mean_share(parts: tuple[float, ...], wholes: tuple[float, ...]) -> float:
    return sum(part / whole for part, whole in zip(parts, wholes)) / len(wholes)
