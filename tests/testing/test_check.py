"""What the runner of checks promises, whatever the checks are."""

import contextlib
import io
import logging
import random
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tzrec_core.plugins import ModelSpec, Trait
from tzrec_core.testing import check as check_module
from tzrec_core.testing import export_checks, graph_checks, model_checks, packaging, rank_checks
from tzrec_core.testing.check import NotClaimed, Outcome, Skipped, checks, model_check, plugin_check, run_check


@pytest.fixture(autouse=True)
def no_checks(monkeypatch):
    monkeypatch.setattr(check_module, "_checks", {})


@pytest.fixture
def model():
    spec = ModelSpec("m", "a:B", "a_pb2:B", summary="S.", traits=frozenset({Trait.SCRIPT}))
    return SimpleNamespace(spec=spec, package_folder=Path(__file__).parent, in_use=contextlib.nullcontext)


def result_of(function, model, **options):
    model_check(function, **options)
    (check,) = checks("model", slow=True)
    return run_check(check, model)


def raising(error):
    def check_rule(model):
        """The rule."""
        raise error

    return check_rule


def test_a_check_is_called_as_its_function_and_its_rule_is_the_first_line_of_the_docstring(model):
    def check_order(model):
        """Rows may change places.

        More about it.
        """

    result = result_of(check_order, model)
    assert (result.check, result.rule, result.model) == ("order", "Rows may change places.", "m")
    assert result.key == "order[m]"
    assert (result.outcome, result.message) == (Outcome.PASSED, "")
    assert 0 <= result.seconds < 1


def test_a_result_of_a_plugin_has_no_model_in_its_key(model):
    @plugin_check
    def check_bound(plugin):
        """It has a bound."""

    (check,) = checks("plugin", slow=False)
    assert run_check(check, model).key == "bound"


