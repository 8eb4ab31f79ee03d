"""`tzrec new-plugin`: writes a plugin that works, for somebody to put their model in."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from tzrec_core.errors import ConfigError, did_you_mean
from tzrec_core.plugins import ModelSpec, Task, registry
from tzrec_core.protos.model_pb2 import ModelConfig


def add_to(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command("new-plugin")(new_plugin)


def new_plugin(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Of the model, such as din or wide-and-deep.")],
    task: Annotated[str, typer.Option(help="What the model is for: rank, multitask or match.")] = Task.RANK.value,
    dataclass: Annotated[
        bool, typer.Option("--dataclass", help="Settings as a frozen dataclass: no .proto, no protoc.")
    ] = False,
    standalone: Annotated[
        bool, typer.Option("--standalone", help="For a repository of its own: licence, CI file, .gitignore.")
    ] = False,
) -> None:
    """Write ./tzrec-NAME: a package with a small model that trains and passes `tzrec check`."""
    from tzrec_core.scaffold import PluginNames, plugin_files

    names = PluginNames.of(name)
    _check_free(context, names.model, names.package)
    folder = Path(names.distribution)
    if folder.exists():
        raise ConfigError(f"./{folder} exists; choose another name, or move it away")
    texts = plugin_files(names, task=_task(task), dataclass=dataclass, standalone=standalone)
    try:
        for path, text in texts.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{error.filename} cannot be written: {error.strerror}") from None
    # init writes configs of these; the others start from their example
    first_use = f"show-model {names.model}"
    if task in (Task.RANK, Task.MULTITASK):
        labels = "--label COLUMN " * (1 if task == Task.RANK else 2)
        first_use = f"init --data TABLE {labels}--model {names.model}"
    typer.echo(
        f"./{folder} is written. Next:\n  pip install -e ./{folder}\n  tzrec check {folder}\n  tzrec {first_use}"
    )


def _task(text: str) -> Task:
    from tzrec_core.scaffold import TASKS

    if text not in list(Task):
        raise ConfigError(f"--task {text!r} is not one of {', '.join(TASKS)}.{did_you_mean(text, TASKS)}")
    if text not in TASKS:
        raise ConfigError(f"--task {text}: the core has no base class for such models yet. It has: {', '.join(TASKS)}")
    return Task(text)


def _check_free(context: typer.Context, model: str, package: str) -> None:
    """Refuse names that somebody has: both would then be unusable."""
    for offer in registry().by_name(ModelSpec).get(model, []):
        raise ConfigError(f"{offer.plugin.distribution} has a model {model!r}; choose another name")
    if model in {"model", *ModelConfig.DESCRIPTOR.fields_by_name}:
        raise ConfigError(f"{model!r} is a part of model_config, where the model's name would stand; choose another")
    commands = getattr(context.find_root().command, "commands", {})  # of a click group, which typer makes
    if {model, model.replace("_", "-")} & set(commands):
        raise ConfigError(f"{model.replace('_', '-')!r} is a command of tzrec; choose another name")
    if find_spec(package) is not None:
        raise ConfigError(f"a Python package {package} is installed already; choose another name")
