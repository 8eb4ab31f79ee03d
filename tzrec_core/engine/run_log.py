"""What a run tells: lines or a live bar in the terminal, `metrics.jsonl`, TensorBoard."""

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

METRICS_FILE = "metrics.jsonl"


def json_line(values: dict[str, Any]) -> str:
    """`values` as a line of JSON; NaN and infinity, which JSON does not have, become null."""
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
    return json.dumps(finite) + "\n"


def append_result(model_dir: str | Path, file_name: str, step: int, metrics: dict[str, float]) -> None:
    """Add a line with the metrics of an evaluation at `step` to a file of `model_dir`."""
    with (Path(model_dir) / file_name).open("a", encoding="utf-8") as file:
        file.write(json_line({"global_step": step, **metrics}))


def read_result(model_dir: str | Path, file_name: str, step: int) -> dict[str, float]:
    """The metrics of the last evaluation at `step` that `append_result` wrote; empty when there is none."""
    path = Path(model_dir) / file_name
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    for line in reversed(lines):
        with suppress(ValueError):  # a crash may have cut a line
            result = json.loads(line)
            if result.pop("global_step") == step:
                return {name: math.nan if value is None else value for name, value in result.items()}
    return {}


class RunLog:
    """Writes scalars of a run to `metrics.jsonl` and, if asked, to TensorBoard.

    Each line of the file is `{"split": "train" | "eval", "step": int, "epoch": int, ...scalars}`. Both files go on
    where an earlier run in the same folder stopped.
    """

    def __init__(self, model_dir: str | Path, *, use_tensorboard: bool) -> None:
        folder = Path(model_dir)
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / METRICS_FILE).open("a", encoding="utf-8")
        self._writers: dict[str, Any] = {}
        self._folder = folder if use_tensorboard else None

    def write(self, split: str, step: int, epoch: int, values: dict[str, float]) -> None:
        """Write scalars measured at `step`."""
        self._file.write(json_line({"split": split, "step": step, "epoch": epoch, **values}))
        self._file.flush()
        if self._folder is not None:
            if split not in self._writers:
                from torch.utils.tensorboard import SummaryWriter

                self._writers[split] = SummaryWriter(str(self._folder / "tensorboard" / split))
            for name, value in values.items():
                self._writers[split].add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close the files."""
        self._file.close()
        for writer in self._writers.values():
            writer.close()


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

    def __init__(self, title: str, *, total: int | None, every: int, console: Console | None = None) -> None:
        self._title, self._total, self._every = title, total, max(every, 1)
        self._console = console or Console(stderr=True)
        self._live = self._console.is_terminal
        self._progress = Progress(
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
    def rate(self) -> float:
        """Samples per second since the start."""
        return self.num_rows / max(time.perf_counter() - self._started, 1e-9)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count the time of the block, such as saving and evaluating, as time of the loop; hides the bar."""
        stopped = time.perf_counter()
        if self._live:
            self._progress.stop()
        yield
        if self._live:
            self._progress.start()
        self._started += time.perf_counter() - stopped

    def skip_to(self, step: int) -> None:
        """Start counting at `step`, as a resumed run does."""
        self.first_step = step
        self._progress.update(self._task, completed=step)

    def advance(self, rows: int, values: dict[str, float] | None = None) -> None:
        """Count one step of `rows` rows; `values` are shown when given."""
        self.num_rows += rows
        self.num_steps += 1
        step = self.first_step + self.num_steps
        if values is not None:
            text = "  ".join([f"{self.rate:,.0f} samples/s", *(f"{k} {v:.4g}" for k, v in values.items())])
            self._progress.update(self._task, text=text)
            if not self._live:
                of = f"/{self._total}" if self._total else ""
                left = self._left(step)
                self._console.print(f"{self._title} step {step}{of}  {text}{left}", highlight=False, soft_wrap=True)
        self._progress.update(self._task, completed=step)

    @property
    def is_due(self) -> bool:
        """Whether the coming step is one to show values for."""
        return (self.first_step + self.num_steps + 1) % self._every == 0

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _left(self, step: int) -> str:
        if not self._total or not self.num_steps:
            return ""
        seconds = (time.perf_counter() - self._started) / self.num_steps * (self._total - step)
        return f"  {int(seconds // 60)}:{int(seconds % 60):02d} left"
