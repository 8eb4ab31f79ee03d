"""Calls a function in two real processes that are the ranks of one run, on CPUs."""

import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

from tzrec_core.engine.world import join_world
from tzrec_core.testing.check import Check, Outcome, run_check
from tzrec_core.testing.subject import ModelSubject, PluginSubject

# Any: what a scenario takes and returns; it travels pickled.
Scenario = Callable[..., Any]

_SIZE = 2
_TIMEOUT_S = 120.0
_POLL_S = 0.05
_CHILD = "import sys; from tzrec_core.testing.two_ranks import be_a_rank; be_a_rank(sys.argv[1])"


def on_two_ranks(model: ModelSubject, scenario: Scenario, *arguments: Any, timeout_s: float = _TIMEOUT_S) -> list[Any]:
    """Call `scenario(model, world, *arguments)` on two ranks; each finds the model by its name and seeds itself alike.

    Args:
        model: of an installed plugin or of a file, in use.
        scenario: at the top level of a module that can be imported.
        arguments: values that can be pickled.
        timeout_s: how long both may take, their start included.

    Returns:
        what the scenario returned, by rank.

    Raises:
        AssertionError: it failed on a rank, or a rank did not end in time; both have ended then.
    """
    with tempfile.TemporaryDirectory(prefix="tzrec-") as name:
        folder = Path(name)
        request = (model.plugin.name, model.spec.name, scenario, arguments)
        (folder / "request").write_bytes(pickle.dumps(request))
        processes = [_start(folder, rank) for rank in range(_SIZE)]
        try:
            failed = _wait(processes, time.monotonic() + timeout_s)
        finally:
            for process in processes:
                process.kill()
                process.wait()
        if failed is not None:
            raise _first_error(folder, failed, processes[failed].returncode)
        late = [rank for rank, process in enumerate(processes) if process.returncode != 0]
        assert not late, (
            f"rank {' and '.join(map(str, late))} of {_SIZE} did not end within {timeout_s:g} s. A rank waits for ever "
            f"where it calls something of torch.distributed that the other one does not call"
        )
        return [pickle.loads((folder / f"result{rank}").read_bytes()) for rank in range(_SIZE)]


def _start(folder: Path, rank: int) -> subprocess.Popen[bytes]:
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(_SIZE),
        "LOCAL_WORLD_SIZE": str(_SIZE),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    with (folder / f"output{rank}").open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-P", "-c", _CHILD, str(folder)],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def _wait(processes: list[subprocess.Popen[bytes]], deadline: float) -> int | None:
    """Wait for the first failure, the end of all, or the deadline; returns the rank that failed."""
    while time.monotonic() < deadline:
        codes = [process.poll() for process in processes]
        failed = [rank for rank, code in enumerate(codes) if code]
        if failed:
            return failed[0]
        if None not in codes:
            return None
        time.sleep(_POLL_S)
    return None


def _first_error(folder: Path, rank: int, code: int) -> AssertionError:
    """What went wrong first; the other rank may have failed of that, over the lost connection."""
    errors = sorted(folder.glob("error*"), key=lambda file: file.stat().st_mtime_ns)
    if errors:
        first = errors[0].name[-1]
        error = AssertionError(f"on rank {first} of {_SIZE}: {errors[0].read_text(encoding='utf-8')}")
        error.add_note((folder / f"details{first}").read_text(encoding="utf-8"))
        return error
    output = (folder / f"output{rank}").read_text(encoding="utf-8", errors="replace")
    return AssertionError(f"rank {rank} of {_SIZE} ended with {code}:\n{output[-2000:]}")


def be_a_rank(folder: str) -> None:
    """What a process of `on_two_ranks` does; ends the process."""
    rank, place = int(os.environ["RANK"]), Path(folder)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{place / 'store'}",  # unlike a port it cannot be taken
        rank=rank,
        world_size=_SIZE,
        timeout=timedelta(seconds=_TIMEOUT_S),
    )
    world = join_world()
    plugin_name, model_name, scenario, arguments = pickle.loads((place / "request").read_bytes())
    (model,) = [model for model in PluginSubject.find(plugin_name).models if model.spec.name == model_name]

    def run(model: ModelSubject) -> None:
        result = scenario(model, world, *arguments)
        (place / f"result{rank}").write_bytes(pickle.dumps(result))

    result = run_check(Check(scenario.__name__, "", run, "model"), model)
    if result.outcome is not Outcome.PASSED:
        (place / f"details{rank}").write_text(result.details, encoding="utf-8")
        (place / f"error{rank}").write_text(result.message, encoding="utf-8")
        os._exit(1)
    world.barrier()  # a rank that leaves first can take the other's connections with it
    os._exit(0)  # gloo may abort a process that takes its groups down
