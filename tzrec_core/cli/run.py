"""Commands that compute: train, eval, predict. They import torch when they run, not before."""

from typing import Annotated

import typer

from tzrec_core.cli.launch import NprocOption, is_main, relaunched
from tzrec_core.cli.output import ConfigArgument, JsonOption, SetOption, print_json, print_plugin_problems, print_table


def add_to(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("train")(train)
    app.command("eval")(evaluate)
    app.command("predict")(predict)


CheckpointOption = Annotated[
    str | None, typer.Option("--checkpoint", help="Folder or step of a checkpoint, or best; default: the latest.")
]


def train(config: ConfigArgument, nproc: NprocOption = 1, set_: SetOption = None, json: JsonOption = False) -> None:
    """Train a model; a model_dir that holds checkpoints is continued."""
    if relaunched(nproc):
        return
    if is_main():
        print_plugin_problems()
    from tzrec_core import api

    result = api.train(config, overrides=set_ or [])
    if not is_main():
        return
    if json:
        print_json(
            {
                "model_dir": result.model_dir,
                "checkpoint": result.checkpoint,
                "step": result.step,
                "metrics": result.metrics,
                "samples_per_second": result.samples_per_second,
                "stopped": result.stopped,
            }
        )
        return
    rows = [[name, f"{value:.6f}"] for name, value in result.metrics.items()]
    rows += [["samples/s", f"{result.samples_per_second:,.0f}" if result.samples_per_second else "nothing left to do"]]
    rows += [["checkpoint", str(result.checkpoint)]]
    print_table(["train", f"step {result.step}"], rows)


def evaluate(
    config: ConfigArgument,
    checkpoint: CheckpointOption = None,
    input_path: Annotated[
        str | None, typer.Option("--input", help="Table to evaluate on; default: the config's eval_input_path.")
    ] = None,
    nproc: NprocOption = 1,
    set_: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Evaluate a checkpoint."""
    if relaunched(nproc):
        return
    if is_main():
        print_plugin_problems()
    from tzrec_core import api

    result = api.evaluate(config, input_path, overrides=set_ or [], checkpoint=checkpoint)
    if not is_main():
        return
    if json:
        print_json({"checkpoint": result.checkpoint, "step": result.step, "metrics": result.metrics})
        return
    rows = [[name, f"{value:.6f}"] for name, value in result.metrics.items()]
    print_table(["eval", f"step {result.step}"], [*rows, ["checkpoint", str(result.checkpoint)]])


def predict(
    config: ConfigArgument,
    input_path: Annotated[str, typer.Option("--input", help="Table to predict; it needs no labels.")],
    output: Annotated[str, typer.Option("--output", help="Folder, or file that ends in .parquet or .csv.")],
    checkpoint: CheckpointOption = None,
    reserved_columns: Annotated[
        str, typer.Option(help="Input columns to write beside the predictions, separated by commas, or ALL_COLUMNS.")
    ] = "",
    output_columns: Annotated[str, typer.Option(help="Predictions to write, separated by commas; default: all.")] = "",
    batch_size: Annotated[int, typer.Option(min=0, help="Rows per batch; 0 = the config's.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier output.")] = False,
    nproc: NprocOption = 1,
    set_: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Predict every row of a table, in its order."""
    if relaunched(nproc):
        return
    if is_main():
        print_plugin_problems()
    from tzrec_core import api

    result = api.predict(
        config,
        input_path,
        output,
        overrides=set_ or [],
        checkpoint=checkpoint,
        reserved_columns=_names(reserved_columns),
        output_columns=_names(output_columns) or None,
        batch_size=batch_size or None,
        overwrite=overwrite,
    )
    if not is_main():
        return
    if json:
        print_json(
            {
                "output": result.output_path,
                "rows": result.num_rows,
                "samples_per_second": result.samples_per_second,
            }
        )
        return
    print_table(
        ["predict", f"{result.num_rows:,} rows"],
        [["output", output], ["samples/s", f"{result.samples_per_second:,.0f}"]],
    )


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
