"""The command that writes a first config for a table and a model: init."""

from pathlib import Path
from typing import Annotated

import typer

from tzrec_core.cli.output import print_plugin_problems
from tzrec_core.errors import ConfigError
from tzrec_core.plugins import ModelSpec, registry


def add_to(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command("init")(init)


def init(
    data: Annotated[str, typer.Option("--data", help="Table to train on: Parquet, or CSV with a header line.")],
    label: Annotated[list[str], typer.Option("--label", help="Its column to predict; several for a multitask model.")],
    model: Annotated[str, typer.Option("--model", help="Name of an installed model, or distribution:name.")],
    output: Annotated[str, typer.Option("--output", help="Config to write; default: MODEL.config.")] = "",
    eval_data: Annotated[str, typer.Option("--eval-data", help="Table to evaluate on, of the same columns.")] = "",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier config.")] = False,
) -> None:
    """Write a commented config, ready to train, from what stands in a table."""
    print_plugin_problems()
    offer = registry().get(ModelSpec, model)
    path = Path(output or f"{offer.spec.name}.config")
    if path.exists() and not overwrite:
        raise ConfigError(f"{path} exists. Write another file with --output, or replace it with --overwrite.")
    from tzrec_core.data.draft import draft_config

    text = draft_config(offer, data, labels=label, eval_data=eval_data, model_dir=f"runs/{path.stem}")
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--output {path} cannot be written: {error.strerror}") from None
    typer.echo(f"{path} is written. Next:\n  tzrec validate {path} --data\n  tzrec train {path}")
