import importlib.util
import json
import logging
import math

import pytest

from tzrec_core.engine.leaderboard import Entry, Leaderboard, RunResult, write_leaderboard


def entry(name, *aucs, errors=None, **metrics):
    """A model with a run for each AUC, and the same other metrics in all."""
    runs = [RunResult(seed, name, {"auc": auc, **metrics}, 1000.0, 2.0) for seed, auc in enumerate(aucs, 1)]
    return Entry(name, runs, errors or {}, num_dense=5, num_in_tables=70)


DIRECTIONS = {"auc": True, "hits": True, "logloss": False, "l2_loss": False}


def board(*entries, seeds=(1, 2, 3)):
    return Leaderboard(list(entries), list(seeds), 10, {seed: f"hash{seed}" for seed in seeds}, DIRECTIONS)


def test_the_best_mean_comes_first_and_a_model_without_a_result_last():
    found = board(Entry("failed", errors={1: "it broke"}), entry("worse", 0.6, 0.7), entry("better", 0.65, 0.75))
    assert [e.name for e in found.entries] == ["better", "worse", "failed"]
    assert found.ranked_by == "auc"


def test_of_a_loss_the_smaller_is_better():
    runs = [
        Entry(n, [RunResult(1, n, {"calibration": 2.0 - v, "l2_loss": v}, 1, 1)]) for n, v in (("a", 0.5), ("b", 0.4))
    ]
    found = board(*runs, seeds=[1])
    assert (found.ranked_by, found.higher_is_better) == ("l2_loss", False)
    assert [e.name for e in found.entries] == ["b", "a"]


def test_more_is_better_goes_before_less_is_better_whatever_the_names():
    runs = [Entry(n, [RunResult(1, n, {"l2_loss": v, "hits_0": v}, 1, 1)]) for n, v in (("a", 0.5), ("b", 0.6))]
    found = board(*runs, seeds=[1])
    assert (found.ranked_by, found.higher_is_better) == ("hits_0", True)


def test_metrics_whose_direction_is_unknown_order_nothing():
    runs = [Entry(n, [RunResult(1, n, {"calibration": v}, 1, 1)]) for n, v in (("a", 0.9), ("b", 1.1))]
    found = board(*runs, seeds=[1])
    assert found.ranked_by == ""
    assert [e.name for e in found.entries] == ["a", "b"]
    assert "against the best" not in found.columns


@pytest.mark.parametrize(
    ("best", "other", "is_noise"),
    [
        ([0.70, 0.71, 0.72], [0.60, 0.61, 0.69], False),
        ([0.70, 0.71, 0.72], [0.60, 0.61, 0.70], True),  # one seed is as good as the best's worst
        ([0.70, 0.71, 0.72], [0.70, 0.71, 0.72], True),
        ([0.70], [0.60], None),
        ([0.70, 0.71], [0.60], None),  # one seed has no spread
        ([0.70, 0.71], [math.nan, 0.60], None),
    ],
)
def test_a_difference_is_noise_unless_all_seeds_agree(best, other, is_noise):
    found = board(entry("best", *best), entry("other", *other))
    assert found.is_noise(found.entries[1]) is is_noise
    assert (", noise" in " ".join(found.cells(found.entries[1]))) is bool(is_noise)
    assert found.is_noise(found.entries[0]) is None


def test_of_a_loss_too_a_difference_is_noise_unless_all_seeds_agree():
    def losses(name, *values):
        return Entry(name, [RunResult(s, name, {"logloss": v}, 1, 1) for s, v in enumerate(values)])

    apart = board(losses("a", 0.5, 0.52), losses("b", 0.53, 0.6))
    overlapping = board(losses("a", 0.5, 0.54), losses("b", 0.53, 0.6))
    assert apart.is_noise(apart.entries[1]) is False
    assert overlapping.is_noise(overlapping.entries[1]) is True


def test_the_chance_to_be_set_apart_without_a_difference_is_told():
    two = [entry("a", 0.7), entry("b", 0.6)]
    assert "in 10.0% of all comparisons" in board(*two).notes()[0]  # 2 of the 20 orders of 3 + 3 seeds
    assert "in 33.3%" in board(*two, seeds=[1, 2]).notes()[0]
    assert "One seed cannot tell a difference from noise" in board(*two, seeds=[1]).notes()[0]


def test_metrics_that_not_all_models_have_are_left_out_and_named():
    found = board(entry("a", 0.7, logloss=0.5, calibration=1.0), entry("b", 0.6, calibration=1.1), Entry("failed"))
    assert found.metrics == ["auc", "calibration"]
    assert any("Left out" in note and "logloss" in note for note in found.notes())


def test_the_table_shows_mean_and_range_and_what_failed(tmp_path):
    found = board(entry("a", 0.71, 0.73), entry("b", 0.5, 0.6, errors={3: "the loss | is nan\nat step 2"}))
    write_leaderboard(found, tmp_path)
    text = (tmp_path / "leaderboard.md").read_text()
    assert "| a | 0.7200 (0.7100 to 0.7300) | best | 5 | 70 | 1,000 | 2 |" in text
    assert "| b | 0.5500 (0.5000 to 0.6000) | -0.1700, failed with seed 3 | 5 | 70 | 1,000 | 2 |" in text
    assert "- Failed: b, seed 3: the loss | is nan at step 2" in text
    assert "hash1 (seed 1)" in text


def test_the_json_has_every_run_and_null_for_nan(tmp_path):
    write_leaderboard(board(entry("a", 0.7, math.nan), Entry("b", errors={1: "no"})), tmp_path)
    text = (tmp_path / "leaderboard.json").read_text()
    found = json.loads(text, parse_constant=pytest.fail)
    first, second = found["models"]
    assert first["metrics"]["auc"] == {"mean": 0.7, "min": 0.7, "max": 0.7}
    assert [run["metrics"]["auc"] for run in first["runs"]] == [0.7, None]
    assert first["parameters"] == {"dense": 5, "tables": 70}
    assert (second["errors"], second["parameters"], second["metrics"]) == ({"1": "no"}, None, {"auc": None})


def test_without_matplotlib_a_line_says_what_to_install_and_the_rest_is_written(tmp_path, monkeypatch, caplog):
    (tmp_path / "leaderboard.png").write_text("of an earlier comparison")
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find_spec(name))
    with caplog.at_level(logging.WARNING):
        write_leaderboard(board(entry("a", 0.7)), tmp_path)
    assert "pip install 'tzrec-core[demo]'" in caplog.text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["leaderboard.json", "leaderboard.md"]


def test_the_plot_has_a_panel_per_metric_and_one_for_the_speed(tmp_path):
    pytest.importorskip("matplotlib")
    write_leaderboard(board(entry("a", 0.7, 0.8, logloss=0.5), entry("b", 0.6, 0.7, logloss=0.6)), tmp_path)
    header = (tmp_path / "leaderboard.png").read_bytes()[:24]
    assert header.startswith(b"\x89PNG")
    assert int.from_bytes(header[16:20], "big") == pytest.approx(3 * 3.4 * 120, abs=2)
