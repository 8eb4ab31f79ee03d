"""What the engine costs beside a hand-written torchrec loop, on Criteo-shaped data.

    python benchmarks/engine.py [--quick] [--only step,end_to_end,memory,first_step,options,processes] [--profile]

Writes benchmarks/results/engine.md. What is compared takes turns, each side in a process of its own, as in real life:
step by step, or run by run for whole runs of `tzrec train`.
"""

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RESULT = HERE / "results" / "engine.md"
DEMO = ROOT / "examples" / "movielens"
TZREC = str(Path(sys.executable).with_name("tzrec"))
NETS = {"deepfm": "DeepFM", "dlrm": "DLRM"}
DIMS = {"deepfm": (16, 4), "dlrm": (16,)}  # of the tables of each id, in criteo_shaped.py
NUM_IDS = 26
_CHECKED_STEPS = 3
STEP_TARGET, END_TO_END_TARGET, MEMORY_TARGET_GB, FIRST_STEP_TARGET_S = 0.97, 0.85, 1.5, 8.0


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        num_ids: rows per embedding table.
        num_steps: of each side, after `warm_up`.
        num_runs: of whole processes.
        num_train_steps: of a `tzrec train`.
    """

    batch_size: int = 8192
    num_ids: tuple[int, ...] = (100_000, 1_000_000)
    num_threads: tuple[int, ...] = (1, 2)
    num_steps: int = 44
    warm_up: int = 8  # the engine looks closer at the first ten batches of a run
    num_runs: int = 3
    num_train_steps: int = 80


FULL = Size()
SIZES = {
    "full": FULL,
    "quick": replace(FULL, num_ids=(100_000,), num_steps=12, num_runs=1, num_train_steps=20),
    "toy": Size(256, (1000,), (1,), num_steps=4, warm_up=2, num_runs=1, num_train_steps=8),
}


@dataclass(frozen=True)
class Row:
    """A line of the table; `is_met` is None where there is no target."""

    name: str
    target: str
    value: str
    spread: str
    is_met: bool | None = None

    def cells(self) -> str:
        met = {True: "yes", False: "**no**", None: ""}[self.is_met]
        return f"| {self.name} | {self.target} | {self.value} | {self.spread} | {met} |"


# Steps


def step_rows(size: Size) -> Iterator[Row]:
    for threads in size.num_threads:
        for net, title in NETS.items():
            for num_ids in size.num_ids:
                name = f"engine step / torchrec loop, {title}, {num_ids:,} rows a table, {_count(threads, 'thread')}"
                yield _step_row(name, net, num_ids, size, threads)


def _step_row(name: str, net: str, num_ids: int, size: Size, threads: int) -> Row:
    with _workers({"engine": {"kind": "engine"}, "hand": {"kind": "hand"}}, net, num_ids, size, threads) as (
        engine,
        hand,
    ):
        difference = _largest_difference(engine, hand)
        seconds = take_turns([engine, hand], size)
    times = seconds.pop("engine")
    hand_name, hand_times = min(seconds.items(), key=lambda item: statistics.median(item[1]))
    ratio = statistics.median(hand_times) / statistics.median(times)
    spread = (
        f"{_spread_ms(times)} / {_spread_ms(hand_times)} ({hand_name}); of p10: "
        f"{_p10(hand_times) / _p10(times):.3f}; losses differ by {difference:.0e}"
    )
    return Row(name, f">= {STEP_TARGET}", f"{ratio:.3f}", spread, ratio >= STEP_TARGET)


def _largest_difference(engine: "Worker", hand: "Worker") -> float:
    """Between the losses of the first steps from equal parameters, of which there must be equally many."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/parameters"
        assert engine.ask("save", path) == hand.ask("load", path)
    pairs = [(engine.ask("step", "engine")[1], hand.ask("step", hand.sides[0])[1]) for _ in range(_CHECKED_STEPS)]
    return max(abs(a - b) for a, b in pairs)


def option_rows(size: Size) -> Iterator[Row]:
    num_ids = size.num_ids[0]
    options = {
        "float32": [],
        "bf16": ["train_config.mixed_precision=BF16"],
        "torch_compile": ["train_config.torch_compile=true"],
        "bf16 and torch_compile": ["train_config.mixed_precision=BF16", "train_config.torch_compile=true"],
    }
    for threads in size.num_threads:
        settings = {name: {"kind": "engine", "changes": changes} for name, changes in options.items()}
        with _workers(settings, "deepfm", num_ids, size, threads) as workers:
            first = {worker.name: worker.ask("step", "engine")[0] for worker in workers}
            seconds = take_turns(workers, size)
        base = seconds.pop("float32")
        for option, times in seconds.items():
            yield Row(
                f"step with {option} / float32, DeepFM, {num_ids:,} rows a table, {_count(threads, 'thread')}",
                "",
                f"{statistics.median(base) / statistics.median(times):.2f} x",
                f"{_spread_ms(times)} / {_spread_ms(base)}; its first step takes {first[option]:.1f} s",
            )


