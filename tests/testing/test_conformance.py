"""The doors to the checks; what is behind them is tested with the checks themselves."""

import os
import subprocess
import sys

import pytest
from breakages import broken_copy, claims

from tzrec_core.errors import ConfigError, PluginError
from tzrec_core.plugins import Registry, Selection, Trait, use_registry
from tzrec_core.testing import PluginConformance, check_model, check_plugin
from tzrec_core.testing import check as check_module
from tzrec_core.testing.check import NotClaimed, Outcome, Skipped, model_check, plugin_check

pytest_plugins = ["pytester"]


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    with broken_copy(tmp_path_factory.mktemp("copy"), claims("SCRIPT")) as plugin:
        yield plugin


@pytest.fixture(autouse=True)
def few_checks(monkeypatch, copy):
    """One check of each outcome, in place of the kit's."""
    monkeypatch.setattr(check_module, "_checks", {})

    @plugin_check
    def check_bound(plugin):
        """It has a bound."""

    @model_check
    def check_order(model):
        """Rows may change places."""

    @model_check
    def check_finite(model):
        """It is finite."""
        raise AssertionError("'probs' at [3] is nan")

    @model_check(trait=Trait.ONNX)
    def check_onnx(model):
        """It has an ONNX graph."""

    @model_check
    def check_sequences(model):
        """Sequences matter."""
        raise NotClaimed("no sequence")

    @model_check(slow=True)
    def check_ranks(model):
        """Two ranks predict as one."""
        raise Skipped("no second core")

    @model_check(slow=True)
    def check_gradients(model):
        """Gradients flow."""
        assert set(model.parameters_without_gradient) == {"fm.*"}, "a parameter has no gradient"


@pytest.fixture
def suite(copy, pytester):
    """Runs a test file with one conformance class; the arguments are its body."""
    pytester.makeini("[pytest]\nmarkers = slow: takes long\naddopts = --strict-markers")

    def run(*body, args=()):
        lines = [f"plugin = {copy.name!r}", *body]
        pytester.makepyfile(
            "from tzrec_core.testing import PluginConformance\nclass TestPlugin(PluginConformance):\n"
            + "\n".join(f"    {line}" for line in lines)
        )
        return pytester.inline_run("-p", "no:cacheprovider", *args)

    return run


def outcomes(recorder):
    """Test name -> outcome and, for what did not pass, the reason."""
    found = {}
    for report in recorder.getreports("pytest_runtest_logreport"):
        if report.when != "call":
            continue
        name = report.nodeid.partition("::test_conformance[")[2][:-1]
        outcome = "xfailed" if hasattr(report, "wasxfail") else report.outcome
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr or "")
        found[name] = (outcome, getattr(report, "wasxfail", "") or reason)
    return found


# check_plugin and check_model


def test_a_plugin_has_a_result_per_check_and_model_its_own_first(copy):
    results = check_plugin(copy.name)
    assert [(result.key, str(result.outcome)) for result in results] == [
        ("bound", "passed"),
        ("order[deepfm]", "passed"),
        ("finite[deepfm]", "failed"),
        ("onnx[deepfm]", "not claimed"),
        ("sequences[deepfm]", "not claimed"),
    ]


def test_the_slow_tier_comes_on_top(copy):
    keys = {result.key for result in check_plugin("deepfm", slow=True)}
    assert keys - {result.key for result in check_plugin("deepfm")} == {"ranks[deepfm]", "gradients[deepfm]"}


def test_a_model_has_the_checks_of_models_only(copy):
    results = check_model("deepfm", slow=True)
    assert [result.check for result in results] == ["order", "finite", "onnx", "sequences", "ranks", "gradients"]
    assert {result.model for result in results} == {"deepfm"}


def test_unknown_plugins_and_models_are_errors(copy):
    with pytest.raises(PluginError, match="there is no plugin 'deepfmm'"):
        check_plugin("deepfmm")
    with pytest.raises(ConfigError, match="there is no model 'deepfmm'"):
        check_model("deepfmm")


def test_checks_of_packages_do_not_apply_to_a_file(copy, monkeypatch):
    file = copy.package_folder / "first_hours.py"
    file.write_text((copy.package_folder / "plugin.py").read_text())
    monkeypatch.setenv("TZREC_PLUGINS", "")
    with use_registry(Registry.find(Selection.from_environment())):
        results = {result.key: result for result in check_plugin(str(file))}
    sys.modules.pop("first_hours")
    assert results["bound"].outcome is Outcome.NOT_CLAIMED
    assert "does not apply to a file" in results["bound"].message
    assert results["order[deepfm]"].outcome is Outcome.PASSED


