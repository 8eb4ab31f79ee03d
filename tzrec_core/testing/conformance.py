"""The three doors to the checks: a test class for pytest, `tzrec check`, and functions.

    class TestPlugin(PluginConformance):
        plugin = "tzrec-deepfm"

The tests follow from the manifest: a model that is added to it, and a check that the kit gains, arrive by themselves.
"""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from tzrec_core.errors import ConfigError, did_you_mean
from tzrec_core.plugins import ModelSpec, registry
from tzrec_core.testing.check import Check, CheckResult, Outcome, checks, run_check
from tzrec_core.testing.subject import ModelSubject, PluginSubject

# Each registers its checks; they are shown in this order.
# isort: off
from tzrec_core.testing import packaging  # noqa: F401
from tzrec_core.testing import model_checks  # noqa: F401
from tzrec_core.testing import graph_checks  # noqa: F401
from tzrec_core.testing import rank_checks  # noqa: F401
from tzrec_core.testing import export_checks  # noqa: F401
# isort: on


def check_plugin(name: str, *, slow: bool = False) -> list[CheckResult]:
    """Run the checks of a plugin and of each of its models.

    Args:
        name: its distribution, entry point or file, such as `tzrec-deepfm`, `deepfm` or `./plugin.py`.
        slow: run the slow tier too.

    Returns:
        a result per check, first those of the plugin, then those of each model.

    Raises:
        PluginError: there is no such plugin, or it is not ok.
    """
    return list(results(PluginSubject.find(name), slow=slow))


def check_model(name: str, *, slow: bool = False) -> list[CheckResult]:
    """Run the checks of one model, by its name, such as `deepfm`.

    Args:
        name: as `get_model` takes it.
        slow: run the slow tier too.

    Raises:
        ConfigError: no known plugin offers the model.
        PluginError: its plugin is not ok, or not installed.
    """
    offer = registry().get(ModelSpec, name)
    plugin = PluginSubject.find(offer.plugin.distribution)
    (model,) = [model for model in plugin.models if model.spec == offer.spec]
    return [run_check(check, model) for check in checks("model", slow=slow)]


def results(plugin: PluginSubject, *, slow: bool = False) -> Iterator[CheckResult]:
    """The results of `check_plugin`, each as soon as it is there."""
    for check, subject in _cases(plugin, slow=slow):
        yield _result(check, subject)


def _cases(plugin: PluginSubject, *, slow: bool) -> Iterator[tuple[Check, PluginSubject | ModelSubject]]:
    for check in checks("plugin", slow=slow):
        yield check, plugin
    for model in plugin.models:
        for check in checks("model", slow=slow):
            yield check, model


def _result(check: Check, subject: PluginSubject | ModelSubject) -> CheckResult:
    if isinstance(subject, PluginSubject) and subject.distribution is None:
        message = "does not apply to a file; `tzrec new-plugin` makes a package"
        return CheckResult(check.name, "", check.rule, Outcome.NOT_CLAIMED, message, 0.0)
    return run_check(check, subject)


class PluginConformance:
    """A test class for pytest: one test for each check of the plugin and of each of its models.

    Checks of the slow tier are marked `slow`. What the plugin does not claim, and what this machine cannot check, is
    skipped with the reason.

    Attributes:
        plugin: as `check_plugin` takes it.
        expected_failures: `check[model]`, or `check` for one of the plugin -> why it fails; such a check must fail.
        parameters_without_gradient: model -> glob patterns of the parameters that have no gradient by design.
    """

    plugin: ClassVar[str]
    expected_failures: ClassVar[Mapping[str, str]] = {}
    parameters_without_gradient: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    def pytest_generate_tests(self, metafunc: Any) -> None:  # Any: pytest's, which only tests have
        """Make the tests; pytest calls it."""
        import pytest

        if "case" not in metafunc.fixturenames:
            return
        plugin = PluginSubject.find(self.plugin)
        for model in plugin.models:
            model.parameters_without_gradient = self.parameters_without_gradient.get(model.spec.name, ())
        _require_known(
            "parameters_without_gradient", self.parameters_without_gradient, {m.spec.name for m in plugin.models}
        )
        cases = {_key(check, subject): (check, subject) for check, subject in _cases(plugin, slow=True)}
        _require_known("expected_failures", self.expected_failures, set(cases))
        metafunc.parametrize(
            "case",
            [
                pytest.param(case, id=key, marks=[pytest.mark.slow] if case[0].slow else [])
                for key, case in cases.items()
            ],
        )

    def test_conformance(self, case: tuple[Check, PluginSubject | ModelSubject]) -> None:
        """One check."""
        import pytest

        result = _result(*case)
        why = self.expected_failures.get(result.key)
        if why is not None and result.outcome is Outcome.FAILED:
            pytest.xfail(f"{why}: {result.message}")
        if result.outcome is Outcome.FAILED:
            print(result.details)  # pytest shows it below the message
            pytest.fail(f"{result.key}: {result.rule}\n{result.message}", pytrace=False)
        if result.outcome is Outcome.SKIPPED:
            pytest.skip(result.message)
        if why is not None:
            pytest.fail(
                f"{result.key} is in expected_failures ({why}), but it is {result.outcome}; take it out", pytrace=False
            )
        if result.outcome is Outcome.NOT_CLAIMED:
            pytest.skip(f"not claimed: {result.message}")


def _key(check: Check, subject: PluginSubject | ModelSubject) -> str:
    return f"{check.name}[{subject.spec.name}]" if isinstance(subject, ModelSubject) else check.name


def _require_known(attribute: str, given: Mapping[str, Any], known: set[str]) -> None:
    for name in sorted(set(given) - known):
        raise ConfigError(
            f"{attribute} names {name!r}, which does not exist.{did_you_mean(name, known)} There are: "
            f"{', '.join(sorted(known))}"
        )