def take_turns(workers: Sequence["Worker"], size: Size) -> dict[str, list[float]]:
    """Seconds of each step, by side, or by worker where it has one side; each round goes the other way round."""
    turns = [
        (worker, side, side if len(worker.sides) > 1 else worker.name) for worker in workers for side in worker.sides
    ]
    seconds: dict[str, list[float]] = {name: [] for _, _, name in turns}
    for number in range(size.warm_up + size.num_steps):
        for worker, side, name in turns:
            taken, _ = worker.ask("step", side)
            if number >= size.warm_up:
                seconds[name].append(taken)
        turns.reverse()
    return seconds


class Worker:
    """A process that takes steps on demand, see `serve` in engine_sides.py.

    Attributes:
        name: as given.
        sides: names of its sides; waits for it to be ready.
    """

    def __init__(self, name: str, environment: dict[str, str], arguments: dict[str, Any]) -> None:
        self.name = name
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (open as long as the process)
        self._process = subprocess.Popen(
            _side_command("serve", arguments),
            env=environment,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    @cached_property
    def sides(self) -> list[str]:
        return self._answer()

    def ask(self, what: str, name: str) -> Any:
        """Send a line and wait for its answer."""
        assert self._process.stdin is not None and self.sides
        print(json.dumps([what, name]), file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            sys.exit(f"{self.name} failed:\n{self._errors.read()}")
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        self._process.communicate()
        self._errors.close()


@contextmanager
def _workers(
    settings: dict[str, dict[str, Any]], net: str, num_ids: int, size: Size, threads: int
) -> Iterator[list[Worker]]:
    shared = {
        "net": net,
        "num_ids": num_ids,
        "batch_size": size.batch_size,
        "num_batches": size.warm_up + size.num_steps,
    }
    with ExitStack() as stack:
        workers = []
        for name, arguments in settings.items():
            worker = Worker(name, _environment(threads), {**shared, **arguments})
            stack.callback(worker.close)
            workers.append(worker)
        yield workers


# Whole runs


def end_to_end_rows(size: Size) -> Iterator[Row]:
    threads, num_ids = max(size.num_threads), size.num_ids[0]
    for net, title in NETS.items():
        with _tables(size, net, num_ids, size.num_train_steps) as config:
            runs: list[TrainRun] = []
            hand_rates: list[float] = []
            for _ in range(size.num_runs):
                with _workers({"hand": {"kind": "hand"}}, net, num_ids, size, threads) as workers:
                    seconds = take_turns(workers, size)
                hand_rates.append(size.batch_size * size.num_steps / min(map(sum, seconds.values())))
                runs.append(train(config, threads))
        rates = [run.rows_per_s for run in runs]
        ratio = statistics.median(rates) / statistics.median(hand_rates)
        waited = statistics.median(run.data_wait for run in runs)
        wall = statistics.median(run.seconds for run in runs)
        rows = size.num_train_steps * size.batch_size
        yield Row(
            f"tzrec train from Parquet, one worker / torchrec loop in memory, {title}, {num_ids:,} rows a table, "
            + _count(threads, "core"),
            f">= {END_TO_END_TARGET}",
            f"{ratio:.3f}",
            f"{_spread_rate(rates)} / {_spread_rate(hand_rates)}; waiting for data {waited:.0%}; "
            f"{rows:,} rows with start and checkpoint: {wall:.1f} s",
            ratio >= END_TO_END_TARGET,
        )


def process_rows(size: Size) -> Iterator[Row]:
    with _tables(size, "deepfm", size.num_ids[0], size.num_train_steps) as config:
        rates: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(size.num_runs):
            for num_processes, found in rates.items():
                found.append(train(config, 1, "--nproc", str(num_processes)).rows_per_s)
    ratio = statistics.median(rates[2]) / statistics.median(rates[1])
    name = f"2 processes / 1, one thread each, DeepFM, {size.num_ids[0]:,} rows a table, 2 cores"
    yield Row(name, "", f"{ratio:.2f} x", f"{_spread_rate(rates[2])} / {_spread_rate(rates[1])}")


def memory_rows(size: Size) -> Iterator[Row]:
    num_ids, num_steps = max(size.num_ids), min(size.num_train_steps, 20)
    tables = NUM_IDS * num_ids * sum(DIMS["deepfm"]) * 4 / 1e9
    state = NUM_IDS * num_ids * len(DIMS["deepfm"]) * 4 / 1e9
    limit = tables + state + MEMORY_TARGET_GB
    for title, every in {"without": 0, "with": num_steps // 2}.items():
        with _tables(size, "deepfm", num_ids, num_steps) as config:
            peaks = [
                train(config, max(size.num_threads), "--set", f"train_config.save_checkpoints_steps={every}").peak_gb
                for _ in range(size.num_runs)
            ]
        peak = statistics.median(peaks)
        yield Row(
            f"peak memory of the main process, DeepFM, {num_ids:,} rows a table, {title} a checkpoint on the way",
            f"<= {limit:.2f} GB",
            f"{peak:.2f} GB",
            f"{min(peaks):.2f} to {max(peaks):.2f} GB; tables {tables:.2f}, optimizer {state:.2f}",
            peak <= limit,
        )


def first_step_rows(size: Size) -> Iterator[Row]:
    if (DEMO / "data" / "train.parquet").exists():
        runs = [_first_step(str(DEMO / "deepfm.config")) for _ in range(max(size.num_runs, 3))]
        what = "the demo"
    else:  # `make demo` has not been run
        with _tables(size, "deepfm", size.num_ids[0], 4) as config:
            runs = [_first_step(config) for _ in range(max(size.num_runs, 3))]
        what = "DeepFM on Criteo-shaped rows"
    totals = [run["total"] for run in runs]
    middle = sorted(runs, key=lambda run: run["total"])[len(runs) // 2]
    split = ", ".join(f"{name} {seconds:.2f}" for name, seconds in middle["split"].items())
    value = statistics.median(totals)
    yield Row(
        f"config to first step of {what}, fresh process",
        f"< {FIRST_STEP_TARGET_S:.0f} s",
        f"{value:.1f} s",
        f"{min(totals):.1f} to {max(totals):.1f} s; {split}",
        value < FIRST_STEP_TARGET_S,
    )


def _first_step(config: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        script = str(HERE / "engine_first_step.py")
        arguments = [config, "--set", f"model_dir={folder}/run", "--set", "train_config.num_steps=1"]
        arguments += ["--set", 'eval_input_path=""']
        return _last_line([sys.executable, script, str(time.time()), *arguments], _environment(None))


_LOG_EVERY = 4


@dataclass(frozen=True)
class TrainRun:
    """A finished `tzrec train`.

    Attributes:
        seconds: from start to end of its process.
        rows_per_s: of its training steps, but for the first `_LOG_EVERY`, in which the data workers start.
        data_wait: share of their time in which it waited for data.
        peak_gb: most memory of its main process.
    """

    seconds: float
    rows_per_s: float
    data_wait: float
    peak_gb: float


def train(config: str, threads: int, *arguments: str) -> TrainRun:
    """Run `tzrec train` afresh."""
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as output:
        command = [TZREC, "train", config, "--set", f"model_dir={folder}", *arguments]
        command += ["--set", f"train_config.log_step_count_steps={_LOG_EVERY}"]
        start = time.perf_counter()
        process = subprocess.Popen(command, env=_environment(threads), cwd=ROOT, stdout=output, stderr=output)
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            sys.exit(f"{shlex.join(command)} failed:\n{output.read()}")
        windows = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()][1:]
    return TrainRun(
        seconds,
        # windows of equal numbers of rows: the rate of all of them is the harmonic mean
        statistics.harmonic_mean([window["samples_per_second"] for window in windows]),
        statistics.fmean(window["data_wait"] for window in windows),
        # the system's number is that of the largest among the process and its data workers, which are smaller
        used.ru_maxrss * 1024 / 1e9,
    )


@contextmanager
def _tables(size: Size, net: str, num_ids: int, num_batches: int) -> Iterator[str]:
    """A config, as path, and the files that it trains on."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {"num_ids": num_ids, "batch_size": size.batch_size, "num_batches": num_batches, "num_workers": 1}
        yield call("write_tables", _environment(1), folder=folder, net=net, **settings)


# Processes


def call(function: str, environment: dict[str, str], **arguments: Any) -> Any:
    """The answer of a function of engine_sides.py in a fresh process."""
    return _last_line(_side_command(function, arguments), environment)


def _side_command(function: str, arguments: dict[str, Any]) -> list[str]:
    return [sys.executable, str(HERE / "engine_sides.py"), function, json.dumps(arguments)]


def _last_line(command: list[str], environment: dict[str, str]) -> Any:
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{shlex.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout.strip().rpartition("\n")[2])


def _environment(threads: int | None) -> dict[str, str]:
    """This process's environment with so many OpenMP threads; None = as many as there are cores."""
    kept = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "TZREC_PLUGINS")}
    chosen = {"TZREC_PLUGIN_FILES": str(HERE / "dlrm_shaped" / "dlrm_shaped.py"), "PYTHONWARNINGS": "ignore"}
    return {**kept, **chosen, **({} if threads is None else {"OMP_NUM_THREADS": str(threads)})}


# The table


def _p10(values: Sequence[float]) -> float:
    return statistics.quantiles(values, n=10, method="inclusive")[0]


def _spread_ms(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds) * 1e3:.1f} ms (p10 {_p10(seconds) * 1e3:.1f})"


def _spread_rate(rates: Sequence[float]) -> str:
    return f"{statistics.median(rates):,.0f} rows/s ({min(rates):,.0f} to {max(rates):,.0f})"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number > 1 else ''}"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _profiles(size: Size) -> list[str]:
    settings = {"batch_size": size.batch_size, "num_steps": min(size.num_steps, 8), "warm_up": size.warm_up}
    lines: list[str] = []
    for net, title in NETS.items():
        top = call("top_five", _environment(1), net=net, num_ids=size.num_ids[0], **settings)
        lines += [f"Most of the engine's step of {title}, {size.num_ids[0]:,} rows a table, 1 thread:", "", "```"]
        lines += [*top, "```", ""]
    return lines


