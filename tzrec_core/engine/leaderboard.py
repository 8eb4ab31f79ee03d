"""What a comparison of models found: a table, as Markdown, JSON and a plot."""

import importlib.util
import json
import logging
import math
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from tzrec_core.engine.directions import direction_of

_log = logging.getLogger(__name__)

_MAX_PANELS = 3


@dataclass(frozen=True)
class RunResult:
    """A training run that came to its end.

    Attributes:
        seed: of the run.
        model_dir: where everything of it is.
        metrics: of the last evaluation, value by name.
        samples_per_second: of the training loop.
        seconds: of the whole process: its start, evaluations and checkpoints included.
    """

    seed: int
    model_dir: str
    metrics: dict[str, float]
    samples_per_second: float
    seconds: float


@dataclass
class Entry:
    """A model on the leaderboard.

    Attributes:
        name: of the config.
        runs: those that came to their end.
        errors: of those that did not, by seed.
        num_dense: parameters outside of embedding tables; 0 when every run failed.
        num_in_tables: parameters in embedding tables; likewise.
    """

    name: str
    runs: list[RunResult] = field(default_factory=list)
    errors: dict[int, str] = field(default_factory=dict)
    num_dense: int = 0
    num_in_tables: int = 0

    def values(self, metric: str) -> list[float]:
        """The metric of each run, where it is a number."""
        return [run.metrics[metric] for run in self.runs if math.isfinite(run.metrics.get(metric, math.nan))]


@dataclass
class Leaderboard:
    """Models trained on the same batches, the best one first.

    Attributes:
        entries: a model each; those without a result last.
        seeds: of the runs of each.
        num_steps: of every run.
        batches: hash of the rows of all batches, by seed; equal for all models.
        directions: of the models' metrics, see `directions`.
        metrics: names of those that every model has which could be trained.
        ranked_by: the metric that orders the models: the first of which more is better, else the first of which less
            is; empty when none says.
    """

    entries: list[Entry]
    seeds: list[int]
    num_steps: int
    batches: dict[int, str]
    directions: Mapping[str, bool]
    metrics: list[str] = field(init=False)
    ranked_by: str = field(init=False)

    def __post_init__(self) -> None:
        trained = [entry for entry in self.entries if entry.runs]
        names = list(dict.fromkeys(name for entry in trained for run in entry.runs for name in run.metrics))
        self.metrics = [name for name in names if all(name in run.metrics for e in trained for run in e.runs)]
        ranking = [n for kind in (True, False) for n in self.metrics if direction_of(n, self.directions) is kind]
        self.ranked_by = ranking[0] if ranking else ""
        if self.ranked_by:
            self.entries.sort(key=self._place)

    @property
    def higher_is_better(self) -> bool:
        """Of the metric that orders the models."""
        return bool(direction_of(self.ranked_by, self.directions))

    @property
    def num_failed(self) -> int:
        """Runs that failed."""
        return sum(len(entry.errors) for entry in self.entries)

    def _place(self, entry: Entry) -> float:
        values = entry.values(self.ranked_by)
        return math.inf if not values else -mean(values) if self.higher_is_better else mean(values)

    def difference(self, entry: Entry) -> float | None:
        """Mean of the ranking metric minus that of the best model; None for the best, or without a value."""
        best, values = self.entries[0], entry.values(self.ranked_by)
        return mean(values) - mean(best.values(self.ranked_by)) if values and entry is not best else None

    def is_noise(self, entry: Entry) -> bool | None:
        """Whether some seed of this model is as good as some seed of the best one; None where one seed is all."""
        mine, best = entry.values(self.ranked_by), self.entries[0].values(self.ranked_by)
        if self.difference(entry) is None or min(len(mine), len(best)) < 2:
            return None
        return max(mine) >= min(best) if self.higher_is_better else min(mine) <= max(best)

    def to_dict(self) -> dict[str, Any]:  # Any: JSON values
        """Everything, for leaderboard.json; a metric may be NaN."""
        return {
            "ranked_by": self.ranked_by,
            "higher_is_better": self.higher_is_better,
            "metrics": self.metrics,
            "seeds": self.seeds,
            "num_steps": self.num_steps,
            "batches": {str(seed): value for seed, value in self.batches.items()},
            "models": [
                {
                    "name": entry.name,
                    "metrics": {name: _range(entry.values(name)) for name in self.metrics},
                    "difference": self.difference(entry),
                    "is_noise": self.is_noise(entry),
                    "parameters": {"dense": entry.num_dense, "tables": entry.num_in_tables} if entry.runs else None,
                    "samples_per_second": _range([run.samples_per_second for run in entry.runs]),
                    "seconds": _range([run.seconds for run in entry.runs]),
                    "errors": {str(seed): error for seed, error in entry.errors.items()},
                    "runs": [asdict(run) for run in entry.runs],
                }
                for entry in self.entries
            ],
        }

    @property
    def columns(self) -> list[str]:
        """Heads of the table."""
        against = ["against the best"] if self.ranked_by else []
        return ["model", *self.metrics, *against, "dense parameters", "in tables", "samples/s", "seconds"]

    def cells(self, entry: Entry) -> list[str]:
        """A row of the table: mean over the seeds, smallest and largest in brackets."""
        cells = [entry.name, *(_spread(entry.values(name), 4) for name in self.metrics)]
        if self.ranked_by:
            cells.append(self._verdict(entry))
        if entry.runs:
            cells += [f"{entry.num_dense:,}", f"{entry.num_in_tables:,}"]
        else:
            cells += ["", ""]
        rates = [run.samples_per_second for run in entry.runs]
        seconds = [run.seconds for run in entry.runs]
        cells += [f"{mean(rates):,.0f}", f"{mean(seconds):,.0f}"] if entry.runs else ["", ""]
        return cells

    def _verdict(self, entry: Entry) -> str:
        difference = self.difference(entry)
        if entry is self.entries[0] and entry.values(self.ranked_by):
            text = "best"
        elif difference is None:
            text = ""
        else:
            text = f"{difference:+.4f}" + (", noise" if self.is_noise(entry) else "")
        return ", ".join(filter(None, [text, _failed(entry)]))

    def notes(self) -> list[str]:
        """What a reader of the table must know, a sentence or two each."""
        found = []
        if len(self.entries) > 1:
            found.append(self._how_to_read())
        left_out = {name for entry in self.entries for run in entry.runs for name in run.metrics} - {*self.metrics}
        if left_out:
            found.append(f"Left out, for not all models have them: {', '.join(sorted(left_out))}.")
        hashes = ", ".join(f"{value} (seed {seed})" for seed, value in self.batches.items())
        found.append(f"Each run took {self.num_steps:,} steps, on the same batches for all models. Hash: {hashes}.")
        for entry in self.entries:
            found += [f"Failed: {entry.name}, seed {seed}: {error}" for seed, error in entry.errors.items()]
        return found

    def _how_to_read(self) -> str:
        if not self.ranked_by:
            return "No metric that all models have says which one is better."
        num_seeds = len(self.seeds)
        if num_seeds == 1:
            return "One seed cannot tell a difference from noise; compare with --seeds 3 or more."
        chance = 2 / math.comb(2 * num_seeds, num_seeds)
        return (
            f'"noise": {num_seeds} seeds do not tell the two models apart, for the ranges of their {self.ranked_by} '
            f"overlap. Those of two equally good models do not overlap in {chance:.1%} of all comparisons."
        )


