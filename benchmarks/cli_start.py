"""How long `tzrec list-models` takes with 30 plugins installed, beside a Python that does nothing.

    python benchmarks/cli_start.py [--runs 21] [--plugins 30]

Writes benchmarks/results/cli_start.md.
"""

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

TARGET_S = 0.4
HEAVY = ("torch", "torchrec", "fbgemm_gpu", "torchmetrics", "numpy", "pyarrow", "polars", "pandas", "tensorboard")
RESULT = Path(__file__).parent / "results" / "cli_start.md"

MANIFEST = """
from tzrec_core.plugins import Group, LossSpec, ModelSpec, Task, hookimpl


@hookimpl
def tzrec_specs():
    return [
        ModelSpec(name="fake_{number}", target="{package}.model:Fake", config="{package}.config_pb2:Fake",
                  task=Task.RANK, summary="Number {number} of the fake models.", groups=(Group("deep"),)),
        LossSpec(name="fake_loss_{number}", target="{package}.loss:Fake", config="{package}.config_pb2:FakeLoss",
                 summary="Number {number} of the fake losses."),
    ]
"""
METADATA = """Metadata-Version: 2.1
Name: tzrec-fake-{number}
Version: 0.1.0
Requires-Dist: tzrec-core<0.2,>=0.1
"""


def write_plugins(folder: Path, count: int) -> None:
    """Write `count` installed distributions, each with a manifest of two specs, as pip would leave them."""
    for number in range(count):
        package = f"tzrec_fake_{number}"
        info = folder / f"{package}-0.1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(METADATA.format(number=number))
        (info / "entry_points.txt").write_text(f"[tzrec.plugins]\nfake_{number} = {package}.plugin\n")
        (info / "RECORD").write_text("")
        (folder / package).mkdir()
        (folder / package / "__init__.py").write_text("")
        (folder / package / "plugin.py").write_text(MANIFEST.format(number=number, package=package))


def environment(folder: Path) -> dict[str, str]:
    """This process's environment, with the plugins in `folder` on the path and no choice among them."""
    chosen = {k: v for k, v in os.environ.items() if k not in ("TZREC_PLUGINS", "TZREC_PLUGIN_FILES")}
    return {**chosen, "PYTHONPATH": os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))}


def loaded_modules(command: list[str], env: dict[str, str]) -> tuple[str, set[str]]:
    """What `tzrec <command>` prints, and the top-level modules that are loaded at its end."""
    code = (
        "import atexit, sys; atexit.register(lambda: print('\\nMODULES', *{m.split('.')[0] for m in sys.modules}));"
        f"sys.argv = ['tzrec', *{command!r}];"
        "from tzrec_core.cli.app import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    printed, _, modules = done.stdout.rpartition("\nMODULES ")
    return printed, set(modules.split())


def seconds(command: list[str], env: dict[str, str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, env=env, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def row(name: str, times: list[float]) -> str:
    low, *_, high = statistics.quantiles(times, n=10)
    return f"| `{name}` | {statistics.median(times):.3f} | {low:.3f} | {high:.3f} |"


def cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=21)
    parser.add_argument("--plugins", type=int, default=30)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    try:
        write_plugins(folder, arguments.plugins)
        env = environment(folder)
        printed, modules = loaded_modules(["list-models"], env)
        assert printed.count("Number ") == arguments.plugins, printed
        heavy = sorted(modules & set(HEAVY))
        listing = [str(Path(sys.executable).with_name("tzrec")), "list-models"]
        nothing = [sys.executable, "-c", "pass"]
        seconds(listing, env)  # writes the .pyc files
        times: dict[str, list[float]] = {"tzrec list-models": [], "python -c pass": []}
        for _ in range(arguments.runs):
            times["tzrec list-models"].append(seconds(listing, env))
            times["python -c pass"].append(seconds(nothing, env))
    finally:
        shutil.rmtree(folder)
    libraries = ", ".join(f"{name} {version(name)}" for name in ("tzrec-core", "typer", "rich", "pluggy"))
    text = "\n".join(
        [
            "# Start of the command line",
            "",
            f"`tzrec list-models` with {arguments.plugins} plugins of two specs each, {arguments.runs} runs in turn",
            "with `python -c pass`, in seconds from start to end of the process. Target: a median below "
            f"{TARGET_S} s, no torch.",
            "",
            "| command | median | p10 | p90 |",
            "| --- | --- | --- | --- |",
            *(row(name, values) for name, values in times.items()),
            "",
            f"Heavy libraries imported: {', '.join(heavy) or 'none'}.",
            "",
            f"- machine: {cpu()}, {os.cpu_count()} cores, {platform.system()}",
            f"- versions: Python {platform.python_version()}, {libraries}",
            f"- command: `python benchmarks/cli_start.py --runs {arguments.runs} --plugins {arguments.plugins}`",
            "",
        ]
    )
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(text, encoding="utf-8")
    print(text)
    if heavy or statistics.median(times["tzrec list-models"]) >= TARGET_S:
        sys.exit("the target is missed")


if __name__ == "__main__":
    main()
