import json
import os
import signal
import subprocess
from itertools import groupby
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import tiny_data

from tzrec_core import api
from tzrec_core.config import parse_config
from tzrec_core.data.loader import create_dataloader
from tzrec_core.engine import compare as module
from tzrec_core.engine.compare import hash_of_batches, rows_of_batches
from tzrec_core.engine.model_dir_lock import model_dir_lock
from tzrec_core.errors import ConfigError
from tzrec_core.features import create_features

ROW = 'feature_configs { id_feature { feature_name: "row" expression: "item:row" num_buckets: 100 embedding_dim: 4 } }'


@pytest.fixture
def text(tmp_path) -> str:
    return tiny_data.write_tables(tmp_path)


@pytest.fixture
def other(text) -> str:
    return text.replace("tiny { }", "tiny { hidden: 3 }")


class Trainings:
    """Stands for the processes that train: what each gives, by the name of its config, and who was trained."""

    def __init__(self):
        self.trained = []
        self.code = {}
        self.log = {}
        self.stopped = {}

    def run(self, command, *, stdout, stderr, stdin, text):
        config = Path(command[command.index("train") + 1])
        parsed = parse_config(config.read_text())
        assert parsed.model_dir == str(config.parent)
        assert f"seed-{parsed.train_config.seed}" == config.parent.name
        assert [p.name for p in config.parent.iterdir() if p.name.startswith("model.ckpt")] == []
        name = config.parent.parent.name
        self.trained.append((name, parsed.train_config.seed))
        (config.parent / "model.ckpt-5").mkdir()
        stderr.write(self.log.get(name, ""))
        result = {
            "step": 5,
            "metrics": {"auc": 0.5 + len(name) / 10},
            "samples_per_second": 10.0,
            "stopped": self.stopped.get(name, ""),
        }
        return subprocess.CompletedProcess(command, self.code.get(name, 0), stdout=json.dumps(result))


@pytest.fixture
def trainings(monkeypatch):
    found = Trainings()
    monkeypatch.setattr(module.subprocess, "run", found.run)
    return found


# The same batches


@pytest.mark.parametrize("shuffle", ["", "shuffle: true shuffle_buffer_size: 2"])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_hashed_rows_are_those_that_training_reads(text, shuffle, num_workers):
    config = parse_config(text.replace("num_workers: 0", f"num_workers: {num_workers} {shuffle}") + ROW)
    features = create_features(config.feature_configs, config.data_config)
    loader = create_dataloader(config.data_config, features, config.train_input_path, seed=3)
    read = []
    for epoch in range(2):
        loader.start(epoch)
        read += [batch.sparse_features["__BASE__"]["row"].values().tolist() for batch in loader]
    told = list(rows_of_batches(config, 3, 2 * loader.num_batches))
    assert [rows[:, 1].tolist() for _, rows in told] == read
    assert {source for sources, _ in told for source in sources} == {config.train_input_path}


def test_rows_of_several_files_are_told_apart(text, tmp_path):
    folder = tmp_path / "parts"
    folder.mkdir()
    for name in "ab":
        pq.write_table(tiny_data.table(10, 1), folder / f"{name}.parquet")
    config = parse_config(text)
    config.train_input_path = str(folder)
    config.data_config.batch_size = 8
    rows = [(sources[file], row) for sources, batch in rows_of_batches(config, 0, 3) for file, row in batch.tolist()]
    assert [(Path(name).name, [row for _, row in some]) for name, some in groupby(rows, lambda it: it[0])] == [
        ("a.parquet", list(range(10))),
        ("b.parquet", list(range(10))),
    ]


