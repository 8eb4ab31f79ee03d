"""Turn MovieLens-100k into train.parquet and eval.parquet, with a label and leak-free user histories.

    python examples/movielens/prepare.py --out examples/movielens/data

The ratings come from the wheel of `recbole==1.2.1`, which is downloaded without dependencies and only read
as a zip file. README.md beside this file describes the columns and the split. A second run with the same
settings does nothing.
"""

import argparse
import csv
import hashlib
import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

WHEEL = "recbole-1.2.1-py3-none-any.whl"
WHEEL_SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
LIKED_FROM = 4  # stars
EVAL_SHARE = 0.2
HISTORY_STEPS = 50
FORMAT = 1  # of the files; count up when their content changes, so that old ones are rebuilt


class PrepareError(Exception):
    """The data cannot be fetched or read; the message says what to do."""


def prepare(out: Path, *, wheel: Path | None = None, history_steps: int = HISTORY_STEPS) -> bool:
    """Write train.parquet, eval.parquet and prepared.json into `out`, unless they are there and unchanged.

    Args:
        wheel: a local copy of the recbole wheel; None downloads it into `out`/cache.
        history_steps: how many of the latest earlier interactions a history keeps; >= 1.

    Returns:
        Whether anything had to be written.

    Raises:
        PrepareError: the wheel cannot be fetched, or holds other data than expected.
    """
    if history_steps < 1:
        raise PrepareError(f"--history {history_steps}: a history keeps at least 1 step.")
    stamp_path = out / "prepared.json"
    settings: dict[str, int | str] = {"format": FORMAT, "wheel_sha256": WHEEL_SHA256, "history_steps": history_steps}
    if _is_done(out, stamp_path, settings):
        return False
    out.mkdir(parents=True, exist_ok=True)
    ratings, users, items = read_wheel(wheel or fetch_wheel(out / "cache"))
    train, evaluation = build_tables(ratings, users, items, history_steps=history_steps)
    stamp_path.unlink(missing_ok=True)
    files = {}
    for name, table in (("train.parquet", train), ("eval.parquet", evaluation)):
        pq.write_table(table, out / name, compression="zstd", row_group_size=16384)
        files[name] = {"rows": table.num_rows, "sha256": _sha256(out / name)}
    stamp_path.write_text(json.dumps({"settings": settings, "files": files}, indent=2) + "\n")
    return True


def fetch_wheel(cache: Path) -> Path:
    """Download the wheel into `cache` with pip, unless an intact copy is there, and return its path."""
    path = cache / WHEEL
    if path.exists() and _sha256(path) == WHEEL_SHA256:
        return path
    path.unlink(missing_ok=True)
    requirement = "recbole==1.2.1"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
    command += ["--disable-pip-version-check", "--dest", str(cache), requirement]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0 or not path.exists():
        last = (done.stderr.strip() or done.stdout.strip() or f"no {WHEEL} came").splitlines()[-1]
        raise PrepareError(
            f"Could not download {requirement}, the package that carries MovieLens-100k: {last}\n"
            f"Without a network, run `pip download --no-deps {requirement}` on a machine that has one, "
            f"and pass the file: --wheel PATH/{WHEEL}"
        )
    return path


def read_wheel(path: Path) -> tuple[np.ndarray, dict[int, list[str]], dict[int, list[str]]]:
    """The three tables of MovieLens-100k.

    Returns:
        ratings, (N, 4) int64 in file order: user, item, stars 1-5, timestamp in seconds;
        users by id: [age, gender, occupation, zip code]; items by id: [title, year, genres].
    """
    if not path.is_file():
        raise PrepareError(f"--wheel {path}: no such file. Leave --wheel out to download it.")
    if _sha256(path) != WHEEL_SHA256:
        raise PrepareError(
            f"{path} is not the published {WHEEL} (its SHA-256 differs). "
            "Delete it and run again, or pass an intact copy with --wheel."
        )
    with zipfile.ZipFile(path) as archive:
        ratings = np.array([[int(float(value)) for value in row] for row in _rows(archive, "inter")])
        users = {int(row[0]): row[1:] for row in _rows(archive, "user")}
        items = {int(row[0]): row[1:] for row in _rows(archive, "item")}
    return ratings, users, items


