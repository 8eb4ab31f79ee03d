"""Finds the installed plugins in two steps: metadata without an import, then the manifest of each candidate.

Our own loop, because pluggy's loader stops at the first broken plugin and skips duplicates in silence. The
third step, importing a spec's target, happens in the registry on first use.
"""

import importlib
import importlib.util
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from importlib.metadata import Distribution, EntryPoint, distributions
from pathlib import Path
from types import ModuleType

import pluggy
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from tzrec_core.errors import ConfigError, did_you_mean, nearest
from tzrec_core.plugins import hooks
from tzrec_core.plugins.spec import KINDS, Spec

CORE = "tzrec-core"
_HOOKS = ("tzrec_specs", "tzrec_commands")
_SLOW_S = 0.5


class State(StrEnum):
    """How a plugin stands after discovery."""

    OK = "ok"
    DISABLED = "disabled"
    INCOMPATIBLE = "incompatible"
    BROKEN = "broken"
    CONFLICT = "conflict"


@dataclass
class Plugin:
    """One plugin and what discovery learnt about it.

    Attributes:
        name: entry-point name, such as `deepfm`.
        distribution: pip name, such as `tzrec-deepfm`; for a plugin given as a file, the file's path.
        version: of the distribution.
        module: the manifest, such as `tzrec_deepfm.plugin`.
        requires: its bound on tzrec-core, such as `>=0.1,<0.2`.
        state: how it stands.
        reason: why it is not ok, in one line.
        specs: what it offers.
        notes: what is worth a line though the plugin works, such as a spec of an unknown kind.
        cause: the exception behind `broken`.
        manifest: the imported manifest.
    """

    name: str
    distribution: str
    version: str = ""
    module: str = ""
    requires: str = ""
    state: State = State.OK
    reason: str = ""
    specs: list[Spec] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    cause: BaseException | None = None
    manifest: ModuleType | None = None

    def fail(self, state: State, reason: str, cause: BaseException | None = None) -> None:
        """Record why the plugin cannot be used; its specs are kept so that errors can still name them."""
        self.state, self.reason, self.cause = state, reason, cause


@dataclass(frozen=True)
class Selection:
    """Which plugins a run may use.

    Attributes:
        only: names that are enabled; None = all but `without`.
        without: names that are disabled.
        files: manifests given as files, such as `./plugin.py`.
    """

    only: frozenset[str] | None = None
    without: frozenset[str] = frozenset()
    files: tuple[str, ...] = ()

    @classmethod
    def from_environment(cls) -> "Selection":
        """Read TZREC_PLUGIN_FILES, and TZREC_PLUGINS: unset = all, empty = none, `a,b` = these, `-a` = not a.

        Raises:
            ConfigError: TZREC_PLUGINS names both plugins to use and plugins to leave out.
        """
        files = tuple(f for f in os.environ.get("TZREC_PLUGIN_FILES", "").split(os.pathsep) if f)
        text = os.environ.get("TZREC_PLUGINS")
        if text is None:
            return cls(files=files)
        names = [n.strip() for n in text.split(",") if n.strip()]
        minus = frozenset(n[1:] for n in names if n.startswith("-"))
        plus = frozenset(n for n in names if not n.startswith("-"))
        if minus and plus:
            raise ConfigError(
                f"TZREC_PLUGINS = {text!r} mixes names to use and names to leave out. Write either 'a,b' or '-a,-b'."
            )
        return cls(only=None if minus else plus, without=minus, files=files)

    def allows(self, plugin: Plugin) -> bool:
        """Whether the entry-point name or the distribution name of `plugin` is enabled."""
        names = {plugin.name, plugin.distribution}
        return not names & self.without and (self.only is None or bool(names & self.only))


def core_version() -> str:
    """Version of tzrec-core."""
    from tzrec_core import __version__

    return __version__


def discover(
    selection: Selection | None = None, *, search_path: list[str] | None = None
) -> tuple[list[Plugin], list[str]]:
    """Find every plugin and import the manifests of those that are enabled.

    Args:
        selection: which plugins may be imported; None = what the environment says.
        search_path: where to look for distributions; None = sys.path.

    Returns:
        the plugins, sorted by name, and notes about the selection itself (a name that no plugin has).
    """
    chosen = Selection.from_environment() if selection is None else selection
    found = sorted(_installed(search_path), key=lambda pair: (pair[0].name, pair[0].distribution))
    plugins = [plugin for plugin, _ in found]
    notes = _unknown_names(chosen, plugins)
    for plugin, entry_point in found:
        if not chosen.allows(plugin):
            plugin.fail(State.DISABLED, "not enabled by TZREC_PLUGINS")
        if plugin.state is State.OK:
            _load_manifest(plugin, entry_point.load)
    for file in chosen.files:
        plugin = Plugin(name=Path(file).stem, distribution=file, module=file)
        plugins.append(plugin)
        _load_manifest(plugin, partial(_import_file, file))
    _mark_taken_names(plugins)
    return plugins, notes


def _installed(search_path: list[str] | None) -> Iterator[tuple[Plugin, EntryPoint]]:
    seen: set[str] = set()
    for dist in distributions() if search_path is None else distributions(path=search_path):
        if hooks.ENTRY_POINT_GROUP not in (dist.read_text("entry_points.txt") or ""):
            continue  # most distributions: parsing their metadata would cost more than all the rest
        if dist.read_text("METADATA") is None and dist.read_text("PKG-INFO") is None:
            continue  # debris of an interrupted removal
        name = canonicalize_name(dist.metadata["Name"])
        if name in seen:  # an older copy further down sys.path: shadowed, as for imports
            continue
        seen.add(name)
        bound, problem = _core_bound(dist)
        for entry_point in dist.entry_points:
            if entry_point.group != hooks.ENTRY_POINT_GROUP:
                continue
            plugin = Plugin(
                name=entry_point.name,
                distribution=name,
                version=dist.version,
                module=entry_point.value,
                requires=bound,
            )
            if problem:
                plugin.fail(State.INCOMPATIBLE, problem)
            yield plugin, entry_point


