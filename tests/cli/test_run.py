import math
import os
import pty
import re
import sys

import pyarrow.parquet as pq
import pytest
import tiny_data


@pytest.fixture
def run_dir(tmp_path):
    return tmp_path / "run"


def test_train_then_eval_then_predict(tiny, config_file, run_dir, tmp_path):
    result = tiny("train", str(config_file), "--set", "train_config.num_epochs=2")
    assert result.code == 0
    assert re.search(r"^train +step 10 *$", result.out, re.MULTILINE)
    assert f"{run_dir}/model.ckpt-10" in result.out
    assert "eval step 10  auc 0." in result.err

    result = tiny("eval", str(config_file))
    assert re.search(r"^auc +0\.\d{6} *$", result.out, re.MULTILINE)

    out = str(tmp_path / "out.parquet")
    result = tiny(
        "predict", str(config_file), "--input", str(tmp_path / "eval.parquet"), "--output", out,
        "--reserved-columns", "row, user", "--output-columns", "probs", "--batch-size", "7",
    )  # fmt: skip
    assert (result.code, pq.read_table(out).column_names) == (0, ["row", "user", "probs"])
    assert "40 rows" in result.out


def test_results_as_json(tiny, config_file, run_dir, tmp_path):
    trained = tiny("train", str(config_file), "--json").json
    assert set(trained) == {"model_dir", "checkpoint", "step", "metrics", "samples_per_second", "stopped"}
    assert (trained["step"], trained["model_dir"]) == (5, str(run_dir))
    assert trained["checkpoint"] == str(run_dir / "model.ckpt-5")
    evaluated = tiny("eval", str(config_file), "--json").json
    assert evaluated == {"checkpoint": trained["checkpoint"], "step": 5, "metrics": trained["metrics"]}
    out = str(tmp_path / "out.csv")
    arguments = ["--input", str(tmp_path / "eval.parquet"), "--output", out]
    predicted = tiny("predict", str(config_file), *arguments, "--json").json
    assert predicted.pop("samples_per_second") > 0
    assert predicted == {"output": out, "rows": 40}
    again = tiny("predict", str(config_file), *arguments)
    assert again.code == 2
    assert "is there already" in again.err
    assert tiny("predict", str(config_file), *arguments, "--overwrite").code == 0


def test_a_finished_run_says_so(tiny, config_file):
    tiny("train", str(config_file))
    result = tiny("train", str(config_file))
    assert result.code == 0
    assert "nothing left to do" in result.out


def test_eval_takes_a_checkpoint_and_a_table(tiny, config_file, run_dir, tmp_path):
    tiny("train", str(config_file), "--set", "train_config.save_checkpoints_steps=2")
    pq.write_table(tiny_data.table(9, 5), tmp_path / "other.parquet")
    arguments = ["--checkpoint", str(run_dir / "model.ckpt-2"), "--input", str(tmp_path / "other.parquet")]
    evaluated = tiny("eval", str(config_file), *arguments, "--json").json
    assert evaluated["step"] == 2


def test_numbers_that_json_does_not_have_are_null(tiny, config_file, monkeypatch):
    from tzrec_core import api

    result = api.EvalResult("x", 1, {"auc": math.nan, "loss": 0.5})
    monkeypatch.setattr(api, "evaluate", lambda *a, **k: result)
    assert tiny("eval", str(config_file), "--json").json["metrics"] == {"auc": None, "loss": 0.5}


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["eval", "{config}"], 1, "holds no checkpoint"),
        (["predict", "{config}", "--input", "x", "--output", "y"], 1, "train first: tzrec train"),
        (["train", "{config}", "--set", "train_input_path=nowhere.parquet"], 2, "nowhere.parquet"),
        (["train", "{config}", "--set", "train_config.num_step=1"], 2, "Did you mean 'num_steps'?"),
        (["train", "{config}", "--set", "train_config.dense_optimizer.adam_optimizer.lr=-1"], 2, "dense_optimizer"),
        (["train", "nowhere.config"], 2, "nowhere.config does not exist"),
        (["predict", "{config}"], 2, "Missing option"),
        (["train"], 2, "Missing argument 'CONFIG'"),
    ],
)
def test_what_goes_wrong_is_one_screen_without_a_traceback(tiny, config_file, arguments, code, words):
    result = tiny(*[argument.format(config=config_file) for argument in arguments])
    assert (result.code, result.out) == (code, "")
    assert words in " ".join(result.err.split())
    assert "Traceback" not in result.err
    assert len(result.err.splitlines()) <= 24


def test_a_terminal_shows_a_live_bar_and_lines_above_it(config_file):
    arguments = ["-m", "tzrec_core.cli.app", "--plugin", tiny_data.MANIFEST, "train", str(config_file)]
    arguments += ["--set", "train_config.log_step_count_steps=1", "--set", "train_config.save_checkpoints_steps=3"]
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update(TERM="xterm", TZREC_PLUGINS="", COLUMNS="100", OMP_NUM_THREADS="1")
        os.execv(sys.executable, [sys.executable, *arguments])
    shown = b""
    while True:
        try:
            data = os.read(terminal, 65536)
        except OSError:  # how Linux says that the other end is gone
            break
        if not data:
            break
        shown += data
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    text = shown.decode()
    assert re.search(r"train .*━.*5/5.*samples/s", text)
    lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\r", "", text).splitlines()
    assert "seed 7" in lines
    assert sum(line.startswith("eval step 3  auc 0.") for line in lines) == 1
    assert not any(line.startswith("train step") for line in lines)