def build_tables(
    ratings: np.ndarray,
    users: dict[int, list[str]],
    items: dict[int, list[str]],
    *,
    history_steps: int,
) -> tuple[pa.Table, pa.Table]:
    """Split by time, add the histories and join the attributes.

    Args:
        ratings: (N, 4) as `read_wheel` returns them, in any order.

    Returns:
        The train table, shuffled once with a fixed seed so that a reader that does not shuffle sees mixed
        batches, and the eval table, by user and time.
    """
    ratings = ratings[np.lexsort((ratings[:, 3], ratings[:, 0]))]  # stable: ties keep the order of the file
    user_ids, starts, counts = np.unique(ratings[:, 0], return_index=True, return_counts=True)
    ends = starts + counts - np.floor(EVAL_SHARE * counts).astype(np.int64)  # of each user's training part
    user_of = np.repeat(np.arange(len(user_ids)), counts)
    is_eval = np.arange(len(ratings)) >= ends[user_of]

    begin = starts[user_of]
    stop = np.minimum(_first_of_same_moment(ratings), ends[user_of])
    is_liked = ratings[:, 2] >= LIKED_FROM
    columns = {
        "user_id": ratings[:, 0],
        "item_id": ratings[:, 1],
        "timestamp": ratings[:, 3],
        **_user_columns(ratings[:, 0], users),
        **_item_columns(ratings[:, 1], items),
        **_history("hist", ratings, np.ones_like(is_liked), begin, stop, history_steps),
        **_history("liked", ratings, is_liked, begin, stop, history_steps),
        **_history("disliked", ratings, ~is_liked, begin, stop, history_steps),
        "rating": ratings[:, 2],
        "label": is_liked.astype(np.int64),
    }
    table = pa.table(columns)
    train_rows = np.flatnonzero(~is_eval)
    train_rows = train_rows[np.random.RandomState(0).permutation(len(train_rows))]
    return table.take(pa.array(train_rows)), table.filter(pa.array(is_eval))


def _first_of_same_moment(ratings: np.ndarray) -> np.ndarray:
    """For each row, the first row of the same user with the same timestamp; rows sorted by user and time."""
    new = np.ones(len(ratings), bool)
    new[1:] = (ratings[1:, [0, 3]] != ratings[:-1, [0, 3]]).any(axis=1)
    return np.maximum.accumulate(np.where(new, np.arange(len(ratings)), 0))


def _history(
    name: str, ratings: np.ndarray, is_step: np.ndarray, begin: np.ndarray, stop: np.ndarray, steps: int
) -> dict[str, pa.Array]:
    """Columns of the sequence `name`: the last `steps` rows of begin:stop where `is_step`, oldest first."""
    rows = np.flatnonzero(is_step)
    before = np.concatenate([[0], np.cumsum(is_step)])  # how many steps lie before a row
    last = before[stop]
    lengths = np.minimum(last - before[begin], steps)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    taken = ratings[rows[np.repeat(last - lengths, lengths) + within]]
    arrays = {"item_id": taken[:, 1], "rating": taken[:, 2]} if name == "hist" else {"item_id": taken[:, 1]}
    return {
        f"{name}__{feature}": pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values))
        for feature, values in arrays.items()
    }


def _user_columns(ids: np.ndarray, users: dict[int, list[str]]) -> dict[str, pa.Array]:
    age, gender, occupation, zip_code = zip(*(users[user] for user in ids.tolist()))
    return {
        "age": pa.array([int(value) for value in age], pa.int64()),
        "gender": pa.array(gender),
        "occupation": pa.array(occupation),
        "zip_code": pa.array(zip_code),
    }


def _item_columns(ids: np.ndarray, items: dict[int, list[str]]) -> dict[str, pa.Array]:
    title, year, genres = zip(*(items[item] for item in ids.tolist()))
    return {
        "title": pa.array(title),
        # One item has no known year; it stays null, and the model's default takes its place.
        "year": pa.array([int(value) if value.isdigit() else None for value in year], pa.int64()),
        "genres": pa.array([value.split(" ") for value in genres], pa.list_(pa.string())),
    }


def _rows(archive: zipfile.ZipFile, suffix: str) -> list[list[str]]:
    text = archive.read(f"recbole/dataset_example/ml-100k/ml-100k.{suffix}").decode("utf-8")
    rows = csv.reader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE)
    return list(rows)[1:]


def _is_done(out: Path, stamp_path: Path, settings: dict[str, int | str]) -> bool:
    try:
        stamp = json.loads(stamp_path.read_text())
        return stamp["settings"] == settings and all(
            _sha256(out / name) == facts["sha256"] for name, facts in stamp["files"].items()
        )
    except (OSError, ValueError, KeyError):
        return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Turn MovieLens-100k into train.parquet and eval.parquet.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "data", help="folder to write to")
    parser.add_argument("--wheel", type=Path, help="a local copy of the recbole wheel, instead of a download")
    parser.add_argument("--history", type=int, default=HISTORY_STEPS, help="steps that a history keeps")
    args = parser.parse_args(argv)
    try:
        written = prepare(args.out, wheel=args.wheel, history_steps=args.history)
    except PrepareError as error:
        print(error, file=sys.stderr)
        return 1
    files = json.loads((args.out / "prepared.json").read_text())["files"]
    rows = ", ".join(f"{name} {facts['rows']:,} rows" for name, facts in files.items())
    print(f"{'Wrote' if written else 'Up to date:'} {rows} in {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