def test_the_hash_changes_with_the_order_and_with_the_size_of_the_batches(text):
    config = parse_config(text)
    shuffled = parse_config(text)
    shuffled.data_config.shuffle = True
    smaller = parse_config(text)
    smaller.data_config.batch_size = 8
    found = [hash_of_batches(config, 1, 5), hash_of_batches(config, 1, 6), hash_of_batches(smaller, 1, 9)]
    found += [hash_of_batches(shuffled, seed, 5) for seed in (1, 2)]
    assert len(set(found)) == len(found)
    assert hash_of_batches(config, 2, 5) == found[0]  # in the order of the table, whatever the seed


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data_config.batch_size=8", "b has data_config.batch_size = 8, but a has 16"),
        ("data_config.shuffle=true", "data_config.shuffle = true"),
        ("data_config.label_fields=[user]", 'data_config.label_fields = ["user"], but a has ["click"]'),
        ("data_config.dataset_type=CsvDataset", "dataset_type = CsvDataset, but a has ParquetDataset"),
        ("data_config.drop_remainder=true", "data_config.drop_remainder = true, but a has false"),
        ("train_input_path=elsewhere", 'train_input_path = "elsewhere"'),
        ("eval_input_path=elsewhere", 'eval_input_path = "elsewhere"'),
        ("eval_config.num_steps=1", "eval_config.num_steps = 1, but a has 0"),
        ("train_config.num_epochs=2", "b trains for 10 steps, but a for 5"),
        ("train_config.num_steps=3", "b trains for 3 steps, but a for 5"),
    ],
)  # fmt: skip
def test_configs_with_other_batches_are_refused_with_the_difference(text, tmp_path, trainings, override, words):
    different = api.as_config(text, overrides=[override])
    with pytest.raises(ConfigError) as caught:
        api.compare({"a": text, "b": different}, tmp_path / "out", num_seeds=1)
    assert words in str(caught.value)
    assert "--set" in str(caught.value)
    assert trainings.trained == []


def test_all_differences_are_named_at_once(text, tmp_path, trainings):
    different = api.as_config(text, overrides=["data_config.batch_size=8", "data_config.shuffle=true"])
    with pytest.raises(ConfigError) as caught:
        api.compare({"a": text, "b": different}, tmp_path / "out")
    assert len(caught.value.problems) == 2


def test_what_is_made_of_the_rows_may_differ(text, tmp_path, trainings):
    different = api.as_config(text, overrides=["data_config.fg_threads=2", "data_config.sample_weight_fields=[weight]"])
    board = api.compare({"a": text, "b": different}, tmp_path / "out", num_seeds=1)
    assert board.num_failed == 0


def test_batches_without_a_fixed_order_are_refused(text, tmp_path, trainings):
    overrides = ["data_config.in_order=false", "data_config.num_workers=2"]
    with pytest.raises(ConfigError, match=r"--set data_config\.in_order=true"):
        api.compare({"a": text}, tmp_path / "out", overrides=overrides)


def test_a_mistake_in_a_config_is_named_before_anything_is_trained(text, other, tmp_path, trainings):
    wrong = other.replace('"item", "price"]', '"itme", "price"]')
    with pytest.raises(ConfigError, match=r"wrong.*itme"):
        api.compare({"fine": text, "wrong": wrong}, tmp_path / "out")
    with pytest.raises(ConfigError, match="a: eval_input_path is empty"):
        api.compare({"a": text}, tmp_path / "out", overrides=['eval_input_path=""'])
    with pytest.raises(ConfigError, match="cannot be the name of a folder"):
        api.compare({"../a": text}, tmp_path / "out")
    with pytest.raises(ConfigError, match="no config"):
        api.compare({}, tmp_path / "out")
    assert trainings.trained == []


# Runs


def test_each_config_is_trained_with_each_seed_one_after_the_other(text, other, tmp_path, trainings):
    board = api.compare({"a": text, "bb": other}, tmp_path / "out", num_seeds=2)
    assert trainings.trained == [("a", 1), ("bb", 1), ("a", 2), ("bb", 2)]
    assert [entry.name for entry in board.entries] == ["bb", "a"]
    assert set(board.batches) == {1, 2}
    assert board.num_steps == 5
    # tables: 20 users and 10 items of 4; dense: 9 x 3 + 3 hidden, 2 x 3 of the norm, 3 + 1 of the output
    assert (board.entries[0].num_in_tables, board.entries[0].num_dense) == (120, 40)
    assert (tmp_path / "out/leaderboard.md").exists()


def test_the_callers_configs_are_left_alone(text, tmp_path, trainings):
    config = parse_config(text)
    api.compare({"a": config}, tmp_path / "out", num_seeds=1)
    assert config == parse_config(text)


