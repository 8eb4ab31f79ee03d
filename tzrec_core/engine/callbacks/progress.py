"""How a loop goes, in the terminal: a live bar, or lines where there is no terminal."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from tzrec_core.engine.callbacks.callback import Callback, Run, StepOutput
from tzrec_core.engine.callbacks.step_timer import MEASURES


class Meter:
    """Shows how a loop goes: a live bar in a terminal, otherwise a line every `every` steps.

    Args:
        title: what is going on, such as `train`.
        total: number of steps, None = unknown.
        every: steps between lines.
        console: where to show it; None = standard error.

    Attributes:
        num_rows: rows counted so far.
        num_steps: steps counted so far.
        first_step: steps of earlier runs, which lines and bar count as well.
    """

    def __init__(self, title: str, *, total: int | None, every: int = 1, console: Console | None = None) -> None:
        self._title, self._total, self._every = title, total, max(every, 1)
        self._console = console or Console(stderr=True)
        self._live = self._console.is_terminal
        self._progress = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )
        self._task = self._progress.add_task(title, total=total, text="")
        self._started = time.perf_counter()
        self.num_rows = 0
        self.num_steps = 0
        self.first_step = 0

    def __enter__(self) -> Self:
        if self._live:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._progress.stop()

    @property
    def is_live(self) -> bool:
        """Whether there is a terminal, and so a bar."""
        return self._live

    @property
    def rate(self) -> float:
        """Samples per second since the start."""
        return self.num_rows / max(time.perf_counter() - self._started, 1e-9)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count the time of the block, such as saving and evaluating, as time of the loop; hides the bar."""
        stopped = time.perf_counter()
        if self._live:
            self._progress.stop()
        try:
            yield
        finally:
            if self._live:
                self._progress.start()
            self._started += time.perf_counter() - stopped

    def skip_to(self, step: int) -> None:
        """Start counting at `step`, as a resumed run does."""
        self.first_step = step
        self._progress.update(self._task, completed=step)

    def advance(self, rows: int = 0, values: dict[str, float] | None = None) -> None:
        """Count one step of `rows` rows; `values`, and the rate, are shown when given."""
        self.num_rows += rows
        self.num_steps += 1
        if values is not None:
            self.show([f"{self.rate:,.0f} samples/s", *_shown(values)])
        if self._live:
            self._progress.update(self._task, completed=self._step)

    def show(self, parts: Sequence[str]) -> None:
        """Show the parts of a text beside the bar, or as a line."""
        text = "  ".join(parts)
        if self._live:
            self._progress.update(self._task, text=text)
            return
        of = f"/{self._total}" if self._total else ""
        line = f"{self._title} step {self._step}{of}  {text}{self._left()}"
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    @property
    def is_due(self) -> bool:
        """Whether the coming step is one to show values for."""
        return (self._step + 1) % self._every == 0

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    @property
    def _step(self) -> int:
        return self.first_step + self.num_steps

    def _left(self) -> str:
        if not self._total or not self.num_steps:
            return ""
        seconds = (time.perf_counter() - self._started) / self.num_steps * max(self._total - self._step, 0)
        return f"  {int(seconds // 60)}:{int(seconds % 60):02d} left"


class Progress(Callback):
    """The bar or the lines of a training run, on rank 0.

    Args:
        console: where to show it; None = standard error.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console
        self._meter: Meter | None = None

    def on_train_start(self, run: Run) -> None:
        """Start the bar."""
        if run.is_main:
            self._meter = Meter("train", total=run.num_steps, console=self._console).__enter__()
            self._meter.skip_to(run.step)
            run.printer = self._meter.say

    def on_step_end(self, run: Run, step_output: StepOutput) -> None:
        """Move the bar."""
        if self._meter is not None:
            self._meter.advance()

    def on_log(self, run: Run, values: dict[str, float]) -> None:
        """Show what was measured."""
        if self._meter is None:
            return
        parts = [f"{values['samples_per_second']:,.0f} samples/s"] if "samples_per_second" in values else []
        parts += _shown({name: value for name, value in values.items() if name not in MEASURES})
        parts += _learning_rates(run.optimizer.learning_rates())
        if not self._meter.is_live:  # beside a bar there is no room for all
            parts += _shares_and_memory(values)
        self._meter.show(parts)

    def on_evaluate(self, run: Run, metrics: dict[str, float]) -> None:
        """A line with all metrics."""
        run.say("  ".join([f"eval step {run.step}", *(f"{name} {value:.6f}" for name, value in metrics.items())]))

    def on_train_end(self, run: Run) -> None:
        """Take the bar away."""
        self._close()

    def on_error(self, run: Run, error: BaseException) -> None:
        """Take the bar away."""
        self._close()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """See `Meter.paused`."""
        if self._meter is None:
            yield
        else:
            with self._meter.paused():
                yield

    def _close(self) -> None:
        if self._meter is not None:
            self._meter.__exit__(None, None, None)


def _shown(values: dict[str, float]) -> list[str]:
    return [f"{name} {value:.4g}" for name, value in values.items()]


def _learning_rates(rates: dict[str, float]) -> list[str]:
    if len(set(rates.values())) <= 1:
        return [f"lr {rate:.4g}" for rate in list(rates.values())[:1]]
    return [f"lr {' '.join(_shown(rates))}"]


def _shares_and_memory(values: dict[str, float]) -> list[str]:
    parts = []
    for name in ("data_wait", "device_wait"):
        if values.get(name):
            parts.append(f"{name.replace('_', ' ')} {values[name]:.0%}")
    if "memory_mib" in values:
        parts.append(f"{values['memory_mib']:,.0f} MiB")
    if "device_memory_mib" in values:
        parts.append(f"{values['device_memory_mib']:,.0f} MiB on device")
    return parts
