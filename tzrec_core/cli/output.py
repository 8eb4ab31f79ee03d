"""How commands print: tables for people, JSON for programs."""

import json
import math
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tzrec_core.plugins import registry

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Change a field of the config; repeatable.")
]
ConfigArgument = Annotated[str, typer.Argument(metavar="CONFIG", help="Pipeline config, text or JSON.")]


def console() -> Console:
    """Where results go; wide when it is not a terminal, so that rows are not folded in files and pipes."""
    out = Console()
    return out if out.is_terminal else Console(width=200)


def print_json(data: Any) -> None:
    """Print `data` as indented JSON; NaN and infinity, which JSON does not have, become null."""
    typer.echo(json.dumps(_finite(data), indent=2, default=str))


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "") -> None:
    """Print rows under column heads."""
    out = console()
    if title:
        out.print(f"\n{title}", style="bold", markup=False, highlight=False)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column in ("name", "field"))
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    out.print(table)


def print_plugin_problems() -> None:
    """One line on standard error for each plugin that is not ok."""
    err = Console(stderr=True)
    for line in registry().problems():
        err.print(f"note: {line}", style="yellow", highlight=False, markup=False, soft_wrap=True)