def test_finished_runs_are_not_trained_again_unless_config_seed_or_data_changed(
    text, other, tmp_path, trainings, caplog
):
    caplog.set_level("INFO")
    first = api.compare({"a": text, "b": other}, tmp_path / "out", num_seeds=1)
    assert "not trained again" not in caplog.text
    trainings.trained.clear()
    second = api.compare({"a": text, "b": other}, tmp_path / "out", num_seeds=2)
    assert trainings.trained == [("a", 2), ("b", 2)]
    assert caplog.text.count("not trained again") == 2
    assert second.entries[0].runs[0] == first.entries[0].runs[0]
    trainings.trained.clear()
    api.compare({"a": text, "b": other.replace("hidden: 3", "hidden: 4")}, tmp_path / "out", num_seeds=2)
    assert trainings.trained == [("b", 1), ("b", 2)]
    trainings.trained.clear()
    pq.write_table(tiny_data.table(41, 2), tmp_path / "eval.parquet")
    api.compare({"a": text}, tmp_path / "out", num_seeds=1)
    assert trainings.trained == [("a", 1)]


def test_a_run_that_fails_keeps_its_error_and_loses_no_other(text, other, tmp_path, trainings):
    trainings.code["bad"] = 1
    trainings.log["bad"] = "train step 2\nerror: the loss is nan at step 3.\nLower the lr"
    board = api.compare({"bad": other, "a": text}, tmp_path / "out", num_seeds=2)
    fine, bad = board.entries
    assert (fine.name, len(fine.runs)) == ("a", 2)
    assert bad.errors == dict.fromkeys((1, 2), "the loss is nan at step 3.\nLower the lr")
    assert board.num_failed == 2
    trainings.code.clear()
    trainings.trained.clear()
    assert api.compare({"bad": other, "a": text}, tmp_path / "out", num_seeds=2).num_failed == 0
    assert trainings.trained == [("bad", 1), ("bad", 2)]


@pytest.mark.parametrize(
    ("code", "log", "stopped", "words"),
    [
        (-9, "train step 2\n", "", "its process was ended by SIGKILL; the system may have been out of memory"),
        (-11, "", "", "its process was ended by SIGSEGV"),
        (1, "error: no file", "", "no file"),
        (1, "Traceback ...\nValueError: 3", "", "ValueError: 3"),
        (1, "", "", "exit code 1"),
        (0, "", "early stopping", "it stopped at step 5: early stopping. Compared runs take the same number of steps"),
    ],
)
def test_the_reason_of_a_failure_is_told(text, tmp_path, trainings, code, log, stopped, words):
    trainings.code["a"], trainings.log["a"], trainings.stopped["a"] = code, log, stopped
    board = api.compare({"a": text}, tmp_path / "out", num_seeds=1)
    assert board.entries[0].errors == {1: words}
    assert json.loads((tmp_path / "out/leaderboard.json").read_text())["models"][0]["errors"] == {"1": words}


def test_an_interrupted_run_is_trained_afresh(text, tmp_path, trainings, monkeypatch):
    def interrupted(command, **kwargs):
        trainings.run(command, **kwargs)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module.subprocess, "run", interrupted)
        api.compare({"a": text}, tmp_path / "out", num_seeds=1)
    assert api.compare({"a": text}, tmp_path / "out", num_seeds=1).num_failed == 0  # Trainings.run looks at the folder
    assert trainings.trained == [("a", 1), ("a", 1)]


def test_a_folder_of_something_else_is_not_touched(text, tmp_path, trainings):
    mine = tmp_path / "out/a/seed-2/notes.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(ConfigError, match="seed-2 holds something else"):
        api.compare({"a": text}, tmp_path / "out")
    assert mine.read_text() == "mine"
    assert trainings.trained == []


def test_two_comparisons_do_not_share_a_folder(text, tmp_path, trainings):
    with model_dir_lock(tmp_path / "out"), pytest.raises(ConfigError, match="in use by another"):
        api.compare({"a": text}, tmp_path / "out")


def test_sigterm_ends_the_run_that_is_going_on_as_ctrl_c_does(text, tmp_path, trainings, monkeypatch):
    before = signal.getsignal(signal.SIGTERM)

    def terminated(command, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        return trainings.run(command, **kwargs)

    monkeypatch.setattr(module.subprocess, "run", terminated)
    with pytest.raises(KeyboardInterrupt):  # on which subprocess.run kills its process
        api.compare({"a": text}, tmp_path / "out", num_seeds=1)
    assert trainings.trained == []
    assert signal.getsignal(signal.SIGTERM) is before