def _text(rows: list[Row], size: Size, profiles: list[str], command: str) -> str:
    libraries = ("torch", "torchrec", "fbgemm-gpu-cpu", "pyarrow", "tzrec-core")
    versions = ", ".join(f"{name} {version(name)}" for name in libraries)
    return "\n".join(
        [
            "# The engine beside a hand-written torchrec loop",
            "",
            "Rows shaped as Criteo's: 13 numbers, 26 ids whose frequency falls as rank^-1.05. Embeddings of width 16,",
            f"batches of {size.batch_size:,}, layers of 512, 256 and 128, row-wise Adagrad inside the backward pass,",
            "Adam for the rest. The loop is EmbeddingBagCollection, DistributedModelParallel and batches in memory,",
            "plain or in torchrec's TrainPipelineBase, whichever is faster. Ratios are of speeds: above 1, the first",
            f"side is faster. Medians of {size.num_steps} steps or {size.num_runs} runs of each side, in turn.",
            "",
            "| | target | value | medians; spread | met |",
            "| --- | --- | --- | --- | --- |",
            *(row.cells() for row in rows),
            "",
            *profiles,
            f"- machine: {_cpu()}, {os.cpu_count()} cores, {platform.system()}",
            f"- versions: Python {platform.python_version()}, {versions}",
            f"- command: `{command}`",
            "",
        ]
    )


