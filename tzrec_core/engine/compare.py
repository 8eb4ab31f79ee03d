"""Several configs trained on the same batches, with several seeds, each run in a process of its own."""

import hashlib
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from math import inf
from pathlib import Path
from typing import Any

import numpy as np

from tzrec_core import __version__
from tzrec_core.config import used_plugins
from tzrec_core.data.batch_plan import plan_batches
from tzrec_core.data.loader import BatchLoader, create_dataloader, reader_class
from tzrec_core.data.readers import Origin, Shuffle, rebatch
from tzrec_core.data.readers.files import find_files
from tzrec_core.engine.directions import directions
from tzrec_core.engine.leaderboard import Entry, Leaderboard, RunResult, write_leaderboard
from tzrec_core.engine.model_dir_lock import model_dir_lock
from tzrec_core.engine.setup import PIPELINE_CONFIG, build
from tzrec_core.errors import ConfigError, DataError, TzrecError
from tzrec_core.models import BaseModel, TrainWrapper

_log = logging.getLogger(__name__)

RUN_FILE = "run.json"  # also says that a folder is ours to replace
LOG_FILE = "log.txt"
# Parts of data_config that say what is made of the rows of a batch, and not which rows they are.
_NOT_THE_ROWS = {
    "fg_encoded",
    "fg_encoded_multival_sep",
    "fg_mode",
    "fg_threads",
    "force_base_data_group",
    "negative_sample_mask_prob",
    "pin_memory",
    "sample_mask_prob",
    "sample_weight_fields",
}


def compare(configs: Mapping[str, Any], output: str | Path, *, num_seeds: int = 3) -> Leaderboard:
    """Train each config with seeds 1 to `num_seeds`, one run after the other, and write a leaderboard.

    A run is a `tzrec train` in a process of its own and the model_dir `<output>/<name>/seed-<seed>`. One that has
    finished there before, with the same config, data files and versions, is not trained again. One that fails has its
    error on the leaderboard; the others go on.

    Args:
        configs: checked configs by the name that they get on the leaderboard.
        output: folder for the runs, leaderboard.md, leaderboard.json and leaderboard.png.
        num_seeds: runs of each config; >= 1.

    Raises:
        ConfigError: the configs do not train on the same batches for as many steps, or have nothing to evaluate on; or
            `output` cannot be used.
        DataError: the rows to train on cannot be read.
    """
    _check_names(configs)
    _check_same_rows(configs)
    seeds = range(1, num_seeds + 1)
    output = Path(output)
    with model_dir_lock(output), _killed_as_by_ctrl_c():
        for name in configs:
            for seed in seeds:
                _check_is_ours(output / name / f"seed-{seed}")
        num_steps, batches = _same_batches(configs, seeds)
        entries = {name: Entry(name) for name in configs}
        known: dict[str, bool] = {}
        total = len(configs) * len(seeds)
        # seed by seed, so that what there is after an interruption can be compared
        for number, (seed, name) in enumerate(((seed, name) for seed in seeds for name in configs), 1):
            folder = output / name / f"seed-{seed}"
            try:
                result = _run(configs[name], seed, folder, f"{name}, seed {seed} ({number} of {total})")
            except TzrecError as error:
                _log.warning("%s, seed %d failed: %s", name, seed, error)
                entries[name].errors[seed] = str(error)
            else:
                entries[name].runs.append(result)
        for name, entry in entries.items():
            if entry.runs:
                model = build(configs[name]).model
                entry.num_dense, entry.num_in_tables = _num_parameters(model)
                known |= directions(TrainWrapper(model).model)
        board = Leaderboard(list(entries.values()), list(seeds), num_steps, batches, known)
        write_leaderboard(board, output)
    return board


# What must be equal


def _check_names(configs: Mapping[str, Any]) -> None:
    if not configs:
        raise ConfigError("there is no config to compare")
    for name in configs:
        if not re.fullmatch(r"[\w.,=+-]+", name) or name.startswith("."):
            raise ConfigError(f"{name!r} cannot be the name of a folder; use letters, digits, _ and -")


def _check_same_rows(configs: Mapping[str, Any]) -> None:
    (first, wanted), *others = configs.items()
    problems = [
        f"{name}: eval_input_path is empty; set it to rows that are kept apart"
        for name, config in configs.items()
        if not config.eval_input_path
    ]
    for name, config in others:
        for path, here, there in _differences(config, wanted):
            problems.append(
                f"{name} has {path} = {here}, but {first} has {there}. Compared configs train and evaluate on the same "
                f"batches: make them equal, for instance with --set {path}=..., which holds for all"
            )
    if problems:
        raise ConfigError(problems)


