"""What a check is, and how one is run: a rule about a plugin or a model, as a function that raises when it is broken.

    @model_check(trait=Trait.SCRIPT)
    def check_scripts(model: ModelSubject) -> None:
        \"\"\"The scripted model predicts what the model predicts.\"\"\"
        ...

The first line of the docstring is the rule that people read; the name is the function's without `check_`.
"""

import logging
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

from tzrec_core.engine.setup import seed_everything
from tzrec_core.plugins import Trait

Kind: TypeAlias = Literal["plugin", "model"]
F = TypeVar("F", bound=Callable[..., None])

_SEED = 1


class Outcome(StrEnum):
    """How a check ended."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_CLAIMED = "not claimed"
    SKIPPED = "skipped"


class NotClaimed(Exception):  # noqa: N818 - not an error, but an answer
    """The plugin does not claim what the check would prove; says what it would have to claim."""


class Skipped(Exception):  # noqa: N818
    """This machine lacks what the check needs; says what to install."""


@dataclass(frozen=True)
class Check:
    """A rule of the kit.

    Attributes:
        name: of the function, without `check_`.
        rule: what holds when it passes, in one sentence.
        run: takes a PluginSubject or a ModelSubject; raises when the rule is broken.
        kind: what it takes.
        trait: what a model must claim for the check to run; None = every model is held to it.
        slow: whether it belongs to the slow tier.
    """

    name: str
    rule: str
    run: Callable[[Any], None]  # Any: a PluginSubject or a ModelSubject, as `kind` says
    kind: Kind
    trait: Trait | None = None
    slow: bool = False


_checks: dict[str, Check] = {}


def plugin_check(function: F | None = None, *, slow: bool = False) -> Any:  # Any: the function, or its decorator
    """Make a function over a PluginSubject a check of every plugin.

    Args:
        function: called `check_<name>`, with the rule as first line of its docstring.
        slow: True for the slow tier.
    """
    return _register("plugin", function, None, slow)


def model_check(function: F | None = None, *, trait: Trait | None = None, slow: bool = False) -> Any:  # Any: as above
    """Make a function over a ModelSubject a check of every model.

    Args:
        function: called `check_<name>`, with the rule as first line of its docstring.
        trait: the check runs for models that claim it; None = for all.
        slow: True for the slow tier.
    """
    return _register("model", function, trait, slow)


def _register(kind: Kind, function: F | None, trait: Trait | None, slow: bool) -> Any:
    def register(function: F) -> F:
        name = function.__name__.removeprefix("check_")
        rule = (function.__doc__ or "").strip().partition("\n")[0]
        assert name not in _checks and rule, f"{function.__name__} needs a name of its own and a rule as docstring"
        _checks[name] = Check(name, rule, function, kind, trait, slow)
        return function

    return register if function is None else register(function)


def checks(kind: Kind, *, slow: bool) -> list[Check]:
    """The checks of a kind, in the order in which their modules register them; with `slow` those of both tiers."""
    return [check for check in _checks.values() if check.kind == kind and (slow or not check.slow)]


@dataclass(frozen=True)
class CheckResult:
    """How one check of one subject ended.

    Attributes:
        check: its name.
        model: the model's name; empty for a check of the plugin.
        rule: what holds when it passes.
        outcome: how it ended.
        message: why it did not pass; empty when it did.
        seconds: how long it took.
    """

    check: str
    model: str
    rule: str
    outcome: Outcome
    message: str
    seconds: float

    @property
    def key(self) -> str:
        """How `expected_failures` names it: `check[model]`, or `check` for one of the plugin."""
        return f"{self.check}[{self.model}]" if self.model else self.check


def run_check(check: Check, subject: Any) -> CheckResult:
    """Run a check and say how it ended; only an interrupt gets through.

    Python, NumPy and torch are seeded before; warnings, and log lines below errors, stay quiet.

    Args:
        check: what to run.
        subject: a PluginSubject or a ModelSubject, as `check.kind` says.
    """
    model = subject.spec.name if check.kind == "model" else ""
    start = time.perf_counter()
    outcome, message = _run(check, subject)
    return CheckResult(check.name, model, check.rule, outcome, message, time.perf_counter() - start)


def _run(check: Check, subject: Any) -> tuple[Outcome, str]:
    if check.trait is not None and check.trait not in subject.spec.traits:
        return Outcome.NOT_CLAIMED, f"the spec does not list Trait.{check.trait.name}"
    disabled = logging.root.manager.disable
    try:
        logging.disable(logging.WARNING)
        with warnings.catch_warnings(), subject.in_use():
            warnings.simplefilter("ignore")
            seed_everything(_SEED)
            check.run(subject)
    except NotClaimed as reason:
        return Outcome.NOT_CLAIMED, str(reason)
    except Skipped as reason:
        return Outcome.SKIPPED, str(reason)
    except (Exception, SystemExit) as error:  # a plugin may fail in any way; the other checks go on
        return Outcome.FAILED, _describe(error, subject.package_folder)
    finally:
        logging.disable(disabled)
    return Outcome.PASSED, ""


def _describe(error: BaseException, package_folder: Path) -> str:
    """What happened and the last line of the plugin's own code on the way there."""
    text = str(error).strip() or "no message"
    if not isinstance(error, AssertionError):
        text = f"{type(error).__name__}: {text}"
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.is_relative_to(package_folder):
            where = path.relative_to(package_folder.parent)
            return f"{text}\n  at {where}:{frame.lineno} in {frame.name}: {frame.line}"
    return text
