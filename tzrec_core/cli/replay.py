"""`tzrec replay`: runs a step again at which training stopped."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from tzrec_core.cli.output import ConfigArgument, JsonOption, SetOption, print_json, print_plugin_problems, print_table


def add_to(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command("replay")(replay)


def replay(
    config: ConfigArgument,
    failure: Annotated[
        Path | None, typer.Option("--failure", help="Folder failed-<step>; default: the latest of model_dir.")
    ] = None,
    set_: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Run the step again at which training stopped; exit code 1 when the problem shows again."""
    print_plugin_problems()
    from tzrec_core import api

    result = api.replay(config, overrides=set_ or [], failure=failure)
    if json:
        print_json(_as_json(result))
    else:
        _print(result)
    if result.finding is not None:
        raise typer.Exit(1)


def _as_json(result: Any) -> dict[str, Any]:  # Any: a ReplayResult, whose module imports torch
    failure = result.failure
    return {
        "failure": str(failure.folder),
        "step": failure.step,
        "seed": failure.seed,
        "rank": failure.rank,
        "found_before": _finding(failure.finding),
        "found_again": result.finding is not None,
        "finding": _finding(result.finding),
        "config_changed": result.is_config_changed,
        "inputs": [asdict(entry) for entry in result.inputs],
    }


def _finding(finding: Any) -> dict[str, Any] | None:
    if finding is None:
        return None
    return {name: value for name, value in asdict(finding).items() if name != "order"}


def _print(result: Any) -> None:
    failure = result.failure
    print_table(
        ["input", "values", "min", "max", "mean", "NaN", "infinite"],
        [
            [entry.name, f"{entry.num_values:,}", *map(_number, (entry.minimum, entry.maximum, entry.mean)),
             f"{entry.num_nan:,}", f"{entry.num_inf:,}"]
            for entry in result.inputs
        ],
        title=f"{failure.folder}: step {failure.step}, seed {failure.seed}, batch of process {failure.rank}",
    )  # fmt: skip
    if result.is_config_changed:
        typer.echo("The config is not the one of that run.")
    if failure.finding is not None:
        typer.echo(f"Then, the first that was not finite: {failure.finding}.")
    if result.finding is None:
        typer.echo("Now all is finite: the problem did not show again.")
    else:
        typer.echo(f"Now, the first that is not finite: {result.finding}.")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"
