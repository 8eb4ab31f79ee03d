"""`--nproc N`: the same command again in N processes of this machine, through torch's elastic launcher."""

import logging
import os
import sys
import tempfile
from pathlib import Path
from signal import SIGTERM
from typing import Annotated

import typer

_log = logging.getLogger(__name__)

NprocOption = Annotated[
    int,
    typer.Option(
        "--nproc", min=1, help="Processes of this machine to run in; for several machines, start tzrec with torchrun."
    ),
]

_MAX_RESTARTS = 3
_LAUNCH_FOLDER, _ENDED_WELL = "TZREC_LAUNCH_FOLDER", ".ended-well"
_SHUTDOWN_S = 300  # how long processes may take to save after a signal


def is_worker() -> bool:
    """Whether a launcher, ours or torchrun, started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_main() -> bool:
    """Whether this process prints: the only one, or rank 0."""
    return int(os.environ.get("RANK", "0")) == 0


def note_end(code: int) -> None:
    """Let the launcher know how this worker ended, which it is not told after a signal."""
    folder = os.environ.get(_LAUNCH_FOLDER)
    if folder and not code and os.path.isdir(folder):
        Path(folder, os.environ["RANK"] + _ENDED_WELL).touch()


def relaunched(nproc: int) -> bool:
    """Run this command in `nproc` processes; False when this process is to run it itself.

    Restarts all processes, which then go on from the latest checkpoint, when one was killed by a signal, up to three
    times. An error of the run is not tried again.

    Raises:
        typer.Exit: the processes ended with an error, which they have printed; with its exit code. Or a signal ended
            them before they were done; with 128 + its number.
    """
    if nproc == 1 or is_worker():
        return False
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in list(logging.root.manager.loggerDict):
        if name.startswith(("torch.distributed.elastic", "torch.distributed.launcher")):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # what matters of it is said here
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // nproc)))
    command = [sys.executable, "-m", "tzrec_core.cli.app", *_without_nproc(sys.argv[1:])]
    for attempt in range(_MAX_RESTARTS + 1):
        with tempfile.TemporaryDirectory(prefix="tzrec-") as logs:
            os.environ[_LAUNCH_FOLDER] = logs
            launch = LaunchConfig(
                min_nodes=1,
                max_nodes=1,
                nproc_per_node=nproc,
                run_id=os.path.basename(logs),
                rdzv_backend="c10d",
                rdzv_endpoint="localhost:0",
                max_restarts=0,
                logs_specs=DefaultLogsSpecs(log_dir=logs),
                shutdown_timeout=_SHUTDOWN_S,
            )
            try:
                elastic_launch(launch, command[0])(*command[1:])
                return True
            except SignalException as error:
                if len(list(Path(logs).glob(f"*{_ENDED_WELL}"))) == nproc:
                    return True  # each has done what it does on a signal, such as saving
                raise typer.Exit(128 + error.sigval) from None
            except ChildFailedError as error:
                # others may have failed first, over the lost connection; a SIGTERM is the launcher's, to the rest
                killed = [(rank, f) for rank, f in error.failures.items() if f.exitcode < 0 and f.exitcode != -SIGTERM]
                if not killed:
                    raise typer.Exit(max(f.exitcode for f in error.failures.values())) from None
                cause = f"process {killed[0][0]} of {nproc} was killed by {killed[0][1].signal_name()}"
            if attempt < _MAX_RESTARTS:
                _log.warning("%s; starting all of them again (%d of %d)", cause, attempt + 1, _MAX_RESTARTS)
    _log.error("error: %s, and so it was %d times before; see the system's log for why", cause, _MAX_RESTARTS)
    raise typer.Exit(1)


def _without_nproc(arguments: list[str]) -> list[str]:
    kept: list[str] = []
    waiting = iter(arguments)
    for argument in waiting:
        if argument == "--nproc":
            next(waiting, None)
        elif not argument.startswith("--nproc="):
            kept.append(argument)
    return kept
