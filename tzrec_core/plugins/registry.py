"""Answers by name: which plugin offers a model, loss, metric or feature, and what to do when none does."""

import fnmatch
import functools
import importlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Generic, TypeVar

from tzrec_core.errors import ConfigError, PluginError, TzrecError, did_you_mean, nearest
from tzrec_core.plugins.discovery import CORE, Plugin, Selection, State, core_version, discover
from tzrec_core.plugins.spec import KINDS, ModelSpec, Spec, Task

S = TypeVar("S", bound=Spec)
S_co = TypeVar("S_co", bound=Spec, covariant=True)


@dataclass(frozen=True)
class Offer(Generic[S_co]):
    """A spec and the plugin that offers it."""

    spec: S_co
    plugin: Plugin

    @property
    def qualified(self) -> str:
        """The unambiguous name for Python and the command line, such as `tzrec-deepfm:deepfm`."""
        return f"{self.plugin.distribution}:{self.spec.name}"

    @property
    def field(self) -> str:
        """The unambiguous name for configs, such as `tzrec_deepfm__deepfm`."""
        owner = re.sub(r"\W", "_", self.plugin.distribution)  # of a plugin given as a file: its path
        return f"{owner if owner[:1].isalpha() else '_' + owner}__{self.spec.name}"


class Registry:
    """All that the installed plugins and the core itself offer in this process.

    Args:
        plugins: what `discover` found; the core's own manifest is added in front.
        notes: lines about the discovery itself.
    """

    def __init__(self, plugins: list[Plugin], notes: list[str] | None = None) -> None:
        self.plugins = plugins
        self.notes = list(notes or [])
        self.core = _core_plugin()
        self._names: dict[type[Spec], dict[str, list[Offer[Any]]]] = {}  # Any: the key, which no type can say
        self._mark_conflicts()

    @classmethod
    def find(cls, selection: Selection | None = None, *, search_path: list[str] | None = None) -> "Registry":
        """Discover the installed plugins and build a registry of them."""
        return cls(*discover(selection, search_path=search_path))

    def offers(self, kind: type[S]) -> list[Offer[S]]:
        """Every offer of one kind by a plugin that works, sorted by name; the core's own first among equals.

        Names of the core cannot be taken: a plugin's offer of the same name is reached by its qualified name.
        """
        usable = [self.core] + [p for p in self.plugins if p.state in (State.OK, State.CONFLICT)]
        found = [Offer(spec, plugin) for plugin in usable for spec in plugin.specs if isinstance(spec, kind)]
        return sorted(found, key=lambda offer: offer.spec.name)

    def by_name(self, kind: type[S]) -> dict[str, list[Offer[S]]]:
        """Offers by every name that reaches them, aliases included; more than one is a clash."""
        if kind not in self._names:
            found: dict[str, list[Offer[S]]] = {}
            for offer in self.offers(kind):
                for name in offer.spec.names:
                    found.setdefault(name, []).append(offer)
            self._names[kind] = found
        return self._names[kind]

    def listing(self, kind: type[S]) -> list[tuple[str, Offer[S]]]:
        """Every offer of one kind with the shortest name that reaches it alone: bare, or qualified in a clash."""
        return [
            (name if len(offers) == 1 else offer.qualified, offer)
            for name, offers in sorted(self.by_name(kind).items())
            for offer in offers
            if name == offer.spec.name
        ]

    def mark_broken(self, plugin: Plugin, error: TzrecError) -> None:
        """Take back all that a plugin offers, as its config cannot be used; clashes with it are over."""
        plugin.fail(State.BROKEN, str(error), error.__cause__)
        for other in self.plugins:
            if other.state is State.CONFLICT:
                other.state, other.reason = State.OK, ""
        self._names.clear()
        self._mark_conflicts()

    def get(self, kind: type[S], name: str) -> Offer[S]:
        """The one offer called `name`, which may be qualified (`tzrec-deepfm:deepfm`).

        Raises:
            PluginError: two plugins offer the name, or the plugin that offers it is not usable or not
                installed.
            ConfigError: nobody is known to offer the name.
        """
        owner, _, bare = name.rpartition(":")
        found = self.by_name(kind).get(bare, [])
        if owner:
            found = [offer for offer in found if offer.plugin.distribution == owner]
        elif found and found[0].plugin is self.core:
            return found[0]
        if len(found) == 1:
            return found[0]
        raise self.unknown(kind, name)

    def unknown(self, kind: type[Spec], name: str) -> TzrecError:
        """The error for a name that `get` cannot answer: who offers it, or what was meant."""
        unusable = self._unusable(kind, name)
        listing = "`tzrec list-models`" if kind is ModelSpec and not unusable else "`tzrec list-plugins`"
        error = (
            self._clash(kind, name)
            or unusable
            or self._not_installed(kind, name)
            or self._replaced(kind, name)
            or self._nobody(kind, name)
        )
        located = type(error)(f"{error} See {listing}.")
        located.__cause__ = error.__cause__
        return located

    def _clash(self, kind: type[Spec], name: str) -> TzrecError | None:
        offers = self.by_name(kind).get(name, [])
        if len(offers) < 2:
            return None
        owners = " and ".join(offer.plugin.distribution for offer in offers)
        in_configs = f"{' or '.join(f'{o.field} {{ ... }}' for o in offers)} in configs, " if kind is ModelSpec else ""
        return PluginError(
            f"{kind.label()} {name!r} is offered by {owners}. Say which: {in_configs}"
            f"{' or '.join(o.qualified for o in offers)} on the command line and in Python, or uninstall one."
        )

    def _unusable(self, kind: type[Spec], name: str) -> TzrecError | None:
        """A plugin that cannot be used and offers the name, as far as its specs or names tell."""
        bare = name.rpartition(":")[2]
        package = known_packages().get(bare) if kind is ModelSpec else None
        for plugin in self.plugins:
            if plugin.state in (State.OK, State.CONFLICT):
                continue
            offered = {n for s in plugin.specs if isinstance(s, kind) for n in s.names}
            if bare in offered or (not offered and (plugin.name == bare or plugin.distribution == package)):
                error = PluginError(
                    f"{kind.label()} {name!r} comes from {plugin.distribution}, which is {plugin.state}: "
                    f"{plugin.reason.rstrip('.')}.{how_to_enable(plugin)}"
                )
                error.__cause__ = plugin.cause
                return error
        return None

    def _not_installed(self, kind: type[Spec], name: str) -> TzrecError | None:
        package = known_packages().get(name) if kind is ModelSpec else None
        if package is None:
            return None
        old = any(plugin.distribution == package for plugin in self.plugins)
        run = f"pip install {'--upgrade ' if old else ''}{package}"
        return PluginError(f"{kind.label()} {name!r} is not installed; run: {run}.")

    def _replaced(self, kind: type[Spec], name: str) -> TzrecError | None:
        for offer in self.offers(kind):
            if name in getattr(offer.spec, "replaces", ()):
                return ConfigError(f"{kind.label()} {name!r} was replaced by {offer.spec.name!r}.")
        return None

    def _nobody(self, kind: type[Spec], name: str) -> TzrecError:
        installed = sorted(self.by_name(kind))
        packages = known_packages() if kind is ModelSpec else {}
        bare = re.split(r":|__", name)[-1]
        near = nearest(name, [*installed, *packages]) or nearest(bare, [*installed, *packages])
        hint = did_you_mean(near, [near]) if near else ""
        if near in packages and near not in installed:
            hint = f" Did you mean {near!r} (pip install {packages[near]})?"
        broken = [p.distribution for p in self.plugins if p.state is State.BROKEN]
        also = f" Broken, and may offer it: {', '.join(broken)}." if broken else ""
        official = packages.values()  # what those offer is known
        disabled = [p.distribution for p in self.plugins if p.state is State.DISABLED]
        if disabled := [name for name in disabled if name not in official]:
            also += f" Disabled, and may offer it: {', '.join(disabled)} (see `tzrec list-plugins`)."
        return ConfigError(
            f"there is no {kind.label()} {name!r}.{hint} Installed: {', '.join(installed) or 'none'}.{also}"
        )

    def load(self, offer: Offer[Spec]) -> Any:
        """Import what a spec's target names.

        Raises:
            PluginError: the import fails; the cause is chained.
        """
        return _import_target(offer, offer.spec.target)

    def load_config_class(self, offer: Offer[Spec]) -> Any:
        """Import the message or dataclass that a spec's `config` names; raises PluginError as `load` does."""
        return _import_target(offer, offer.spec.config)

    def problems(self) -> list[str]:
        """One line per plugin that is not ok, and per note: what a run prints once at its start."""
        notes = [f"plugin {p.distribution} {note}" for p in self.plugins for note in p.notes]
        return self._failures() + notes + self.notes

    def _failures(self) -> list[str]:
        return [
            f"plugin {p.distribution} is {p.state}: {p.reason}"
            for p in self.plugins
            if p.state not in (State.OK, State.DISABLED)
        ]

    def require_ok(self) -> None:
        """Refuse any state but ok, and disabled by the user's own choice (`--strict-plugins`).

        Raises:
            PluginError: a plugin is broken, incompatible or in conflict, or TZREC_PLUGINS names one that is
                not installed. Notes, such as a slow import, are no reason.
        """
        lines = self._failures() + self.notes
        if lines:
            raise PluginError("--strict-plugins: " + "; ".join(lines))

    def _mark_conflicts(self) -> None:
        for kind in KINDS:
            for name, offers in self.by_name(kind).items():
                for offer in offers if len(offers) > 1 else []:
                    if offer.plugin is not self.core:
                        others = ", ".join(o.plugin.distribution for o in offers if o is not offer)
                        reason = f"{kind.label()} {name!r} is also offered by {others}"
                        offer.plugin.fail(State.CONFLICT, reason)