def _differences(config: Any, wanted: Any) -> Iterator[tuple[str, str, str]]:
    """Path and both values of each setting that decides which rows are in a batch, where the two differ."""
    places = [("", field) for field in ("train_input_path", "eval_input_path")]
    places += [("data_config", field.name) for field in config.data_config.DESCRIPTOR.fields]
    places += [("eval_config", "num_steps")]
    for section, field in places:
        if field in _NOT_THE_ROWS:
            continue
        here, there = (getattr(c, section) if section else c for c in (config, wanted))
        if getattr(here, field) != getattr(there, field):
            yield f"{section}.{field}".removeprefix("."), _shown(here, field), _shown(there, field)


def _shown(message: Any, field: str) -> str:
    value, kind = getattr(message, field), message.DESCRIPTOR.fields_by_name[field]
    if kind.enum_type:
        return str(kind.enum_type.values_by_number[value].name)
    if kind.message_type:
        return "{ " + ", ".join(str(value).split("\n")).strip(", ") + " }" if str(value) else "nothing"
    return json.dumps(list(value) if kind.is_repeated else value)


def _same_batches(configs: Mapping[str, Any], seeds: range) -> tuple[int, dict[int, str]]:
    """Steps of every run and, by seed, the hash of the rows of all its batches.

    Raises:
        ConfigError: the configs differ in one of them.
        DataError: a row cannot be read.
    """
    first = next(iter(configs))
    steps = {name: _num_steps(config, _loader(config, 0).num_batches) for name, config in configs.items()}
    for name, num_steps in steps.items():
        if num_steps != steps[first]:
            raise ConfigError(
                f"{name} trains for {num_steps} steps, but {first} for {steps[first]} (train_config.num_steps and "
                "num_epochs). Train all for as many: --set train_config.num_steps=..."
            )
    hashes = {}
    for seed in seeds:
        found = {name: hash_of_batches(config, seed, steps[first]) for name, config in configs.items()}
        for name, value in found.items():
            if value != found[first]:
                raise ConfigError(
                    f"with seed {seed}, {name} trains on other batches (hash {value}) than {first} ({found[first]}); "
                    "did the data change meanwhile? Start again"
                )
        hashes[seed] = found[first]
        who = f", equal for all {len(found)}" if len(found) > 1 else ""
        _log.info("seed %d: the rows of all %d batches have the hash %s%s", seed, steps[first], found[first], who)
    return steps[first], hashes


def _num_steps(config: Any, num_batches: int) -> int:
    settings = config.train_config
    num_epochs = settings.num_epochs or (inf if settings.num_steps else 1)
    return int(min(settings.num_steps or inf, num_epochs * num_batches))


def _loader(config: Any, seed: int) -> BatchLoader:
    loader = create_dataloader(config.data_config, [], config.train_input_path, seed=seed)
    if not loader.num_batches:
        raise DataError(f"there are no rows to train on in {loader.name}, or not enough for a batch")
    if not loader.order_key()["in_order"]:
        raise ConfigError(
            "data_config.in_order is false: whichever worker is faster then gives a batch, so no two runs train on the "
            "same ones. Add --set data_config.in_order=true"
        )
    return loader


