"""The command that trains several models on the same batches: compare."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from tzrec_core.cli.output import JsonOption, SetOption, print_json, print_plugin_problems, print_table
from tzrec_core.errors import ConfigError
from tzrec_core.plugins import ModelSpec, registry


def add_to(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command("compare")(compare)


def compare(
    configs: Annotated[
        list[str] | None, typer.Argument(metavar="[CONFIG]...", help="Pipeline configs, text or JSON.")
    ] = None,
    models: Annotated[
        str,
        typer.Option(help="Instead of configs: installed models, separated by commas; tzrec init drafts them."),
    ] = "",
    data: Annotated[str, typer.Option(help="With --models: table to train on.")] = "",
    eval_data: Annotated[str, typer.Option(help="With --models: table to evaluate on.")] = "",
    label: Annotated[str, typer.Option(help="With --models: the column to predict.")] = "",
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each model, with seeds 1 to N.")] = 3,
    output: Annotated[str, typer.Option(help="Folder for the runs and the leaderboard.")] = "runs/compare",
    set_: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Train several models on the same batches and write a leaderboard; what has finished is not trained again."""
    options = {"--models": models, "--data": data, "--eval-data": eval_data, "--label": label}
    if bool(configs) == bool(models):
        raise ConfigError("give either configs, or --models with --data, --eval-data and --label")
    if configs and any(options.values()):
        given = ", ".join(option for option, value in options.items() if value)
        raise ConfigError(f"{given}: for --models only; configs say it themselves, and --set changes it in all")
    if models and (missing := [option for option, value in options.items() if not value]):
        raise ConfigError(f"--models needs {' and '.join(missing)} too")
    print_plugin_problems()
    named: dict[str, Any] = _named(configs) if configs else _drafted(models, data, eval_data, label)
    from tzrec_core import api

    board = api.compare(named, output, num_seeds=seeds, overrides=set_ or [])
    if json:
        print_json(board.to_dict())
    else:
        print_table(board.columns, [board.cells(entry) for entry in board.entries])
        for note in board.notes():
            typer.echo(note)
        typer.echo(f"{Path(output) / 'leaderboard.md'} is written.")
    if board.num_failed:
        raise typer.Exit(1)


def _named(configs: Iterable[str]) -> dict[str, str]:
    """The configs by their file names; with as much of their folders as tells them apart."""
    paths = {path: Path(path).absolute().with_suffix("").parts[1:] for path in configs}
    for size in range(1, max(map(len, paths.values())) + 1):
        named = {"-".join(parts[-size:]): path for path, parts in paths.items()}
        if len(named) == len(paths):
            break
    return named


def _drafted(models: str, data: str, eval_data: str, label: str) -> dict[str, str]:
    """A config for each model, as `tzrec init` writes it."""
    from tzrec_core.data.draft import draft_config

    drafts = {}
    for name in dict.fromkeys(name.strip() for name in models.split(",") if name.strip()):
        offer = registry().get(ModelSpec, name)
        row = offer.field if ":" in name else name
        drafts[row] = draft_config(offer, data, labels=[label], eval_data=eval_data, model_dir=f"runs/{row}")
    return drafts
