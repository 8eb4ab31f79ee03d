import json
import math
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import tiny_data

from tzrec_core.cli.compare import _named
from tzrec_core.config import parse_config
from tzrec_core.engine.compare import rows_of_batches
from tzrec_core.engine.leaderboard import Entry, Leaderboard, RunResult
from tzrec_core.plugins import Registry, Selection, use_registry

RECORDER = str(Path(tiny_data.MANIFEST).with_name("recorder.py"))
ROW = 'feature_configs { id_feature { feature_name: "row" expression: "item:row" num_buckets: 100 embedding_dim: 4 } }'


@pytest.fixture
def board(monkeypatch):
    """A leaderboard that every comparison gives; `.asked` is what was asked for."""
    from tzrec_core import api

    found = Leaderboard(
        [Entry("a", [RunResult(1, "out/a/seed-1", {"auc": 0.7, "l2": math.nan}, 1234.5, 6.0)], {}, 10, 20)],
        [1],
        5,
        {1: "c0ffee"},
        {"auc": True},
    )

    def compare(configs, output, **options):
        found.asked = (configs, output, options)
        return found

    monkeypatch.setattr(api, "compare", compare)
    return found


def test_the_leaderboard_is_a_table_with_notes(tiny, board):
    result = tiny("compare", "x/a.config", "--seeds", "1", "--output", "out", "--set", "train_config.num_steps=3")
    assert result.code == 0
    assert board.asked == ({"a": "x/a.config"}, "out", {"num_seeds": 1, "overrides": ["train_config.num_steps=3"]})
    words = " ".join(result.out.split())
    assert "model auc l2 against the best dense parameters in tables samples/s seconds" in words
    assert "a 0.7000 best 10 20 1,234 6" in words
    assert "Each run took 5 steps, on the same batches for all models. Hash: c0ffee (seed 1)." in words
    assert "out/leaderboard.md is written." in words


def test_as_json_it_is_what_leaderboard_json_holds(tiny, board):
    found = tiny("compare", "a.config", "--json").json
    assert set(found) == {"ranked_by", "higher_is_better", "metrics", "seeds", "num_steps", "batches", "models"}
    (model,) = found["models"]
    assert (model["name"], model["parameters"]) == ("a", {"dense": 10, "tables": 20})
    assert model["runs"][0]["metrics"] == {"auc": 0.7, "l2": None}


def test_every_json_key_is_in_the_guide(tiny, board):
    guide = (Path(__file__).parents[2] / "registry_docs/guides/command_line.md").read_text(encoding="utf-8")
    said = re.search(r"^`compare`: (.*?)(?=^`\w+`: )", guide, re.MULTILINE | re.DOTALL)[1]
    found = tiny("compare", "a.config", "--json").json
    (model,) = found["models"]
    keys = {*found, *model, *model["runs"][0], *model["metrics"]["auc"], *model["parameters"]}
    assert {key for key in keys if f"`{key}`" not in said} == set()


def test_a_failed_run_is_exit_code_1_with_the_leaderboard_of_the_others(tiny, board):
    board.entries.append(Entry("b", errors={1: "the loss is nan at step 2"}))
    result = tiny("compare", "a.config", "b.config")
    assert result.code == 1
    assert "0.7000" in result.out
    assert "Failed: b, seed 1: the loss is nan at step 2" in result.out
    assert tiny("compare", "a.config", "b.config", "--json").code == 1


def test_configs_are_named_by_what_tells_their_paths_apart():
    assert list(_named(["x/a.config", "x/b.config"])) == ["a", "b"]
    assert list(_named(["x/pipeline.config", "y/pipeline.config"])) == ["x-pipeline", "y-pipeline"]
    assert list(_named(["a.config", "a.config"])) == ["a"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give either configs, or --models"),
        (["a.config", "--models", "tiny"], "give either configs, or --models"),
        (["a.config", "--data", "t.parquet", "--label", "click"], "--data, --label: for --models only"),
        (["--models", "tiny", "--data", "t.parquet"], "--models needs --eval-data and --label too"),
        (["a.config", "--seeds", "0"], "--seeds"),
        (["nowhere.config"], "nowhere.config does not exist"),
    ],
)
def test_what_is_asked_for_wrongly_is_said_in_a_line(tiny, arguments, words):
    result = tiny("compare", *arguments)
    assert (result.code, result.out) == (2, "")
    assert words in result.err


@pytest.mark.slow
def test_configs_are_trained_on_the_hashed_rows_and_one_that_breaks_is_tried_again(tzrec, tmp_path, caplog):
    recorder = f'callbacks {{ [type.googleapis.com/google.protobuf.StringValue] {{ value: "{tmp_path}" }} }}'
    text = tiny_data.write_tables(tmp_path).replace("num_workers: 0", "num_workers: 0 shuffle: true")
    text = text.replace("seed: 7", "num_epochs: 2") + ROW
    a, b = tmp_path / "a.config", tmp_path / "b.config"
    a.write_text(text.replace("num_epochs: 2", f"num_epochs: 2 {recorder}"))
    b.write_text(
        text.replace(
            "dense_optimizer { adam_optimizer { lr: 0.02 } }", "dense_optimizer { sgd_optimizer { lr: 1e30 } }"
        )
    )

    def compare():
        plugins = ["--plugin", tiny_data.MANIFEST, "--plugin", RECORDER]
        return tzrec(*plugins, "compare", str(a), str(b), "--seeds", "1", "--output", str(tmp_path / "out"))

    result = compare()
    assert result.code == 1
    assert "Failed: b, seed 1: the loss is" in result.out
    assert (tmp_path / "out/a/seed-1/model.ckpt-10").is_dir()
    trained = [json.loads(line)[1] for line in (tmp_path / "rows-0.jsonl").read_text().splitlines()]
    with use_registry(Registry.find(Selection(only=frozenset(), files=(tiny_data.MANIFEST,)))):
        told = [rows[:, 1].tolist() for _, rows in rows_of_batches(parse_config(text), 1, 10)]
    assert trained == told

    b.write_text(text)
    result = compare()
    assert result.code == 0
    assert "a, seed 1 (1 of 2): finished before with this config and data, not trained again" in caplog.text
    board = json.loads((tmp_path / "out/leaderboard.json").read_text())
    assert {model["name"]: model["errors"] for model in board["models"]} == {"a": {}, "b": {}}


@pytest.mark.slow
def test_installed_models_are_compared_on_one_table_by_their_names(tzrec, tmp_path):
    for name, rows, seed in (("train", 2000, 1), ("eval", 500, 2)):
        pq.write_table(tiny_data.table(rows, seed).drop(["row", "weight"]), tmp_path / f"{name}.parquet")
    result = tzrec(
        "compare", "--models", "deepfm,wide_and_deep", "--data", str(tmp_path / "train.parquet"),
        "--eval-data", str(tmp_path / "eval.parquet"), "--label", "click", "--seeds", "2",
        "--output", str(tmp_path / "out"), "--json", only=None,
    )  # fmt: skip
    assert result.code == 0, result.err
    models = {model["name"]: model for model in result.json["models"]}
    assert set(models) == {"deepfm", "wide_and_deep"}
    assert all(model["metrics"]["auc"]["mean"] > 0.6 and len(model["runs"]) == 2 for model in models.values())
    assert len(set(result.json["batches"].values())) == 2
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"leaderboard.md", "leaderboard.json"}