def how_to_enable(plugin: Plugin) -> str:
    """A sentence behind a space for a plugin that is disabled; empty for others."""
    if plugin.state is not State.DISABLED:
        return ""
    return f" To enable it, leave out --no-plugins, and unset TZREC_PLUGINS or name {plugin.name!r} in it."


def _core_plugin() -> Plugin:
    from tzrec_core import builtin

    return Plugin(
        name="core",
        distribution=CORE,
        version=core_version(),
        module=builtin.__name__,
        specs=builtin.tzrec_specs(),
    )


def _import_target(offer: Offer[Spec], target: str) -> Any:
    module_name, _, attribute = target.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (Exception, SystemExit) as error:  # whatever a plugin's module raises is the plugin's fault
        raise PluginError(
            f"{offer.spec.label()} {offer.spec.name!r} of {offer.plugin.distribution}: cannot import {target}: "
            f"{type(error).__name__}: {error}"
        ) from error
    return found


@functools.cache
def known_packages() -> dict[str, str]:
    """Model name -> pip package, for every official plugin, installed or not."""
    data = json.loads(files("tzrec_core.plugins").joinpath("registry.json").read_text(encoding="utf-8"))
    return {name: entry["package"] for name, entry in data["models"].items()}


_current: Registry | None = None


def registry() -> Registry:
    """The registry of this process, discovered on first use.

    Raises:
        PluginError: a manifest given as a file is not there, which is a slip of whoever started the process.
    """
    global _current
    if _current is None:
        found = Registry.find()
        for plugin in found.plugins:
            is_file = plugin.distribution == plugin.module
            if is_file and isinstance(plugin.cause, FileNotFoundError) and not Path(plugin.module).is_file():
                raise PluginError(str(plugin.cause))
        _current = found
    return _current