@pytest.mark.parametrize(
    ("error", "outcome", "message"),
    [
        (NotClaimed("no sequence"), Outcome.NOT_CLAIMED, "no sequence"),
        (Skipped("pip install onnx"), Outcome.SKIPPED, "pip install onnx"),
        (AssertionError("too far"), Outcome.FAILED, "too far"),
        (ValueError("a b"), Outcome.FAILED, "ValueError: a b"),
        (KeyError(), Outcome.FAILED, "KeyError: no message"),
        (SystemExit(3), Outcome.FAILED, "SystemExit: 3"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_a_check_raises_decides_its_outcome(model, error, outcome, message):
    result = result_of(raising(error), model)
    assert (result.outcome, result.message.splitlines()[0]) == (outcome, message)


def test_an_interrupt_gets_through(model):
    with pytest.raises(KeyboardInterrupt):
        result_of(raising(KeyboardInterrupt()), model)


def test_a_failure_shows_the_last_line_of_the_plugins_own_code(model, tmp_path):
    code = "def predict():\n    return int('x')\n"
    (tmp_path / "acme").mkdir()
    (tmp_path / "acme/model.py").write_text(code)
    scope = {}
    exec(compile(code, str(tmp_path / "acme/model.py"), "exec"), scope)

    def check_rule(model):
        """The rule."""
        scope["predict"]()

    model.package_folder = tmp_path / "acme"
    message = result_of(check_rule, model).message
    assert message.splitlines()[0].startswith("ValueError: invalid literal")
    assert message.splitlines()[1] == "  at acme/model.py:2 in predict: return int('x')"


def test_a_failure_outside_of_the_plugin_shows_no_line(model, tmp_path):
    model.package_folder = tmp_path
    assert result_of(raising(AssertionError("too far")), model).message == "too far"


def test_a_check_of_a_trait_that_is_not_claimed_is_not_run(model):
    result = result_of(raising(AssertionError()), model, trait=Trait.ONNX)
    assert (result.outcome, result.message) == (Outcome.NOT_CLAIMED, "the spec does not list Trait.ONNX")


def test_a_check_of_a_claimed_trait_is_run(model):
    assert result_of(raising(AssertionError()), model, trait=Trait.SCRIPT).outcome is Outcome.FAILED


def test_the_slow_tier_is_left_out_unless_asked_for_and_order_is_that_of_registration():
    for name, slow in [("c", False), ("a", True), ("b", False)]:

        def check(model):
            """A rule."""

        check.__name__ = f"check_{name}"
        model_check(check, slow=slow)
    assert [check.name for check in checks("model", slow=False)] == ["c", "b"]
    assert [check.name for check in checks("model", slow=True)] == ["c", "a", "b"]
    assert checks("plugin", slow=True) == []


def test_two_checks_of_one_name_and_one_without_a_rule_are_refused():
    def check_rule(model):
        """A rule."""

    model_check(check_rule)
    with pytest.raises(AssertionError, match="check_rule needs a name of its own"):
        plugin_check(check_rule)
    with pytest.raises(AssertionError, match="a rule as docstring"):
        model_check(lambda model: None)


def test_every_check_starts_from_the_same_seed(model):
    drawn = []

    def check_rule(model):
        """The rule."""
        drawn.append((random.random(), np.random.rand(), torch.rand(1).item()))

    model_check(check_rule)
    (check,) = checks("model", slow=False)
    run_check(check, model)
    random.random(), torch.rand(3)
    run_check(check, model)
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("number", [12, 13, 50])
def test_a_long_message_keeps_its_first_lines_and_its_last_in_twelve(model, number, tmp_path):
    model.package_folder = tmp_path
    lines = [f"line {n}" for n in range(1, number + 1)]
    result = result_of(raising(AssertionError("\n".join(lines))), model)
    kept = lines if number == 12 else [*lines[:10], f"... {number - 11} lines left out ...", lines[-1]]
    assert result.message.splitlines() == kept
    assert "\n".join(lines) in result.details


def test_a_long_line_of_a_message_is_cut(model, tmp_path):
    model.package_folder = tmp_path
    result = result_of(raising(AssertionError("a" * 5000 + "\nb")), model)
    assert result.message == "a" * 300 + " ...\nb"
    assert "a" * 5000 in result.details


def check_loud(model):
    """The rule."""
    print("printed")
    print("to stderr", file=sys.stderr)
    logging.getLogger("tzrec_core.engine").warning("slow %s", "start")
    logging.getLogger("acme").error("bad")
    warnings.warn("old", stacklevel=1)
    if model.fails:
        raise AssertionError("too far")


def test_what_is_printed_warned_and_logged_below_errors_stays_quiet_within_a_check_only(model, caplog, capsys):
    model.fails = False
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = result_of(check_loud, model)
    assert (result.outcome, result.details) == (Outcome.PASSED, "")
    logging.getLogger("acme").warning("after")
    assert (caught, caplog.messages) == ([], ["bad", "after"])
    assert capsys.readouterr() == ("", "")


def test_the_details_of_a_failure_have_all_that_was_kept_quiet_and_the_traceback(model, tmp_path):
    model.package_folder = tmp_path
    model.fails = True
    result = result_of(check_loud, model)
    lines = result.details.splitlines()
    assert lines[:4] == ["printed", "to stderr", "WARNING tzrec_core.engine: slow start", "ERROR acme: bad"]
    assert lines[4].endswith("UserWarning: old")
    assert "Traceback (most recent call last):" in lines and lines[-1] == "AssertionError: too far"
    assert result.message == "too far"


def test_a_logger_with_a_handler_of_its_own_is_quiet_too(model):
    shown = io.StringIO()
    logger, handler = logging.getLogger("acme.own"), logging.StreamHandler(shown)
    logger.addHandler(handler)

    def check_rule(model):
        """The rule."""
        logger.warning("slow")

    try:
        result_of(check_rule, model)
        assert shown.getvalue() == ""
        logger.warning("after")
        assert shown.getvalue() == "after\n"
    finally:
        logger.removeHandler(handler)


def test_a_checks_name_tells_what_is_checked():
    for module in (packaging, model_checks, graph_checks, rank_checks, export_checks):
        names = [name for name in vars(module) if name.startswith("check_")]
        assert names
        for name in names:
            rule = getattr(module, name).__doc__.partition("\n")[0]
            assert rule.endswith("."), f"the rule of {name} is no sentence: {rule!r}"