def _core_bound(dist: Distribution) -> tuple[str, str]:
    """The distribution's bound on the core, and why this core is outside of it, if it is."""
    bounds = []
    for text in dist.requires or []:
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if canonicalize_name(requirement.name) == CORE and applies:
            bounds.append(requirement.specifier)
    bound = ",".join(str(b) for b in bounds)
    if all(b.contains(core_version(), prereleases=True) for b in bounds):
        return bound, ""
    return bound, (
        f"needs {CORE}{bound}, but {core_version()} is installed; "
        f"run: pip install --upgrade {CORE} {dist.metadata['Name']}"
    )


def _unknown_names(chosen: Selection, plugins: list[Plugin]) -> list[str]:
    known = {p.name for p in plugins} | {p.distribution for p in plugins}
    return [
        f"TZREC_PLUGINS names {name!r}, which is not installed.{did_you_mean(name, known)}"
        for name in sorted((chosen.only or frozenset()) | chosen.without)
        if name not in known
    ]


def _import_file(file: str) -> ModuleType:
    path = Path(file).resolve()
    if not path.is_file():
        raise FileNotFoundError(f"--plugin {file}: there is no such file")
    if str(path.parent) not in sys.path:  # so that the manifest's targets beside it can be imported
        sys.path.append(str(path.parent))
    name = path.stem
    loaded = sys.modules.get(name)
    if loaded is not None and getattr(loaded, "__file__", None) == str(path):
        return loaded
    if loaded is not None or name in sys.stdlib_module_names:
        raise ImportError(f"--plugin {file}: there is a module {name!r} already; rename the file")
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"--plugin {file}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _load_manifest(plugin: Plugin, load: Callable[[], ModuleType]) -> None:
    had_torch, start = "torch" in sys.modules, time.perf_counter()
    try:
        manifest = load()
        plugin.manifest = manifest
        seconds = time.perf_counter() - start
        specs = _call_specs(plugin, manifest)
        problems = [f"{spec.kind} {spec.name!r}: {p}" for spec in specs for p in spec.problems()]
    except (Exception, SystemExit) as error:  # a plugin may fail in any way; it must not take the others down
        plugin.fail(State.BROKEN, _one_line(error), error)
        return
    if problems:
        plugin.fail(State.BROKEN, "; ".join(problems))
        return
    plugin.specs = specs
    if not had_torch and "torch" in sys.modules:
        plugin.notes.append(
            f"imports torch in its manifest ({seconds:.1f} s), so every command waits for it; "
            f"name classes as 'module:Class' instead"
        )
    elif seconds > _SLOW_S:
        plugin.notes.append(f"took {seconds:.1f} s to import; a manifest should only declare specs")


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _call_specs(plugin: Plugin, manifest: ModuleType) -> list[Spec]:
    _check_hooks(plugin, manifest)
    manager = pluggy.PluginManager(hooks.PROJECT)
    manager.add_hookspecs(hooks)
    manager.register(manifest, name=plugin.name)
    specs: list[Spec] = []
    for returned in manager.hook.tzrec_specs():
        if not isinstance(returned, list | tuple):
            raise TypeError(f"tzrec_specs returned a {type(returned).__name__}, not a list of specs")
        for spec in returned:
            if isinstance(spec, KINDS):
                specs.append(spec)
            else:
                plugin.notes.append(
                    f"offers a {type(spec).__name__}, a kind that tzrec-core {core_version()} does not know"
                )
    keys = [(type(spec), spec.name) for spec in specs]
    for kind, name in keys:
        if keys.count((kind, name)) > 1:
            raise ValueError(f"tzrec_specs offers two {kind.kind}s called {name!r}")
    return specs


def _check_hooks(plugin: Plugin, manifest: ModuleType) -> None:
    """Refuse what pluggy passes over: a hook with another name, and a hook without its marker."""
    marked = {
        name
        for name in dir(manifest)
        if getattr(getattr(manifest, name, None), f"{hooks.PROJECT}_impl", None) is not None
    }
    for name in sorted(marked - set(_HOOKS)):
        raise ValueError(
            f"{plugin.module} implements {name!r}, which is not a hook."
            f"{did_you_mean(name, _HOOKS)} Hooks are: {', '.join(_HOOKS)}"
        )
    for name in _HOOKS:
        if hasattr(manifest, name) and name not in marked:
            raise ValueError(f"{plugin.module} defines {name} without @hookimpl above it")
    if not marked:
        near = nearest("tzrec_specs", dir(manifest))
        hint = f"; is {near!r} meant to be the hook tzrec_specs, marked @hookimpl?" if near else ""
        plugin.notes.append(f"offers nothing{hint}")


def _mark_taken_names(plugins: Iterable[Plugin]) -> None:
    """Two entry points of one name cannot both be mounted or selected: neither wins."""
    by_name: dict[str, list[Plugin]] = {}
    for plugin in plugins:
        by_name.setdefault(plugin.name, []).append(plugin)
    for name, group in by_name.items():
        if len(group) > 1:
            owners = " and ".join(p.distribution for p in group)
            for plugin in group:
                if plugin.state is State.OK:
                    plugin.notes.append(f"the entry-point name {name!r} is taken by {owners}")
