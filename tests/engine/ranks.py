"""Runs a function of a test file in several real processes that share a gloo group.

    def scenario(folder: str) -> None:          # in the test file, at its top level
        world = join_world()
        ...

    def test_something(tmp_path):
        outputs = run_ranks(__file__, "scenario", 2, str(tmp_path))

One process group per process: a scenario that needs another number of ranks is another call.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

_CHILD = """
import importlib.util, json, os, sys
path, name, arguments = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
sys.path[:0] = json.loads(sys.argv[4])
spec = importlib.util.spec_from_file_location("scenario", path)
module = importlib.util.module_from_spec(spec)
sys.modules["scenario"] = module
spec.loader.exec_module(module)
result = getattr(module, name)(*arguments)
from tzrec_core.engine.world import join_world
join_world().barrier()  # a rank that leaves first can take the others' connections with it
print("\\nRESULT " + json.dumps(result), flush=True)
os._exit(0)  # as the command line does: gloo may abort a process that takes its groups down
"""


def run_ranks(file: str, name: str, size: int, *arguments: Any, timeout_s: float = 120) -> list[Any]:
    """Call `name(*arguments)` of `file` in `size` processes; returns what each returned, by rank (JSON values).

    A process that fails fails the test, with the end of its output.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    here = Path(file).parent
    paths = json.dumps([str(here), str(here.parent / "tiny_plugin"), str(Path(__file__).parent)])
    command = [sys.executable, "-c", _CHILD, str(file), name, json.dumps(arguments), paths]
    processes = []
    for rank in range(size):
        env = {**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size),
               "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
               "OMP_NUM_THREADS": "1"}  # fmt: skip
        processes.append(
            subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
    outputs = []
    try:
        for process in processes:
            outputs.append(process.communicate(timeout=timeout_s)[0])
    finally:
        for process in processes:
            process.kill()
    for rank, (process, output) in enumerate(zip(processes, outputs)):
        assert process.returncode == 0, f"rank {rank} ended with {process.returncode}:\n{output[-6000:]}"
    return [json.loads(output.rpartition("\nRESULT ")[2]) for output in outputs]
