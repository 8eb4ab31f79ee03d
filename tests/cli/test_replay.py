import re

import pytest

BROKEN = ("--set", "train_config.dense_optimizer={sgd_optimizer{lr:1e30}}")


@pytest.fixture
def failed(tiny, config_file):
    result = tiny("train", str(config_file), *BROKEN)
    assert result.code == 1
    assert "the loss is" in result.err


def test_a_step_that_stopped_training_is_run_again(tiny, config_file, failed, tmp_path):
    result = tiny("replay", str(config_file), *BROKEN)
    assert result.code == 1
    assert re.search(r"run/failed-2: step 2, seed 7, batch of process 0", result.out)
    assert re.search(r"^price +16 +0\.\d+ +0\.\d+ +0\.\d+ +0 +0 *$", result.out, re.MULTILINE)
    assert re.search(
        r"^Now, the first that is not finite: output of module model\.\w+ of shape", result.out, re.MULTILINE
    )
    assert "The config is not the one of that run" not in result.out


def test_replay_as_json(tiny, config_file, failed, tmp_path):
    result = tiny("replay", str(config_file), "--failure", str(tmp_path / "run/failed-2"), "--json")
    assert result.code == 1
    found = result.json
    assert found["failure"] == str(tmp_path / "run/failed-2")
    assert (found["step"], found["rank"], found["found_again"], found["config_changed"]) == (2, 0, True, True)
    assert found["found_before"] == found["finding"]
    assert set(found["finding"]) == {"kind", "name", "shape", "num_nan", "num_inf", "row"}
    assert [entry["name"] for entry in found["inputs"]] == ["price", "user", "item", "click"]
    assert set(found["inputs"][0]) == {"name", "num_values", "minimum", "maximum", "mean", "num_nan", "num_inf"}


def test_without_a_failed_step_there_is_nothing_to_replay(tiny, config_file):
    result = tiny("replay", str(config_file))
    assert result.code == 2
    assert "holds no failed step" in result.err


def test_a_problem_that_does_not_show_again_ends_well(tiny, config_file, failed, monkeypatch):
    from tzrec_core.engine import replay as module

    monkeypatch.setattr(module, "first_bad", lambda model, batch: None)
    result = tiny("replay", str(config_file))
    assert result.code == 0
    assert "Now all is finite: the problem did not show again." in result.out
