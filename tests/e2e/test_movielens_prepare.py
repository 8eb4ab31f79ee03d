"""The MovieLens example's data: the split, the histories, and what happens without a network.

The tables are hand-made; nothing is downloaded.
"""

import hashlib
import importlib.util
import subprocess
import zipfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "movielens" / "prepare.py"
USERS = {7: ["24", "M", "writer", "85711"], 9: ["53", "F", "other", "94043"]}
ITEMS = {i: [f"Film {i}", "unkonwn" if i == 3 else str(1990 + i), "Drama War"] for i in range(1, 12)}
# User 7 rates eleven films, two of them to eval (floor(0.2 * 11)); 4 and 5 at one moment, and 9 and 10 too.
TIMES_7 = [10, 20, 30, 40, 40, 50, 60, 70, 80, 80, 90]
STARS_7 = [5, 1, 4, 3, 5, 2, 4, 4, 1, 5, 5]
RATINGS = np.array(
    [[7, i + 1, STARS_7[i], TIMES_7[i]] for i in range(11)]
    + [[9, 1, 4, 25], [9, 2, 2, 15], [9, 3, 5, 35], [9, 4, 3, 5]]
)


@pytest.fixture(scope="module")
def prepare() -> ModuleType:
    spec = importlib.util.spec_from_file_location("movielens_prepare", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _rows(table: pa.Table, user: int) -> dict[int, dict[str, object]]:
    rows = table.filter(pc.equal(table["user_id"], user)).to_pylist()
    return {row["item_id"]: row for row in rows}


def test_eval_is_the_latest_fifth_of_each_user_rounded_down(prepare: ModuleType) -> None:
    train, evaluation = prepare.build_tables(RATINGS, USERS, ITEMS, history_steps=50)
    assert evaluation["item_id"].to_pylist() == [10, 11]
    assert sorted(_rows(train, 7)) == list(range(1, 10))
    assert sorted(_rows(train, 9)) == [1, 2, 3, 4]


def test_label_is_four_stars_or_more(prepare: ModuleType) -> None:
    train, _ = prepare.build_tables(RATINGS, USERS, ITEMS, history_steps=50)
    assert train["label"].type == pa.int64()
    assert {item: row["label"] for item, row in _rows(train, 9).items()} == {1: 1, 2: 0, 3: 1, 4: 0}


def test_history_holds_earlier_ratings_oldest_first(prepare: ModuleType) -> None:
    train, _ = prepare.build_tables(RATINGS, USERS, ITEMS, history_steps=50)
    row = _rows(train, 9)[3]
    assert row["hist__item_id"] == [4, 2, 1]
    assert row["hist__rating"] == [3, 2, 4]
    assert row["liked__item_id"] == [1]
    assert row["disliked__item_id"] == [4, 2]
    assert _rows(train, 9)[4]["hist__item_id"] == []


def test_ratings_of_the_same_moment_do_not_see_each_other(prepare: ModuleType) -> None:
    train, _ = prepare.build_tables(RATINGS, USERS, ITEMS, history_steps=50)
    rows = _rows(train, 7)
    assert rows[4]["hist__item_id"] == rows[5]["hist__item_id"] == [1, 2, 3]


def test_histories_of_eval_rows_hold_training_rows_only(prepare: ModuleType) -> None:
    _, evaluation = prepare.build_tables(RATINGS, USERS, ITEMS, history_steps=50)
    rows = _rows(evaluation, 7)
    assert rows[10]["hist__item_id"] == [1, 2, 3, 4, 5, 6, 7, 8]  # 9 has the same timestamp
    assert rows[11]["hist__item_id"] == [1, 2, 3, 4, 5, 6, 7, 8, 9]  # 10 is an eval row


def test_histories_keep_the_latest_steps(prepare: ModuleType) -> None:
    _, evaluation = prepare.build_tables(RATINGS, USERS, ITEMS, history_steps=3)
    row = _rows(evaluation, 7)[11]
    assert row["hist__item_id"] == [7, 8, 9]
    assert row["liked__item_id"] == [5, 7, 8]
    assert row["disliked__item_id"] == [4, 6, 9]


def test_histories_equal_a_slow_obvious_reference(prepare: ModuleType) -> None:
    rng = np.random.RandomState(3)
    n = 300
    ratings = np.stack(
        [rng.choice([7, 9], n), rng.randint(1, 12, n), rng.randint(1, 6, n), rng.randint(0, 60, n)], axis=1
    )
    train, evaluation = prepare.build_tables(ratings, USERS, ITEMS, history_steps=5)
    for user in (7, 9):
        mine = sorted((r for r in ratings.tolist() if r[0] == user), key=lambda r: r[3])
        cut = len(mine) - len(mine) // 5
        expected = []
        for at, row in enumerate(mine):
            seen = [r for r in mine[:cut] if r[3] < row[3]]
            liked = [r[1] for r in seen if r[2] >= 4][-5:]
            expected.append((at >= cut, row[1], row[2], row[3], [r[1] for r in seen][-5:], liked))
        names = ["item_id", "rating", "timestamp", "hist__item_id", "liked__item_id"]
        actual = [
            (is_eval, *(row[name] for name in names))
            for is_eval, table in ((False, train), (True, evaluation))
            for row in table.filter(pc.equal(table["user_id"], user)).to_pylist()
        ]
        assert sorted(actual) == sorted(expected)


def test_user_and_item_attributes_are_joined(prepare: ModuleType) -> None:
    train, _ = prepare.build_tables(RATINGS, USERS, ITEMS, history_steps=50)
    row = _rows(train, 9)[3]
    names = ["age", "gender", "occupation", "zip_code", "title", "year", "genres"]
    assert [row[name] for name in names] == [53, "F", "other", "94043", "Film 3", None, ["Drama", "War"]]


def test_no_training_row_comes_after_an_eval_row_of_its_user(prepare: ModuleType) -> None:
    train, evaluation = prepare.build_tables(RATINGS[::-1], USERS, ITEMS, history_steps=50)
    assert max(_rows(train, 7).values(), key=lambda row: row["timestamp"])["timestamp"] == 80
    assert min(evaluation["timestamp"].to_pylist()) == 80


def _write_wheel(path: Path) -> None:
    tables = {
        "inter": [
            "user_id:token\titem_id:token\trating:float\ttimestamp:float",
            "7\t1\t5\t10",
            "7\t2\t3\t20",
        ],
        "user": ["user_id\tage\tgender\toccupation\tzip_code", "7\t24\tM\twriter\t85711"],
        "item": [
            "item_id\tmovie_title\trelease_year\tclass",
            '1\t"Quoted" Ünder\t1995\tDrama',
            "2\tTwo\t1996\tComedy War",
        ],
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, lines in tables.items():
            archive.writestr(f"recbole/dataset_example/ml-100k/ml-100k.{name}", "\n".join(lines) + "\n")


@pytest.fixture
def wheel(prepare: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "tiny.whl"
    _write_wheel(path)
    monkeypatch.setattr(prepare, "WHEEL_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


def test_second_run_writes_nothing(prepare: ModuleType, wheel: Path, tmp_path: Path) -> None:
    out = tmp_path / "data"
    assert prepare.prepare(out, wheel=wheel)
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert not prepare.prepare(out, wheel=wheel)
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before
    assert pq.read_table(out / "train.parquet")["title"].to_pylist().count('"Quoted" Ünder') == 1


def test_damaged_files_and_other_settings_are_written_again(prepare: ModuleType, wheel: Path, tmp_path: Path) -> None:
    out = tmp_path / "data"
    prepare.prepare(out, wheel=wheel)
    intact = (out / "train.parquet").read_bytes()
    (out / "train.parquet").write_bytes(b"cut short")
    assert prepare.prepare(out, wheel=wheel)
    assert (out / "train.parquet").read_bytes() == intact
    assert prepare.prepare(out, wheel=wheel, history_steps=7)


def test_failed_download_says_how_to_go_on_without_a_network(
    prepare: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "WARNING: retrying\nERROR: no route to host")
    monkeypatch.setattr(prepare.subprocess, "run", lambda *args, **kwargs: failed)
    assert prepare.main(["--out", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    for words in ("recbole==1.2.1", "no route to host", "--wheel PATH", "pip download --no-deps"):
        assert words in error


def test_another_wheel_is_refused(prepare: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "other.whl"
    _write_wheel(path)
    with pytest.raises(prepare.PrepareError, match="SHA-256 differs"):
        prepare.prepare(tmp_path / "data", wheel=path)
    with pytest.raises(prepare.PrepareError, match="no such file"):
        prepare.prepare(tmp_path / "data", wheel=tmp_path / "missing.whl")