SECTIONS: dict[str, Callable[[Size], Iterator[Row]]] = {
    "step": step_rows,
    "end_to_end": end_to_end_rows,
    "memory": memory_rows,
    "first_step": first_step_rows,
    "options": option_rows,
    "processes": process_rows,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--quick", action="store_const", const="quick", dest="size", help="small tables, few steps")
    sizes.add_argument("--toy", action="store_const", const="toy", dest="size", help="proves that it runs, no more")
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, separated by commas")
    parser.add_argument("--profile", action="store_true", help="also when all targets are met")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.set_defaults(size="full")
    arguments = parser.parse_args()
    size = SIZES[arguments.size]
    wanted = arguments.only.split(",")
    if unknown := set(wanted) - set(SECTIONS):
        parser.error(f"no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: max(size.num_threads)])
    rows: list[Row] = []
    for name in wanted:
        for row in SECTIONS[name](size):
            print(row.cells(), flush=True)
            rows.append(row)
    missed = [row.name for row in rows if row.is_met is False]
    profiles = _profiles(size) if arguments.profile or missed else []
    text = _text(rows, size, profiles, shlex.join(["python", "benchmarks/engine.py", *sys.argv[1:]]))
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text(text, encoding="utf-8")
    print(text)
    if missed:
        sys.exit("missed: " + "; ".join(missed))


if __name__ == "__main__":
    main()
