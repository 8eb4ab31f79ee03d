import fcntl
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tzrec_core.plugins import Registry, Selection, use_registry

BROKEN_PLUGINS = Path(__file__).parent / "broken_plugins"


@pytest.fixture(scope="session")
def installed_plugins(tmp_path_factory):
    """The folder that everything in tests/broken_plugins is installed in, by pip, once for all workers."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if base.name.startswith("popen-") else base
    target = shared / "installed_plugins"
    with (shared / "installed_plugins.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (target / "done").exists():
            sources = shared / "broken_plugins"  # a copy, for builds leave files beside the sources
            shutil.copytree(BROKEN_PLUGINS, sources, ignore=shutil.ignore_patterns("build", "*.egg-info"))
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-build-isolation"]
            command += ["--no-deps", "--no-compile", "--target", str(target), *map(str, sources.glob("*/"))]
            subprocess.run(command, check=True)
            (target / "done").touch()
    return target


@pytest.fixture
def find_plugins(installed_plugins, monkeypatch):
    """Discover the named plugins of tests/broken_plugins, and official ones; the names select."""
    monkeypatch.syspath_prepend(str(installed_plugins))

    def find(*names, **selection):
        if names:
            selection["only"] = frozenset(names)
        return Registry.find(Selection(**selection), search_path=list(dict.fromkeys(sys.path)))

    yield find
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(installed_plugins)):
            del sys.modules[name]


@pytest.fixture
def use_plugins(find_plugins):
    """Make the named plugins the ones of this process, for one test."""
    contexts = []

    def use(*names, **selection):
        context = use_registry(find_plugins(*names, **selection))
        contexts.append(context)
        return context.__enter__()

    yield use
    for context in reversed(contexts):
        context.__exit__(None, None, None)