@contextmanager
def use_registry(other: Registry) -> Iterator[Registry]:
    """Make `other` the registry of this process for a while; meant for tests."""
    global _current
    before, _current = _current, other
    try:
        yield other
    finally:
        _current = before


def list_models(pattern: str = "*", *, task: Task | str | None = None) -> list[str]:
    """Names of the installed models, sorted.

    Args:
        pattern: a glob such as `"*fm*"`.
        task: only models of this task.

    Returns:
        names as `get_model` takes them; one offered by two plugins appears qualified, once for each owner.

    Raises:
        ConfigError: there is no such task.
    """
    if task is not None and task not in list(Task):
        raise ConfigError(
            f"there is no task {task!r}. Tasks are: {', '.join(Task)}.{did_you_mean(task, [t.value for t in Task])}"
        )
    return sorted(
        name
        for name, offer in registry().listing(ModelSpec)
        if task in (None, offer.spec.task) and fnmatch.fnmatchcase(offer.spec.name, pattern)
    )


def get_model(name: str) -> ModelSpec:
    """The spec of a model.

    Raises:
        PluginError: two plugins offer the name, or its plugin is broken, disabled, incompatible or not
            installed.
        ConfigError: no known plugin offers the name; the nearest one is shown.
    """
    return registry().get(ModelSpec, name).spec


def load_class(model: str | Spec) -> Any:
    """Import the class behind a model's name or behind any spec.

    Raises:
        PluginError: the import fails, or as `get_model`.
    """
    if isinstance(model, str):
        return registry().load(registry().get(ModelSpec, model))
    for offer in registry().offers(type(model)):
        if offer.spec == model:
            return registry().load(offer)
    return registry().load(Offer(model, Plugin(name="", distribution="an unregistered spec")))
