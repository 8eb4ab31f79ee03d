"""The `tzrec` command line: options that hold for every command, and how errors end."""

import logging
import os
import re
import sys
import traceback
import warnings
from itertools import pairwise
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from tzrec_core import __version__
from tzrec_core.cli import check, compare, doctor, init, inspect, new_plugin, plan, protoc, replay, run
from tzrec_core.cli.launch import is_main, is_worker, note_end
from tzrec_core.errors import ConfigError, PluginError, TzrecError
from tzrec_core.plugins import State, registry

# How torch says, in a RuntimeError, that another process of the run is gone.
_LOST = re.compile(r"Connection (closed|reset|refused)|closed by peer|Broken pipe|NCCL.*(abort|remote)", re.IGNORECASE)
_FLAGS = ("--no-plugins", "--strict-plugins", "--debug")

app = typer.Typer(
    name="tzrec",
    help="Train, evaluate and predict with recommender models that are pip packages.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
inspect.add_to(app)
init.add_to(app)
run.add_to(app)
compare.add_to(app)
replay.add_to(app)
plan.add_to(app)
new_plugin.add_to(app)
check.add_to(app)
protoc.add_to(app)
doctor.add_to(app)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"tzrec-core {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    no_plugins: Annotated[bool, typer.Option("--no-plugins", help="Use only what the core has built in.")] = False,
    strict_plugins: Annotated[
        bool, typer.Option("--strict-plugins", help="Stop unless every plugin is ok or disabled.")
    ] = False,
    plugin: Annotated[
        list[str] | None,
        typer.Option("--plugin", metavar="FILE", help="A manifest to use beside the installed plugins; repeatable."),
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    # the plugin options were read by _select_plugins, before the plugins' own commands could be mounted
    if strict_plugins:
        registry().require_ok()


class _Lines(logging.Handler):
    """Log lines on whatever standard error is at the time, so that they go above a live bar."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


def main() -> None:
    """Entry point of the `tzrec` command.

    Exit codes: 0 ok; 1 the run failed; 2 usage, config or data; 3 plugin; 130 interrupted.
    """
    code = _run()
    if is_worker():
        note_end(code)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(
            code
        )  # gloo may abort a process that takes its groups down, and a run that ended well would seem killed
    sys.exit(code)


def _run() -> int:
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[_Lines()])
    logging.getLogger("tzrec_core").setLevel(logging.INFO if is_main() else logging.ERROR)
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)  # torchrec sets off a deprecation note
    warnings.filterwarnings("ignore", module=r"torch(rec)?\.")
    warnings.filterwarnings("ignore", message="Please use DTensor instead")  # of what torchrec makes
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    try:
        options, rest = _split(arguments)
        _select_plugins(options)
        if not rest or rest[0] not in _core_commands():
            _mount_plugin_commands()
        app([*options, *rest])
    except SystemExit as end:  # how typer ends
        return int(end.code or 0)
    except TzrecError as error:
        if debug:
            traceback.print_exc()
        _print_error(error)
        return error.exit_code
    except RuntimeError as error:
        if not (is_worker() and _LOST.search(str(error))):
            raise
        _print_error(f"lost the connection to another process, which has ended: {str(error).splitlines()[0]}")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _print_error(error: TzrecError | str) -> None:
    """On standard error; of several processes, rank 0 speaks for all, but for what only another one has met.

    Before the processes have joined, none knows what the others have met: then one of each machine tells of mistakes
    in the config or the installed plugins.
    """
    if not is_main():
        is_first_here = os.environ.get("LOCAL_RANK", "0") == "0"
        is_theirs = isinstance(error, PluginError) and _has_joined()
        is_everybodys = isinstance(error, ConfigError | PluginError) and not is_first_here and not is_theirs
        if getattr(error, "is_shared", False) or is_everybodys:
            return
    who = f" (process {os.environ['RANK']})" if is_worker() and not is_main() else ""
    Console(stderr=True).print(Text(f"error{who}: {error}"), style="red", highlight=False, soft_wrap=True)


def _has_joined() -> bool:
    distributed = sys.modules.get("torch.distributed")  # who has joined has imported it
    return distributed is not None and distributed.is_initialized()


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The options of `tzrec` itself, and the command with the rest.

    They may also stand behind a command of the core, as in `tzrec train CONFIG --debug`; behind a plugin's command
    all options are the plugin's.
    """
    options: list[str] = []
    rest: list[str] = []
    waiting = list(arguments)
    while waiting:
        argument = waiting.pop(0)
        if argument == "--" or (rest and rest[0] not in _core_commands()):
            return options, [*rest, argument, *waiting]
        if argument == "--plugin":
            if not waiting:
                raise ConfigError("--plugin needs the path of a manifest, such as ./plugin.py")
            options += [argument, waiting.pop(0)]
        elif argument in _FLAGS or argument.startswith("--plugin=") or (argument.startswith("-") and not rest):
            options.append(argument)
        else:
            rest.append(argument)
    return options, rest


def _core_commands() -> set[str]:
    return {command.name or "" for command in app.registered_commands}


def _select_plugins(options: list[str]) -> None:
    """Turn the plugin options into environment variables, so that worker processes see the same plugins."""
    if "--no-plugins" in options:
        os.environ["TZREC_PLUGINS"] = ""
    files = [option.partition("=")[2] for option in options if option.startswith("--plugin=")]
    files += [file for option, file in pairwise(options) if option == "--plugin"]
    if files:
        before = [file for file in os.environ.get("TZREC_PLUGIN_FILES", "").split(os.pathsep) if file]
        # each once: a process that `--nproc` starts has both, its parent's variable and the options
        wanted = dict.fromkeys([*before, *(os.path.abspath(file) for file in files)])
        os.environ["TZREC_PLUGIN_FILES"] = os.pathsep.join(wanted)


def _mount_plugin_commands() -> None:
    """Mount what plugins add; a core command pays nothing for it, and cannot be taken."""
    core = _core_commands()
    names = [found.name for found in registry().plugins]
    for found in registry().plugins:
        hook = getattr(found.manifest, "tzrec_commands", None)
        if hook is None or found.state not in (State.OK, State.CONFLICT):
            continue
        if found.name in core:
            found.notes.append(f"its commands are not mounted: {found.name!r} is a command of the core")
            continue
        if names.count(found.name) > 1:  # discovery notes the owners
            continue
        sub = typer.Typer(name=found.name, help=f"Commands of {found.distribution}.", no_args_is_help=True)
        try:
            hook(app=sub)
            typer.main.get_command(sub)  # finds out here, and not for all of `tzrec`, what typer cannot take
        except (Exception, SystemExit) as error:  # a plugin may fail in any way; the core's commands go on
            found.fail(State.BROKEN, f"tzrec_commands failed: {type(error).__name__}: {error}", error)
            continue
        app.add_typer(sub)


if __name__ == "__main__":
    main()
