import json
import math

import pytest

from tzrec_core.engine.results import append_result, json_line, read_result


def test_numbers_that_json_does_not_have_become_null():
    text = json_line({"a": float("nan"), "b": float("inf"), "c": 0.5, "d": 3, "e": "x", "f": True})
    assert text.endswith("\n")
    assert json.loads(text, parse_constant=pytest.fail) == {"a": None, "b": None, "c": 0.5, "d": 3, "e": "x", "f": True}


def test_the_last_result_of_a_step_is_read_back(tmp_path):
    for step, auc in ((1, 0.5), (2, 0.6), (2, 0.7), (3, math.nan)):
        append_result(tmp_path, "result.txt", step, {"auc": auc})
    assert read_result(tmp_path, "result.txt", 2) == {"auc": 0.7}
    assert math.isnan(read_result(tmp_path, "result.txt", 3)["auc"])
    assert read_result(tmp_path, "result.txt", 4) == read_result(tmp_path, "other.txt", 1) == {}


def test_a_line_that_a_crash_has_cut_is_passed_over(tmp_path):
    append_result(tmp_path, "result.txt", 1, {"auc": 0.5})
    with (tmp_path / "result.txt").open("a") as file:
        file.write('{"global_step": 1, "au')
    assert read_result(tmp_path, "result.txt", 1) == {"auc": 0.5}
