"""Copies of tzrec-deepfm with something broken, as if pip had installed them as editable."""

import importlib
import itertools
import json
import os
import shutil
import sys
import tomllib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from tzrec_core.plugins import Registry, Selection, use_registry
from tzrec_core.testing.check import Kind, Outcome, checks, run_check
from tzrec_core.testing.subject import PluginSubject

DEEPFM = Path(__file__).parents[2] / "plugins/tzrec-deepfm"
Changes = Mapping[str, Sequence[tuple[str, str]] | None]
MANIFEST = "tzrec_deepfm/plugin.py"
_numbers = itertools.count()


@dataclass(frozen=True)
class Breakage:
    """Something broken in a copy of tzrec-deepfm.

    Attributes:
        changes: as `broken_copy` takes them.
        words: of the message of the check that names the broken rule.
        also: other checks that cannot but fail with it.
    """

    changes: Changes
    words: str
    also: Collection[str] = ()


def claims(*traits: str) -> Changes:
    """A change of the manifest: the model claims these traits and no other."""
    listed = ", ".join(f"Trait.{trait}" for trait in traits)
    return {MANIFEST: [("traits=frozenset(", f"traits=frozenset({{{listed}}}) if True else frozenset(")]}


@contextmanager
def broken_copy(tmp_path: Path, changes: Changes | None = None) -> Iterator[PluginSubject]:
    """A changed copy of tzrec-deepfm as the only plugin of this process and of its children.

    The copy has names of its own for distribution, package and proto package, so that it can live beside the original
    and other copies; write `tzrec_deepfm` in the changes all the same. Its model is called `deepfm`.

    Args:
        tmp_path: where the copy goes.
        changes: file below plugins/tzrec-deepfm -> (old, new) texts to replace; an empty `old` appends, also to a new
            file; None instead of the list deletes the file.
    """
    number = f"c{next(_numbers):05d}"  # as long as `deepfm`, for the generated descriptor holds lengths
    distribution, package = f"tzrec-{number}", f"tzrec_{number}"
    source, site = tmp_path / distribution, tmp_path / f"site-{number}"
    shutil.copytree(DEEPFM, source, ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__", "tests"))
    _change(source, changes or {})
    _rename(source, number)
    _install(source, site)
    paths = [str(site), str(source)]
    children = {
        "PYTHONPATH": os.pathsep.join([*paths, *filter(None, [os.environ.get("PYTHONPATH")])]),
        "TZREC_PLUGINS": distribution,
    }
    before = list(sys.path)
    sys.path[:0] = paths
    importlib.invalidate_caches()
    try:
        with mock.patch.dict(os.environ, children), use_registry(Registry.find(Selection(), search_path=[str(site)])):
            yield PluginSubject.find(distribution)
    finally:
        sys.path[:] = before
        for name in [name for name in sys.modules if name.partition(".")[0] == package]:
            del sys.modules[name]


def failures(subject: PluginSubject, *kinds: Kind, slow: bool = False) -> dict[str, str]:
    """The checks that fail on a plugin and its models, with their messages; of some kinds only, if given."""
    found = {}
    for kind in kinds or ("plugin", "model"):
        for one in [subject] if kind == "plugin" else subject.models:
            results = [run_check(check, one) for check in checks(kind, slow=slow)]
            found |= {result.check: result.message for result in results if result.outcome is Outcome.FAILED}
    return found


def outcome(subject: PluginSubject, name: str) -> tuple[Outcome, str]:
    """How the check of that name ends, on the plugin or its first model, and its message."""
    (check,) = [check for kind in ("plugin", "model") for check in checks(kind, slow=True) if check.name == name]
    result = run_check(check, subject if check.kind == "plugin" else subject.models[0])
    return result.outcome, result.message


def _change(source: Path, changes: Changes) -> None:
    for name, edits in changes.items():
        file = source / name
        if edits is None:
            file.unlink()
            continue
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        for old, new in edits:
            assert old in text, f"{name} has no {old!r}"
            text = text.replace(old, new) if old else text + new
        file.write_text(text, encoding="utf-8")


def _rename(source: Path, number: str) -> None:
    for file in [file for file in source.rglob("*") if file.is_file()]:
        text = file.read_text(encoding="utf-8")
        file.write_text(text.replace("_deepfm", f"_{number}").replace("-deepfm", f"-{number}"), encoding="utf-8")
    (source / "tzrec_deepfm").rename(source / f"tzrec_{number}")


def _install(source: Path, site: Path) -> None:
    """What pip writes for an editable install."""
    project = tomllib.loads((source / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    info = site / f"{source.name.replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir(parents=True)
    heads = [f"Metadata-Version: 2.4\nName: {project['name']}\nVersion: {project['version']}\n"]
    heads += [f"Requires-Dist: {requirement}\n" for requirement in project["dependencies"]]
    (info / "METADATA").write_text("".join(heads), encoding="utf-8")
    entry_points = project["entry-points"]["tzrec.plugins"].items()
    lines = ["[tzrec.plugins]", *(f"{name} = {module}" for name, module in entry_points)]
    (info / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")
    origin = {"url": source.as_uri(), "dir_info": {"editable": True}}
    (info / "direct_url.json").write_text(json.dumps(origin), encoding="utf-8")
