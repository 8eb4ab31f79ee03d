"""`tzrec check`: what it prints and how it exits; the checks have tests of their own in tests/testing."""

import importlib
from pathlib import Path

import pytest

from tzrec_core.plugins import Trait
from tzrec_core.testing import check as check_module
from tzrec_core.testing.check import model_check, plugin_check

MANIFEST = str(Path(__file__).parents[1] / "tiny_plugin/tiny.py")


@pytest.fixture(autouse=True)
def no_checks(monkeypatch):
    importlib.import_module("tzrec_core.testing.conformance")  # the kit's checks are registered before
    monkeypatch.setattr(check_module, "_checks", {})


@pytest.fixture
def sound():
    @plugin_check
    def check_bound(plugin):
        """It has a bound."""

    @model_check
    def check_order(model):
        """Rows may change places."""
        print("a model may print")

    @model_check(trait=Trait.ONNX)
    def check_onnx(model):
        """It has an ONNX graph."""

    @model_check(slow=True)
    def check_ranks(model):
        """Two ranks predict as one."""


@pytest.fixture
def broken(sound):
    for name in ("finite", "gradients"):

        def check(model):
            """Numbers are numbers."""
            raise AssertionError("'probs' at [3] is nan\n" + "\n".join(f"more {n}" for n in range(30)))

        check.__name__ = f"check_{name}"
        model_check(check)


def test_a_table_shows_rule_outcome_and_seconds_of_each_check(tzrec, sound):
    result = tzrec("check", MANIFEST)
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    assert "model tiny" in lines
    assert "package: not claimed: does not apply to a file; `tzrec new-plugin` makes a package" in lines
    (order,) = [line for line in lines if line.startswith("order")]
    assert "Rows may change places." in order and "passed" in order and order.rstrip().endswith("0.0")
    (onnx,) = [line for line in lines if line.startswith("onnx")]
    assert "not claimed: the spec does not list Trait.ONNX" in onnx
    assert lines[-1] == f"{MANIFEST}: 2 not claimed, 1 passed, in 0 s"
    assert "a model may print" not in result.out + result.err
    assert "ranks" not in result.out


def test_a_broken_rule_exits_1_and_its_message_stands_below_the_tables_once(tzrec, broken):
    result = tzrec("check", MANIFEST)
    assert result.code == 1
    assert result.out.index("failed: finite[tiny], gradients[tiny]") > result.out.index("Rows may change places.")
    assert result.out.count("'probs' at [3] is nan") == 1
    assert "more 8\n" in result.out and "more 9\n" not in result.out and "more 29\n" in result.out
    assert "... 20 lines left out ..." in result.out
    assert "--json has the tracebacks, and what was printed meanwhile" in result.out
    assert result.out.splitlines()[-1] == f"{MANIFEST}: 2 not claimed, 1 passed, 2 failed, in 0 s"


def test_json_has_every_result_and_the_details_of_failures(tzrec, broken):
    result = tzrec("check", MANIFEST, "--json")
    assert result.code == 1
    assert set(result.json) == {"plugin", "version", "ok", "checks"}
    assert (result.json["plugin"], result.json["ok"]) == (MANIFEST, False)
    rows = {row["check"]: row for row in result.json["checks"]}
    assert set(rows["finite"]) == {"check", "model", "rule", "outcome", "message", "details", "seconds"}
    assert (rows["finite"]["model"], rows["bound"]["model"]) == ("tiny", "")
    assert "more 9\n" in rows["finite"]["details"] and "Traceback (most recent call last):" in rows["finite"]["details"]
    assert [rows[name]["outcome"] for name in ("bound", "order", "onnx", "finite")] == [
        "not claimed",
        "passed",
        "not claimed",
        "failed",
    ]


def test_slow_checks_run_when_asked_for(tzrec, sound):
    rows = tzrec("check", MANIFEST, "--slow", "--json").json["checks"]
    assert [row["check"] for row in rows] == ["bound", "order", "onnx", "ranks"]


@pytest.mark.parametrize(
    ("name", "words"), [("./nowhere.py", "there is no such file"), ("deepfm", "is disabled"), ("nobody", "no plugin")]
)
def test_a_plugin_that_cannot_be_loaded_exits_3(tzrec, sound, name, words):
    result = tzrec("check", name)
    assert (result.code, result.out) == (3, "")
    assert words in result.err


def test_a_manifest_that_raises_exits_3_with_its_error(tzrec, sound, tmp_path):
    (tmp_path / "mine.py").write_text("import nobody_has_this")
    result = tzrec("check", str(tmp_path / "mine.py"))
    assert result.code == 3
    assert "mine.py is broken: ModuleNotFoundError: No module named 'nobody_has_this'" in result.err


def test_a_file_given_twice_is_checked_once(tzrec, sound):
    result = tzrec("--plugin", MANIFEST, "check", MANIFEST, "--json")
    assert (result.code, result.json["ok"]) == (0, True)
