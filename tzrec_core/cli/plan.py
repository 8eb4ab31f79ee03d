"""`tzrec plan`: how a cluster that need not be there would hold the embedding tables."""

from typing import Annotated

import typer

from tzrec_core.cli.output import ConfigArgument, JsonOption, SetOption, print_json, print_plugin_problems, print_table


def add_to(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command("plan")(plan)


def plan(
    config: ConfigArgument,
    world_size: Annotated[int, typer.Option("--world-size", min=1, help="Number of processes, one per GPU.")],
    local_world_size: Annotated[
        int, typer.Option("--local-world-size", min=0, help="Processes per machine; 0 = 8, or all if fewer.")
    ] = 0,
    device: Annotated[str, typer.Option(help="cuda or cpu.")] = "cuda",
    hbm: Annotated[str | None, typer.Option(help="Memory of a GPU, such as 80GB.")] = None,
    ddr: Annotated[
        str | None,
        typer.Option(help="Host memory of a machine, such as 1TB; with GPUs, lets tables live there."),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=0, help="Rows per process and step; 0 = the config's.")] = 0,
    set_: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Show which process would hold which embedding tables, without the machines; exit code 2 if they do not fit."""
    print_plugin_problems()
    from tzrec_core import api

    result = api.plan(
        config,
        world_size,
        overrides=set_ or [],
        local_world_size=local_world_size or None,
        device=device,
        hbm=hbm,
        ddr=ddr,
        batch_size=batch_size or None,
    )
    if json:
        print_json(
            {
                "world_size": result.world_size,
                "local_world_size": result.local_world_size,
                "device": result.device,
                "tables": result.tables,
                "ranks": [{"device_bytes": used.device, "host_bytes": used.host} for used in result.rank_bytes],
            }
        )
        return
    from tzrec_core.engine.plan_table import COLUMNS, balance, row_cells

    machines = result.world_size // result.local_world_size
    title = f"{result.world_size} {device} processes on {machines} machine{'s' if machines != 1 else ''}"
    print_table(COLUMNS, [row_cells(row) for row in result.tables], title=title)
    typer.echo(balance(result.rank_bytes))