def _failed(entry: Entry) -> str:
    return f"failed with seed {', '.join(map(str, entry.errors))}" if entry.errors else ""


def _range(values: list[float]) -> dict[str, float] | None:
    return {"mean": mean(values), "min": min(values), "max": max(values)} if values else None


def _spread(values: list[float], digits: int) -> str:
    if not values:
        return ""
    text = f"{mean(values):.{digits}f}"
    return text if len(values) == 1 else f"{text} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def write_leaderboard(board: Leaderboard, folder: Path) -> None:
    """Write leaderboard.md, leaderboard.json and, where matplotlib is installed, leaderboard.png."""
    (folder / "leaderboard.md").write_text(_markdown(board), encoding="utf-8")
    text = json.dumps(_without_nan(board.to_dict()), indent=2, allow_nan=False)
    (folder / "leaderboard.json").write_text(text + "\n", encoding="utf-8")
    plot = folder / "leaderboard.png"
    plot.unlink(missing_ok=True)
    if importlib.util.find_spec("matplotlib") is None:
        _log.warning("%s is not drawn, for matplotlib is not installed: pip install 'tzrec-core[demo]'", plot)
    elif board.metrics:
        _draw(board, plot)


def _without_nan(value: Any) -> Any:  # Any: JSON values
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _markdown(board: Leaderboard) -> str:
    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"

    several = len(board.seeds) > 1
    head = f"Mean of {len(board.seeds)} seeds, smallest and largest in brackets." if several else "One seed."
    stack = ", ".join(f"{name} {version(name)}" for name in ("tzrec-core", "torch", "torchrec"))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} threads"
    lines = [
        "# Leaderboard",
        "",
        head,
        "",
        line(board.columns),
        line(["---"] * len(board.columns)),
        *(line(board.cells(entry)) for entry in board.entries),
        "",
        *(f"- {' '.join(note.split())}" for note in board.notes()),
        f"- On {platform.machine()}, {device}, Python {platform.python_version()}, {stack}. Seconds are those of the "
        "whole process, its start, evaluations and checkpoints included.",
    ]
    return "\n".join(lines) + "\n"


def _draw(board: Leaderboard, path: Path) -> None:
    """A panel per metric and one for the speed: a dot per run, a line from the smallest to the largest."""
    from matplotlib.figure import Figure

    trained = [entry for entry in board.entries if entry.runs]
    names = [board.ranked_by, *(name for name in board.metrics if name != board.ranked_by)]
    panels: list[tuple[str, Callable[[Entry], list[float]]]] = [
        (name, lambda entry, name=name: entry.values(name)) for name in names if name
    ]
    panels = [*panels[:_MAX_PANELS], ("samples/s", lambda entry: [run.samples_per_second for run in entry.runs])]
    figure = Figure(figsize=(3.4 * len(panels), 1.4 + 0.4 * len(trained)), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, (title, values_of) in zip(axes, panels):
        for row, entry in enumerate(trained):
            if values := values_of(entry):
                axis.plot([min(values), max(values)], [row, row], color="C0", alpha=0.4, linewidth=3)
                axis.plot(values, [row] * len(values), "o", color="C0", markersize=5)
        axis.set(title=title, ylim=(len(trained) - 0.5, -0.5))
        axis.grid(alpha=0.3)
    axes[0].set_yticks(range(len(trained)), [entry.name for entry in trained])
    figure.savefig(path, dpi=120)
