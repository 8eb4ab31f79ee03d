"""All callbacks of a run: which there are, in which order, and what happens when one fails."""

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tzrec_core.config import config_to_kwargs, spec_of
from tzrec_core.engine.callbacks.callback import Callback, Run, StepOutput
from tzrec_core.engine.callbacks.progress import Progress
from tzrec_core.errors import ConfigError, PluginError, TzrecError
from tzrec_core.plugins import CallbackSpec, Offer, registry

_log = logging.getLogger(__name__)

_EVENTS = (
    "on_train_start", "on_before_step", "on_step_end", "on_log", "on_evaluate", "on_save", "on_train_end", "on_error",
)  # fmt: skip


@dataclass(frozen=True)
class Member:
    """A callback and where it comes from.

    Attributes:
        callback: itself.
        name: of its spec.
        plugin: the distribution that offers it; empty = built in.
    """

    callback: Callback
    name: str
    plugin: str = ""

    @property
    def key(self) -> str:
        """What its state is kept under."""
        return f"{self.plugin}:{self.name}" if self.plugin else self.name

    def __str__(self) -> str:
        return f"callback {self.name!r}" + (f" of {self.plugin}" if self.plugin else "")


class Callbacks:
    """The callbacks of a run as one: each event goes to all of them, in their order.

    Args:
        members: the built-in ones first.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        self._members = list(members)
        # Only those that do something: on_step_end comes at every step.
        self._of_event = {
            event: [m for m in members if getattr(type(m.callback), event) is not getattr(Callback, event)]
            for event in _EVENTS
        }

    @classmethod
    def from_config(cls, config: Any) -> "Callbacks":
        """The built-in callbacks that a config's train_config asks for, then those of `train_config.callbacks`.

        Raises:
            ConfigError: the settings of one are wrong.
            PluginError: no plugin offers one, or it cannot be made.
        """
        members = [
            Member(registry().load(registry().get(CallbackSpec, name))(**kwargs), name)
            for name, kwargs in _built_in(config.train_config)
        ]
        for index, slot in enumerate(config.train_config.callbacks):
            members.append(_from_slot(f"train_config.callbacks[{index}]", slot))
        return cls(members)

    def on_train_start(self, run: Run) -> None:
        """See `Callback`; as all that follow."""
        self._call("on_train_start", run)

    def on_before_step(self, run: Run) -> None:
        """See `Callback`."""
        self._call("on_before_step", run)

    def on_step_end(self, run: Run, step_output: StepOutput) -> None:
        """See `Callback`; keeps `step_output` as `run.output`."""
        run.output = step_output
        self._call("on_step_end", run, step_output)

    def on_log(self, run: Run, values: dict[str, float]) -> None:
        """See `Callback`."""
        self._call("on_log", run, values)

    def on_evaluate(self, run: Run, metrics: dict[str, float]) -> None:
        """See `Callback`."""
        self._call("on_evaluate", run, metrics)

    def on_save(self, run: Run, checkpoint: Path) -> None:
        """See `Callback`."""
        self._call("on_save", run, checkpoint)

    def on_train_end(self, run: Run) -> None:
        """See `Callback`."""
        self._call("on_train_end", run)

    def on_error(self, run: Run, error: BaseException) -> None:
        """See `Callback`; never raises, so that `error` is what the user sees."""
        for member in self._of_event["on_error"]:
            try:
                member.callback.on_error(run, error)
            except Exception as second:  # whatever it is, the first error matters more
                _log.warning("%s failed in on_error: %s: %s", member, type(second).__name__, second)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Hide the progress bar, and do not count the time of the block as time of the loop."""
        bar = next((m.callback for m in self._members if isinstance(m.callback, Progress)), None)
        if bar is None:
            yield
        else:
            with bar.paused():
                yield

    def state_dict(self) -> dict[str, Any]:  # Any: JSON
        """The states of all that have one, by name; belongs into the checkpoint's meta.

        Raises:
            PluginError: a state is not made of JSON values.
        """
        states = {}
        for key, member in self._keyed():
            with _blaming(member, "state_dict"):
                # an error here names the callback; in the checkpoint it would not
                state = json.loads(json.dumps(member.callback.state_dict()))
            if state:
                states[key] = state
        return states

    def load_state_dict(self, states: dict[str, Any]) -> None:
        """Hand out what `state_dict` gave; a callback that is new keeps its fresh state."""
        members = dict(self._keyed())
        for key, state in states.items():
            if key not in members:
                _log.info("the checkpoint holds the state of callback %r, which this run does not have", key)
                continue
            with _blaming(members[key], "load_state_dict"):
                members[key].callback.load_state_dict(state)

    def _keyed(self) -> Iterator[tuple[str, Member]]:
        """Each with its key; the second of two that are called the same gets a number."""
        seen: Counter[str] = Counter()
        for member in self._members:
            seen[member.key] += 1
            count = seen[member.key]
            yield (member.key if count == 1 else f"{member.key}#{count}"), member

    def _call(self, event: str, *args: Any) -> None:  # Any: what the event's method takes
        for member in self._of_event[event]:
            with _blaming(member, event):
                getattr(member.callback, event)(*args)


@contextmanager
def _blaming(member: Member, where: str) -> Iterator[None]:
    try:
        yield
    except TzrecError:
        raise
    except Exception as error:
        if not member.plugin:
            raise
        raise PluginError(f"{member} failed in {where}: {type(error).__name__}: {error}") from error


def _built_in(train_config: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Names and arguments; what prints and writes comes first, so that it has done so when another one fails."""
    yield "progress", {}
    yield "metrics_log", {}
    if train_config.use_tensorboard:
        yield "tensorboard", {"summaries": list(train_config.tensorboard_summaries)}
    yield "health", {}
    if train_config.is_profiling:
        yield "profiler", {}
    if train_config.HasField("early_stopping"):
        kwargs = config_to_kwargs(train_config.early_stopping)
        if not train_config.early_stopping.HasField("higher_is_better"):
            kwargs["higher_is_better"] = None
        yield "early_stopping", kwargs


def _from_slot(place: str, slot: Any) -> Member:
    try:
        offer, settings = spec_of(CallbackSpec, "plugin", slot)
        kwargs = config_to_kwargs(settings)
        return Member(_made(offer, kwargs), offer.spec.name, offer.plugin.distribution)
    except ConfigError as error:
        raise ConfigError([f"{place}: {problem}" for problem in error.problems]) from error
    except PluginError as error:
        raise PluginError(f"{place}: {error}") from error


def _made(offer: Offer[CallbackSpec], kwargs: dict[str, Any]) -> Callback:
    make: Callable[..., Any] = registry().load(offer)
    who = f"callback {offer.spec.name!r} of {offer.plugin.distribution}"
    try:
        made = make(**kwargs)
    except TzrecError:
        raise
    except Exception as error:
        raise PluginError(f"{who} cannot be made: {type(error).__name__}: {error}") from error
    if not isinstance(made, Callback):
        raise PluginError(f"{who}: {offer.spec.target} is not a Callback but a {type(made).__name__}")
    return made
