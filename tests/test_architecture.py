"""The laws of ARCHITECTURE.md: imports point down, and the wing is torch-free."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CORE = ROOT / "tzrec_core"
PLUGINS = sorted(manifest.parents[1] for manifest in ROOT.glob("plugins/tzrec-*/tzrec_*/plugin.py"))

WING = ("errors", "protos", "plugins", "config", "builtin")
FLOORS = (
    ("kernels",),
    ("features",),
    ("data",),
    ("losses", "metrics", "modules"),
    ("models",),
    ("engine",),
    ("export",),
    ("serving",),
    ("api",),
    ("cli",),
)
ROOF = ("testing", "scaffold")  # may import every floor; of the floors, only the command line imports them
FLOOR_OF = {name: number for number, names in enumerate(FLOORS, 1) for name in names}
FLOOR_OF |= dict.fromkeys(WING, 0) | dict.fromkeys(ROOF, len(FLOORS) + 1)
MODELS = FLOOR_OF["models"]
CALLBACKS = "tzrec_core.engine.callbacks"  # of the floors above models, what a plugin's callback is made of


# Imports of a file, those within functions included


def imports_of(path: Path, root: Path) -> Iterator[tuple[int, str, str]]:
    """(line, module, name) of every import; name is empty for `import module`."""
    package = path.relative_to(root).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            target = node.args[0]
            if called in ("import_module", "__import__") and isinstance(target, ast.Constant):
                yield node.lineno, str(target.value), ""


def part_of(module: str, name: str) -> str:
    """The part of the core that an import reaches, such as `data`; empty for `import tzrec_core` itself."""
    parts = module.split(".")
    if len(parts) > 1:
        return parts[1]
    return name if name in FLOOR_OF else ""


def core_violations(root: Path) -> list[str]:
    """Every import of the core, in `root`/tzrec_core, that does not point down."""
    found = []
    for path in sorted((root / "tzrec_core").rglob("*.py")):
        place = path.relative_to(root)
        here = place.parts[1].removesuffix(".py")
        if here == "__init__":
            here = "errors"  # the package itself is as low as can be
        if here not in FLOOR_OF:
            found.append(f"{place}:1 {here} is on no floor")
            continue
        for line, module, name in imports_of(path, root):
            full = f"{module}.{name}" if name else module
            if module.split(".")[0] != "tzrec_core":
                if module.startswith("tzrec_"):
                    found.append(f"{place}:{line} imports {module}, a plugin")
                continue
            there = part_of(module, name)
            if not there or there == here:
                continue
            if there in ROOF and here == "cli":
                continue
            if there not in FLOOR_OF:
                found.append(f"{place}:{line} imports {full}, which is on no floor")
            elif FLOOR_OF[there] and FLOOR_OF[there] >= FLOOR_OF[here]:
                found.append(f"{place}:{line} imports {full} (floor {FLOOR_OF[there]}) from floor {FLOOR_OF[here]}")
    return found


def public_names(module: str) -> set[str] | None:
    """What `__all__` of a module of the core says; None without one."""
    path = ROOT.joinpath(*module.split("."))
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if not source.exists():
        return None
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            submodules = {child.stem for child in path.iterdir()} if path.is_dir() else set()
            return set(ast.literal_eval(node.value)) | submodules
    return None


def plugin_violations(folder: Path) -> list[str]:
    """Every import of a plugin that reaches beyond the public names it may use."""
    own = folder.name.replace("-", "_")
    found = []
    for path in sorted(folder.rglob("*.py")):
        if "build" in path.relative_to(folder).parts or path.stem.endswith("_pb2"):
            continue
        place = f"{folder.name}/{path.relative_to(folder)}"
        in_tests = path.relative_to(folder).parts[0] == "tests"
        extra = {"testing", "api"} if in_tests else {"api"} if path.stem == "commands" else set()
        for line, module, name in imports_of(path, folder):
            full = f"{module}.{name}" if name else module
            top = module.split(".")[0]
            if top.startswith("tzrec_") and top not in ("tzrec_core", own):
                found.append(f"{place}:{line} imports {module}, another plugin")
            if top != "tzrec_core":
                continue
            there = part_of(module, name)
            if there and there not in extra and module != CALLBACKS and not FLOOR_OF.get(there, MODELS + 1) <= MODELS:
                found.append(f"{place}:{line} imports {full}, above what a plugin may use")
            public = public_names(module)
            hidden = any(part.startswith("_") and part != "__version__" for part in full.split("."))
            if hidden or (name and name != "*" and public is not None and name not in public):
                found.append(f"{place}:{line} imports {full}, which is not public")
    return found


def test_imports_of_the_core_point_down():
    found = core_violations(ROOT)
    assert not found, "\n".join(found)


@pytest.mark.parametrize("folder", PLUGINS, ids=lambda folder: folder.name)
def test_a_plugin_imports_only_public_names_of_models_and_below(folder):
    found = plugin_violations(folder)
    assert not found, "\n".join(found)


# The checker itself


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("features/a.py", "\nimport tzrec_core.models.rank\n", "a.py:2 imports tzrec_core.models.rank (floor 5) from"),
        ("features/a.py", "from tzrec_core.data import Batch", "a.py:1 imports tzrec_core.data.Batch (floor 3) from"),
        ("features/a.py", "from tzrec_core import data", "imports tzrec_core.data (floor 3) from floor 2"),
        ("data/a.py", "def f():\n    from tzrec_core.models import x", "a.py:2 imports tzrec_core.models.x (floor 5)"),
        ("data/sub/a.py", "from ...models import x", "data/sub/a.py:1 imports tzrec_core.models.x (floor 5)"),
        ("data/a.py", "import importlib\nimportlib.import_module('tzrec_core.engine')", "imports tzrec_core.engine ("),
        ("losses/a.py", "from tzrec_core.metrics import x", "imports tzrec_core.metrics.x (floor 4) from floor 4"),
        ("modules/a.py", "from tzrec_core.losses import x", "imports tzrec_core.losses.x (floor 4) from floor 4"),
        ("config/a.py", "from tzrec_core.kernels import x", "imports tzrec_core.kernels.x (floor 1) from floor 0"),
        ("errors.py", "from tzrec_core.features import x", "imports tzrec_core.features.x (floor 2) from floor 0"),
        ("__init__.py", "from tzrec_core import api", "imports tzrec_core.api (floor 9) from floor 0"),
        ("api.py", "from tzrec_core.testing import x", "imports tzrec_core.testing.x (floor 11) from floor 9"),
        ("models/a.py", "import tzrec_deepfm.model", "models/a.py:1 imports tzrec_deepfm.model, a plugin"),
        ("models/a.py", "from tzrec_core.misc import x", "imports tzrec_core.misc.x, which is on no floor"),
        ("misc.py", "", "misc.py:1 misc is on no floor"),
    ],
)  # fmt: skip
def test_the_checker_finds_an_import_that_points_up(tmp_path, file, text, expected):
    write(tmp_path, {f"tzrec_core/{file}": text})
    (found,) = core_violations(tmp_path)
    assert expected in found


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("data/a.py", "import numpy, torch\nfrom tzrec_core.features import x\nfrom tzrec_core import errors"),
        ("data/a.py", "from tzrec_core import __version__\nfrom . import b\nfrom tzrec_core.data.readers import c"),
        ("config/a.py", "from tzrec_core.plugins import x\nfrom tzrec_core.protos import y"),
        ("cli/a.py", "from tzrec_core import api\nfrom tzrec_core.kernels import x"),
        ("testing/a.py", "from tzrec_core.cli import x"),
        ("cli/a.py", "def f():\n    from tzrec_core.testing import x"),
    ],
)
def test_the_checker_accepts_an_import_that_points_down(tmp_path, file, text):
    write(tmp_path, {f"tzrec_core/{file}": text})
    assert core_violations(tmp_path) == []


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("tzrec_x/model.py", "from tzrec_core.engine import x", "model.py:1 imports tzrec_core.engine.x, above"),
        ("tzrec_x/model.py", "from tzrec_core.engine.callbacks import Callbacks", "Callbacks, which is not public"),
        ("tzrec_x/model.py", "from tzrec_core.engine.callbacks.health import Health", "Health, above what a plugin"),
        ("tzrec_x/model.py", "from tzrec_core import api", "above what a plugin may use"),
        ("tzrec_x/model.py", "from tzrec_core.testing import x", "above what a plugin may use"),
        ("tzrec_x/model.py", "from tzrec_core.losses._reduction import reduced", "which is not public"),
        ("tzrec_x/model.py", "from tzrec_core.modules import _x", "imports tzrec_core.modules._x, which is not public"),
        ("tzrec_x/model.py", "from tzrec_core.modules import Sequence", "tzrec_core.modules.Sequence, which is not"),
        ("tzrec_x/model.py", "\nimport tzrec_y.model", "model.py:2 imports tzrec_y.model, another plugin"),
        ("tests/test_model.py", "from tzrec_core.cli import app", "above what a plugin may use"),
    ],
)  # fmt: skip
def test_the_checker_finds_what_a_plugin_may_not_import(tmp_path, file, text, expected):
    write(tmp_path / "tzrec-x", {file: text})
    assert expected in "\n".join(plugin_violations(tmp_path / "tzrec-x"))


def test_the_checker_accepts_what_a_plugin_may_import(tmp_path):
    write(
        tmp_path / "tzrec-x",
        {
            "tzrec_x/model.py": "import torch\nfrom tzrec_core.modules import MLP\n"
            "from tzrec_core.models import RankModel\nfrom tzrec_x.layers import y\n"
            "from tzrec_core.errors import ConfigError\n",
            "tzrec_x/callback.py": "from tzrec_core.engine.callbacks import Callback, Run",
            "tzrec_x/commands.py": "from tzrec_core import api",
            "tests/test_model.py": "from tzrec_core.testing import golden\nfrom tzrec_x import model",
        },
    )
    assert plugin_violations(tmp_path / "tzrec-x") == []


# No torch


def test_the_torch_free_wing_imports_no_torch():
    manifests = [(str(folder), f"{folder.name.replace('-', '_')}.plugin") for folder in PLUGINS]
    code = f"""
import importlib, sys
modules = ["tzrec_core", "tzrec_core.errors", "tzrec_core.plugins", "tzrec_core.config", "tzrec_core.builtin",
           "tzrec_core.config.comments", "tzrec_core.cli", "tzrec_core.cli.app"]
for folder, manifest in {manifests!r}:
    sys.path.insert(0, folder)
    modules.append(manifest)
for module in modules:
    importlib.import_module(module)
    heavy = {{"torch", "torchrec", "numpy", "pandas", "polars", "pyarrow"}} & set(sys.modules)
    assert not heavy, f"importing {{module}} imports {{', '.join(sorted(heavy))}}"
from tzrec_core.config import parse_config
parse_config("model_config {{ }}", partial=True)
assert "torch" not in sys.modules, "parsing a config imports torch"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