# The class for pytest


def test_every_check_is_a_test_that_shows_its_outcome(suite):
    found = outcomes(suite())
    assert {name: outcome for name, (outcome, _) in found.items()} == {
        "bound": "passed",
        "order[deepfm]": "passed",
        "finite[deepfm]": "failed",
        "onnx[deepfm]": "skipped",
        "sequences[deepfm]": "skipped",
        "ranks[deepfm]": "skipped",
        "gradients[deepfm]": "failed",
    }
    assert found["finite[deepfm]"][1].startswith("finite[deepfm]: It is finite.\n'probs' at [3] is nan")
    assert "not claimed: the spec does not list Trait.ONNX" in found["onnx[deepfm]"][1]
    assert "not claimed: no sequence" in found["sequences[deepfm]"][1]
    assert "no second core" in found["ranks[deepfm]"][1]


def test_pytest_shows_what_a_failed_check_printed_and_its_traceback(suite):
    (report,) = [report for report in suite("").listoutcomes()[2] if "finite" in report.nodeid]
    assert "Traceback (most recent call last):" in report.capstdout
    assert report.capstdout.rstrip().endswith("AssertionError: 'probs' at [3] is nan")


def test_slow_checks_are_marked(suite):
    assert set(outcomes(suite(args=["-m", "slow"]))) == {"ranks[deepfm]", "gradients[deepfm]"}


def test_an_expected_failure_is_one_that_must_fail(suite):
    found = outcomes(suite('expected_failures = {"finite[deepfm]": "issue 7", "order[deepfm]": "issue 8"}'))
    assert found["finite[deepfm]"] == ("xfailed", "issue 7: 'probs' at [3] is nan")
    outcome, reason = found["order[deepfm]"]
    assert outcome == "failed"
    assert reason == "order[deepfm] is in expected_failures (issue 8), but it is passed; take it out"


def test_an_expected_failure_that_is_not_claimed_fails_and_one_that_cannot_run_here_is_skipped(suite):
    found = outcomes(suite('expected_failures = {"onnx[deepfm]": "issue 7", "ranks[deepfm]": "issue 8"}'))
    assert found["onnx[deepfm]"][0] == "failed"
    assert "but it is not claimed; take it out" in found["onnx[deepfm]"][1]
    assert found["ranks[deepfm]"][0] == "skipped"


def test_an_expected_failure_of_an_unknown_check_is_refused_with_the_nearest(copy):
    class TestPlugin(PluginConformance):
        plugin = copy.name
        expected_failures = {"finit[deepfm]": "issue 7"}

    with pytest.raises(ConfigError, match=r"names 'finit\[deepfm\]', which does not exist. Did you mean 'finite"):
        TestPlugin().pytest_generate_tests(Metafunc())


def test_parameters_without_gradient_reach_the_check(suite):
    found = outcomes(suite('parameters_without_gradient = {"deepfm": ("fm.*",)}'))
    assert found["gradients[deepfm]"][0] == "passed"


def test_parameters_without_gradient_of_an_unknown_model_are_refused(copy):
    class TestPlugin(PluginConformance):
        plugin = copy.name
        parameters_without_gradient = {"deepfn": ("fm.*",)}

    with pytest.raises(ConfigError, match="parameters_without_gradient names 'deepfn'"):
        TestPlugin().pytest_generate_tests(Metafunc())


def test_a_class_of_an_unknown_plugin_ends_the_collection(suite):
    recorder = suite("plugin = 'deepfn'")
    (report,) = [r for r in recorder.getreports("pytest_collectreport") if r.failed]
    assert "there is no plugin 'deepfn'" in str(report.longrepr)


def test_tests_of_ones_own_may_stand_in_the_class(suite):
    found = suite("def test_other(self): assert self.plugin")
    assert found.ret == pytest.ExitCode.TESTS_FAILED
    passed, _, _ = found.listoutcomes()
    assert any("test_other" in report.nodeid for report in passed)


class Metafunc:
    fixturenames = ("case",)


def test_the_kit_works_without_pytest(copy, tmp_path):
    code = f"""
import sys
sys.modules["pytest"] = None  # importing it is an error
from tzrec_core.testing import check_plugin
results = {{result.check: result for result in check_plugin({copy.name!r})}}
assert results["readme"].outcome == "passed", results["readme"]
assert all(result.message for result in results.values() if result.outcome != "passed")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=os.environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
