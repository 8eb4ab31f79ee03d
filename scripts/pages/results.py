"""The measured results of results.toml, and their tables."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

from pages.markdown import DOCS, ROOT, generated, link, table, title
from pages.sources import read_toml
from tzrec_core.plugins import ModelSpec, Registry

RESULTS = DOCS / "results.toml"


@dataclass(frozen=True)
class Result:
    """One number; results.toml says what each field means."""

    subject: str
    metric: str
    value: int | Decimal
    setting: str = ""
    spread: Sequence[int | Decimal] = ()

    def text(self) -> str:
        """The number with its spread."""
        spread = f" ({self.spread[0]:,} to {self.spread[1]:,})" if self.spread else ""
        return f"{self.value:,}{spread}"


@dataclass(frozen=True)
class Run:
    """What was measured at once; results.toml says what each field means."""

    dataset: str
    about: str
    command: str
    commit: str
    machine: str
    source: str
    results: Sequence[Result]


@cache
def _file() -> dict[str, Any]:  # Any: TOML
    return read_toml(RESULTS)


@cache
def runs() -> list[Run]:
    """All runs, in the order of the file."""
    entries = _file()["run"]
    return [Run(**{**entry, "results": [Result(**result) for result in entry["results"]]}) for entry in entries]


def best(results: Iterable[Result]) -> Result | None:
    """The best of results of one metric; None if there are none, or the metric has no better and worse."""
    found = list(results)
    better = _file()["metrics"][found[0].metric] if found else ""
    if not better:
        return None
    return (max if better == "higher" else min)(found, key=lambda r: r.value)


def page(registry: Registry) -> str:
    """results.md."""
    here = DOCS / "results.md"
    quoted = {ROOT / run.source for run in runs()}
    others = [path for path in sorted(ROOT.glob("benchmarks/results/*.md")) if path not in quoted]
    parts = [
        generated("results.toml"),
        "# What is measured\n",
        "Brackets hold the smallest and the largest of the runs; the best of a column is bold.\n",
        *(f"## {run.dataset}\n\n{tables(registry, run, here)}" for run in runs()),
        "## The core itself\n",
        "".join(f"- [{title(path)}]({link(path, here)})\n" for path in others),
    ]
    return "\n".join(parts)


def of_model(registry: Registry, name: str, here: Path) -> str:
    """The runs that a model takes part in."""
    parts = [
        f"### {run.dataset}\n\n{tables(registry, run, here)}"
        for run in runs()
        if name in {r.subject for r in run.results}
    ]
    return "\n".join(parts) or "None is recorded yet.\n"


def where_others_won(registry: Registry, name: str) -> str:
    """A line for each dataset and metric in which another model was better; empty if none was."""
    zoo = {offer.spec.name for offer in registry.offers(ModelSpec)}
    lines = []
    for run in runs():
        for metric in dict.fromkeys(r.metric for r in run.results):
            rows = [r for r in run.results if r.metric == metric and r.subject in zoo]
            first, own = best(rows), best(r for r in rows if r.subject == name)
            if first and own and first.subject != name:
                lines.append(
                    f"- {run.dataset}, {metric}: [`{first.subject}`]({first.subject}.md) has {first.text()}, "
                    f"`{name}` {own.text()}.\n"
                )
    return f"Where another model of the zoo won:\n\n{''.join(lines)}" if lines else ""


def tables(registry: Registry, run: Run, here: Path) -> str:
    """A run as the page `here` shows it: how it was measured, and a row per subject and setting."""
    zoo = {offer.spec.name for offer in registry.offers(ModelSpec)}
    metrics = list(dict.fromkeys(r.metric for r in run.results))
    cells = {(r.subject, r.setting, r.metric): r.text() for r in run.results}
    for metric in metrics:
        if first := best(r for r in run.results if r.metric == metric):
            cells[first.subject, first.setting, metric] = f"**{first.text()}**"
    rows = []
    for subject, setting in dict.fromkeys((r.subject, r.setting) for r in run.results):
        name = f"`{subject}`" if subject in zoo else subject
        rows.append([name, setting, *(cells.get((subject, setting, metric), "") for metric in metrics)])
    source = link(ROOT / run.source, here)
    how = f"`{run.command}` at {run.commit} on {run.machine}: [the whole table]({source})."
    return f"{run.about}.\n\n{table(['model', 'setting', *metrics], rows)}\n{how}\n"