def hash_of_batches(config: Any, seed: int, num_steps: int) -> str:
    """A hash of the files and rows that stand in each batch of a training run, in order; 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for sources, rows in rows_of_batches(config, seed, num_steps):
        digest.update(json.dumps(sources).encode())
        digest.update(rows.astype("<i8").tobytes())
    return digest.hexdigest()[:16]


def rows_of_batches(config: Any, seed: int, num_steps: int) -> Iterator[tuple[list[str], np.ndarray]]:
    """The rows of each batch of a training run in one process, read anew in the order in which a run reads them.

    Args:
        config: the checked config.
        seed: of the run; >= 0.
        num_steps: batches to tell.

    Yields:
        files of a batch; and for each row, int64 (rows, 2), the index of its file among them and its row in that file.
    """
    loader, data_config = _loader(config, seed), config.data_config
    key = loader.order_key()
    plan = plan_batches(
        loader.num_rows,
        loader.batch_size,
        num_workers=key["num_workers"],
        drop_remainder=data_config.drop_remainder,
    )
    columns = list(data_config.label_fields)
    reader = reader_class(data_config)(
        config.train_input_path, batch_size=loader.batch_size, columns=columns, data_config=data_config
    )
    for step in range(num_steps):
        epoch, batch = divmod(step, plan.num_batches)
        if batch == 0:
            shuffle = Shuffle(seed, epoch, key["window_rows"]) if key["window_rows"] else None
            parts = [plan.part(worker) for worker in range(plan.num_workers)]
            workers = [
                rebatch(reader.read_rows(rows.start, rows.stop, shuffle=shuffle), sizes) for rows, sizes in parts
            ]
        block = next(workers[batch % plan.num_workers])
        sources, rows = _rows_of(block.origins)
        yield sources, rows if block.order is None else rows[block.order]


@lru_cache(maxsize=4)  # the batches of a shuffle's window have the same origins
def _rows_of(origins: tuple[Origin, ...]) -> tuple[list[str], np.ndarray]:
    sources = list(dict.fromkeys(origin.source for origin in origins))
    parts = []
    for origin in origins:
        rows = np.arange(origin.first_row, origin.first_row + origin.num_rows)
        parts.append(np.stack([np.full_like(rows, sources.index(origin.source)), rows], axis=1))
    return sources, np.concatenate(parts)


# A run


def _check_is_ours(folder: Path) -> None:
    if folder.exists() and any(folder.iterdir()) and not (folder / RUN_FILE).exists():
        raise ConfigError(f"{folder} holds something else than a run of `tzrec compare`; give another --output")


def _run(config: Any, seed: int, folder: Path, what: str) -> RunResult:
    """Train one config with one seed, unless it has been.

    Raises:
        ConfigError: another process trains in the folder.
        TzrecError: the run failed, with the words of its error.
    """
    mine = type(config)()
    mine.CopyFrom(config)
    mine.model_dir, mine.train_config.seed = str(folder), seed
    key = _key(mine)
    if finished := _read_run(folder, key):
        _log.info("%s: finished before with this config and data, not trained again", what)
        return finished
    if folder.exists():
        with model_dir_lock(folder):  # a run may have outlived the process that started it
            shutil.rmtree(folder)
    folder.mkdir(parents=True)
    _write_json(folder / RUN_FILE, {"key": key})
    (folder / PIPELINE_CONFIG).write_text(str(mine), encoding="utf-8")
    _log.info("%s: training, see %s", what, folder / LOG_FILE)
    started = time.perf_counter()
    command = [sys.executable, "-m", "tzrec_core.cli.app", "train", str(folder / PIPELINE_CONFIG), "--json"]
    with (folder / LOG_FILE).open("w", encoding="utf-8") as log:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=log, stdin=subprocess.DEVNULL, text=True)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise TzrecError(_cause(done.returncode, folder / LOG_FILE))
    trained = json.loads(done.stdout)
    if trained["stopped"]:
        raise TzrecError(
            f"it stopped at step {trained['step']}: {trained['stopped']}. Compared runs take the same number of steps"
        )
    result = {
        "seed": seed,
        "model_dir": str(folder),
        "metrics": trained["metrics"],
        "samples_per_second": trained["samples_per_second"],
        "seconds": seconds,
    }
    _write_json(folder / RUN_FILE, {"key": key, "result": result})
    finished = _read_run(folder, key)
    assert finished is not None
    _log.info("%s: %s in %.0f s", what, "  ".join(f"{k} {v:.4f}" for k, v in finished.metrics.items()), seconds)
    return finished


def _key(config: Any) -> str:
    """What a finished run must have been made of to count again."""
    made_of = [str(config), __version__, used_plugins(config), _files(config)]
    return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()


def _files(config: Any) -> list[tuple[str, int, int]]:
    """Size and time of the local files that are trained and evaluated on."""
    found: list[str] = []
    for path in (config.train_input_path, config.eval_input_path):
        with suppress(DataError):  # a plugin's reader may take something else than files
            found += find_files(path)
    stats = [(file, os.stat(file)) for file in found if os.path.exists(file)]
    return [(file, stat.st_size, stat.st_mtime_ns) for file, stat in stats]


def _read_run(folder: Path, key: str) -> RunResult | None:
    with suppress(OSError, ValueError):
        run = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
        if run["key"] == key and "result" in run:
            result = run["result"]
            # JSON has no NaN: null stands for it
            metrics = {name: float("nan") if value is None else value for name, value in result["metrics"].items()}
            return RunResult(**{**result, "metrics": metrics})
    return None


def _write_json(path: Path, value: Any) -> None:
    part = path.with_suffix(".part")  # whole or not at all, whenever the process ends
    part.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    part.replace(path)


def _cause(code: int, log: Path) -> str:
    """Why a run failed: the error that it printed."""
    if code < 0:
        name = signal.Signals(-code).name
        hint = "; the system may have been out of memory" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{hint}"
    text = log.read_text(encoding="utf-8", errors="replace").strip()
    _, found, error = text.rpartition("\nerror: ") if "\nerror: " in text else text.partition("error: ")
    return error if found else (text.splitlines() or [f"exit code {code}"])[-1]


def _num_parameters(model: BaseModel) -> tuple[int, int]:
    """Parameters outside of embedding tables, and in them."""
    tables = {id(table): table.numel() for part in model.sparse_parameters() for table in part}
    return sum(p.numel() for p in model.parameters() if id(p) not in tables), sum(tables.values())


@contextmanager
def _killed_as_by_ctrl_c() -> Iterator[None]:
    """Within the block SIGTERM ends the run that is going on too."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
