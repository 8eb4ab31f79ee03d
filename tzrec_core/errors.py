"""Errors meant for users: each says what is wrong, where, and what to do.

`assert` and the built-in exceptions are for our own bugs; everything a user can cause is a `TzrecError`.
"""

import difflib
from collections.abc import Iterable, Sequence


class TzrecError(Exception):
    """Base of every error that the command line prints without a traceback.

    Attributes:
        exit_code: what the process exits with; 1 = the run failed.
    """

    exit_code = 1


class ConfigError(TzrecError):
    """A config, an option or an argument cannot be used as written.

    Args:
        problems: one message, or all of a config's mistakes in the order they were found.
        title: a line above several problems, for instance the file they stand in.

    Attributes:
        problems: the single messages.
    """

    exit_code = 2

    def __init__(self, problems: str | Sequence[str], *, title: str = "") -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        if len(self.problems) == 1:
            text = f"{title}: {self.problems[0]}" if title else self.problems[0]
        else:
            head = f"{title}: {len(self.problems)} mistakes" if title else f"{len(self.problems)} mistakes"
            text = "\n".join([head, *(f"  {i}. {p}" for i, p in enumerate(self.problems, 1))])
        super().__init__(text)


class DataError(TzrecError):
    """A row, a column or a file of the data cannot be read; the message names it.

    Args:
        message: what is wrong and what to do.
        row: index of the row in the batch that was being parsed, when one row is to blame. The loader, which
            knows where the batch came from, turns it into a file and a row of that file.
    """

    exit_code = 2

    def __init__(self, message: str, *, row: int | None = None) -> None:
        super().__init__(message)
        self.row = row


class PluginError(TzrecError):
    """A plugin is broken, missing, incompatible or offers a name that another one offers too."""

    exit_code = 3


class CheckpointError(TzrecError):
    """A checkpoint is missing, damaged or does not fit the model."""


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The entry of `names` most like `name`, or None when none is close."""
    found = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return found[0] if found else None


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """`" Did you mean 'x'?"` for the nearest of `names`, or an empty string."""
    near = nearest(name, names)
    return f" Did you mean {near!r}?" if near else ""
