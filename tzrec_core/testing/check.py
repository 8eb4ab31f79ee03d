"""What a check is, and how one is run: a rule about a plugin or a model, as a function that raises when it is broken.

    @model_check(trait=Trait.SCRIPT)
    def check_scripts(model: ModelSubject) -> None:
        \"\"\"The scripted model predicts what the model predicts.\"\"\"
        ...

The first line of the docstring is the rule that people read; the name is the function's without `check_`.
"""

import io
import logging
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

from tzrec_core.engine.setup import seed_everything
from tzrec_core.plugins import Trait

Kind: TypeAlias = Literal["plugin", "model"]
F = TypeVar("F", bound=Callable[..., None])

_SEED = 1
_MAX_LINES, _MAX_WIDTH = 12, 300  # of a message, so that a failure leaves room for others on the screen


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
        message: why it did not pass, in 12 lines at most; empty when it did.
        seconds: how long it took.
        details: of a failure: what was printed, warned and logged meanwhile, and the traceback.
    """

    check: str
    model: str
    rule: str
    outcome: Outcome
    message: str
    seconds: float
    details: str = ""

    @property
    def key(self) -> str:
        """How `expected_failures` names it: `check[model]`, or `check` for one of the plugin."""
        return f"{self.check}[{self.model}]" if self.model else self.check


def run_check(check: Check, subject: Any) -> CheckResult:
    """Run a check and say how it ended; only an interrupt gets through.

    Python, NumPy and torch are seeded before. What is printed, warned and logged meanwhile is kept for the details of a
    failure; only log lines above warnings go on to their handlers.

    Args:
        check: what to run.
        subject: a PluginSubject or a ModelSubject, as `check.kind` says.
    """
    model = subject.spec.name if check.kind == "model" else ""
    start = time.perf_counter()
    with _captured() as captured:
        outcome, message, trace = _run(check, subject)
    seconds = time.perf_counter() - start
    details = captured.getvalue() + trace if outcome is Outcome.FAILED else ""
    return CheckResult(check.name, model, check.rule, outcome, message, seconds, details)


def _run(check: Check, subject: Any) -> tuple[Outcome, str, str]:
    """How it ended, the message, and the traceback of a failure."""
    if check.trait is not None and check.trait not in subject.spec.traits:
        return Outcome.NOT_CLAIMED, f"the spec does not list Trait.{check.trait.name}", ""
    try:
        with subject.in_use():
            seed_everything(_SEED)
            check.run(subject)
    except NotClaimed as reason:
        return Outcome.NOT_CLAIMED, str(reason), ""
    except Skipped as reason:
        return Outcome.SKIPPED, str(reason), ""
    except (Exception, SystemExit) as error:  # a plugin may fail in any way; the other checks go on
        return Outcome.FAILED, _describe(error, subject.package_folder), "".join(traceback.format_exception(error))
    return Outcome.PASSED, "", ""


@contextmanager
def _captured() -> Iterator[io.StringIO]:
    """Within the block, what is printed, warned and logged is written here instead of to the screen."""
    text = io.StringIO()
    kept: list[logging.LogRecord] = []

    def keep(record: logging.LogRecord) -> bool:
        if record.levelno >= logging.WARNING and record not in kept[-1:]:  # which another handler has kept
            kept.append(record)
            text.write(f"{record.levelname} {record.name}: {record.getMessage()}\n")
        return record.levelno > logging.WARNING

    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    handlers = {handler for logger in loggers for handler in getattr(logger, "handlers", ())}
    handlers |= {logging.lastResort} if logging.lastResort else set()
    for handler in handlers:
        handler.addFilter(keep)
    try:
        with redirect_stdout(text), redirect_stderr(text), warnings.catch_warnings():
            warnings.simplefilter("default")
            warnings.showwarning = lambda *args, **_: text.write(warnings.formatwarning(*args[:4]))
            yield text
    finally:
        for handler in handlers:
            handler.removeFilter(keep)


def _describe(error: BaseException, package_folder: Path) -> str:
    """What happened, cut to a few lines, and the last line of the plugin's own code on the way there."""
    text = str(error).strip() or "no message"
    if not isinstance(error, AssertionError):
        text = f"{type(error).__name__}: {text}"
    lines = [line if len(line) <= _MAX_WIDTH else f"{line[:_MAX_WIDTH]} ..." for line in text.splitlines()]
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.is_relative_to(package_folder):
            where = path.relative_to(package_folder.parent)
            lines.append(f"  at {where}:{frame.lineno} in {frame.name}: {frame.line}")
            break
    left_out = len(lines) - _MAX_LINES
    if left_out > 0:
        lines[_MAX_LINES - 2 : -1] = [f"... {left_out + 1} lines left out ..."]
    return "\n".join(lines)
