"""SIGTERM and Ctrl-C ask a run to save and end, instead of ending it."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """While entered, notes the first signal in `received`; a second Ctrl-C within one process ends it at once.

    Does nothing outside of the main thread, where Python lets nobody handle signals.

    Args:
        several: this is one of several processes. Their launcher passes on a Ctrl-C that the terminal has sent to each
            of them already, so a second one means nothing.

    Attributes:
        received: name of the signal, such as `SIGTERM`; empty = none so far.
    """

    def __init__(self, *, several: bool = False) -> None:
        self.received = ""
        self._several = several
        self._before: dict[int, Any] = {}  # Any: what signal.signal returns

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT and not self._several:
            raise KeyboardInterrupt
        self.received = self.received or signal.Signals(number).name
