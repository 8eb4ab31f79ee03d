"""The command that proves what a plugin claims: check."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from tzrec_core.cli.output import JsonOption, console, print_json, print_table

if TYPE_CHECKING:  # these need torch
    from tzrec_core.testing import CheckResult


def add_to(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command("check")(check)


def check(
    plugin: Annotated[
        str, typer.Argument(metavar="PLUGIN", help="Distribution, such as tzrec-deepfm, its entry point, or a file.")
    ],
    slow: Annotated[bool, typer.Option("--slow", help="Run the slow checks too: minutes per model.")] = False,
    json: JsonOption = False,
) -> None:
    """Check a plugin against the rules of all plugins; exits 1 when it breaks one.

    The expected_failures and parameters_without_gradient of a test class count in pytest only.
    """
    from tzrec_core.testing.conformance import results
    from tzrec_core.testing.subject import PluginSubject

    subject = PluginSubject.find(plugin)
    found = []
    progress = Console(file=sys.stderr)  # by name, for a check that runs has another standard error
    with progress.status(f"checking {subject.name}") as status:
        for result in results(subject, slow=slow):
            found.append(result)
            status.update(f"checking {subject.name}: {len(found)} done, {result.key}")
    failed = [result for result in found if result.outcome == "failed"]
    if json:
        rows = [_row(result) for result in found]
        print_json({"plugin": subject.name, "version": subject.plugin.version, "ok": not failed, "checks": rows})
    else:
        _print(found)
        counts = Counter(str(result.outcome) for result in found)
        summary = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
        seconds = sum(result.seconds for result in found)
        name = f"{subject.name} {subject.plugin.version}".strip()
        typer.echo(f"\n{name}: {summary}, in {seconds:.0f} s")
    if failed:
        raise typer.Exit(1)


def _row(result: CheckResult) -> dict[str, Any]:  # Any: JSON
    return {
        "check": result.check,
        "model": result.model,
        "rule": result.rule,
        "outcome": str(result.outcome),
        "message": result.message,
        "details": result.details,
        "seconds": round(result.seconds, 3),
    }


def _print(results: Sequence[CheckResult]) -> None:
    """A table for the package and for each model; below them, why checks failed."""
    for model in dict.fromkeys(result.model for result in results):
        group = [result for result in results if result.model == model]
        title = f"model {model}" if model else "package"
        if {(result.outcome, result.message) for result in group} == {("not claimed", group[0].message)}:
            typer.echo(f"\n{title}: {_outcome(group[0])}")
            continue
        rows = [[result.check, result.rule, _outcome(result), f"{result.seconds:.1f}"] for result in group]
        print_table(["name", "rule", "outcome", "seconds"], rows, title=title)
    why: dict[str, list[str]] = {}
    for result in results:
        if result.outcome == "failed":
            why.setdefault(result.message, []).append(result.key)
    out = console()
    for message, keys in why.items():
        text = message.replace("\n", "\n  ")
        out.print(Text(f"\nfailed: {', '.join(keys)}", style="red"), soft_wrap=True)
        out.print(Text(f"  {text}"), soft_wrap=True)
    if why:
        typer.echo("\n--json has the tracebacks, and what was printed meanwhile")


def _outcome(result: CheckResult) -> str:
    """The outcome, with the reason when there is nothing to mend."""
    return f"{result.outcome}: {result.message}" if result.outcome in ("not claimed", "skipped") else result.outcome
