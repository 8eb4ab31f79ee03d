"""The laws of plugins/: the same files and keys of pyproject.toml, and a README that says when another model wins.

What any plugin is as a package is checked by `tzrec_core.testing.packaging`; that examples train, by
tests/e2e/test_examples.py.
"""

import ast
import re
import runpy
import shutil
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tzrec_core.plugins import ModelSpec

ROOT = Path(__file__).resolve().parents[1]
WITHOUT_CODE = {"tzrec-zoo"}  # the distribution of all the others
PLUGINS = sorted(folder for folder in ROOT.glob("plugins/*") if folder.is_dir() and folder.name not in WITHOUT_CODE)
CORE = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXCEPTIONS: dict[str, set[str]] = {}  # distribution -> files of the anatomy that it does without
MANIFEST_LINES = 60
_INSTEAD = r"^Take \*\*\[([\w-]+)\]\([^)]*\)\*\* instead when(.*?)(?=^Take |\Z)"  # (distribution, reason)

every_plugin = pytest.mark.parametrize("folder", PLUGINS, ids=lambda folder: folder.name)


def package_of(folder: Path) -> Path:
    return folder / folder.name.replace("-", "_")


def toml_of(folder: Path) -> dict[str, Any]:
    return tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))


def specs_of(folder: Path) -> list[Any]:
    """What the manifest offers; run by its path, for copies of a package share its name."""
    return runpy.run_path(str(package_of(folder) / "plugin.py"))["tzrec_specs"]()


# ---- the laws: what is wrong with a plugin's folder, a line each


def file_problems(folder: Path) -> Iterator[str]:
    """Files that every plugin has and this one lacks."""
    package = package_of(folder)
    wanted = [folder / "pyproject.toml", folder / "README.md", package / "__init__.py", package / "plugin.py"]
    wanted += [package / name for name in ("config.proto", "config_pb2.py", "config_pb2.pyi")]
    wanted += [folder / "tests/test_conformance.py", folder / "tests/test_model.py"]
    if (package / "plugin.py").is_file():
        models = [spec.name for spec in specs_of(folder) if isinstance(spec, ModelSpec)]
        names = [(name, name) for name in models] if len(models) > 1 else [("model", "tiny")]
        for module, example in names:
            wanted += [package / f"{module}.py", package / f"examples/{example}.config"]
    for path in wanted:
        name = str(path.relative_to(folder))
        if not path.is_file() and name not in EXCEPTIONS.get(folder.name, set()):
            yield f"{name} is missing"


def pyproject_problems(folder: Path) -> Iterator[str]:
    """Keys of pyproject.toml that are not those of all plugins."""
    found, package = toml_of(folder), package_of(folder).name
    core, project = CORE["project"], found["project"]
    major, minor, _ = core["version"].split(".")
    bound = f"tzrec-core>={major}.{minor},<{major}.{int(minor) + 1}"
    expected = {
        "build-system": CORE["build-system"],
        "project": {
            "name": folder.name,
            "version": core["version"],
            "description": project.get("description") or "a sentence",
            "readme": "README.md",
            "license": core["license"],
            "authors": core["authors"],
            "requires-python": core["requires-python"],
            "dependencies": [bound, *(d for d in project["dependencies"] if not d.startswith("tzrec-core"))],
            "entry-points": {"tzrec.plugins": {package.removeprefix("tzrec_"): f"{package}.plugin"}},
        },
        "tool": {
            "setuptools": {
                "packages": {"find": {"include": [f"{package}*"]}},
                "package-data": {"*": ["*.proto", "*.pyi", "*.config"]},
            }
        },
    }
    for table in sorted(expected.keys() | found.keys()):
        wanted, got = expected.get(table, {}), found.get(table, {})
        for key in sorted(wanted.keys() | got.keys()):
            if wanted.get(key) != got.get(key):
                yield f"pyproject.toml: {table}.{key} is {got.get(key)!r}, not {wanted.get(key)!r}"


def package_problems(folder: Path) -> Iterator[str]:
    """What __init__.py holds besides a docstring and the version."""
    version = toml_of(folder)["project"]["version"]
    tree = ast.parse((package_of(folder) / "__init__.py").read_text(encoding="utf-8"))
    wanted = ast.parse(f"'{ast.get_docstring(tree)}'\n__version__ = '{version}'")
    if not ast.get_docstring(tree) or ast.unparse(tree.body[1:]) != ast.unparse(wanted.body[1:]):
        yield f"__init__.py is not a docstring and __version__ = {version!r}"


def manifest_problems(folder: Path) -> Iterator[str]:
    """A manifest that is long, or names what is not there."""
    package = package_of(folder)
    if (lines := len((package / "plugin.py").read_text(encoding="utf-8").splitlines())) > MANIFEST_LINES:
        yield f"plugin.py has {lines} lines, more than {MANIFEST_LINES}"
    for spec in specs_of(folder):
        yield from spec.problems()
        for target in (spec.target, spec.config):
            module, _, name = target.partition(":")
            source = folder / f"{module.replace('.', '/')}.{'pyi' if module.endswith('_pb2') else 'py'}"
            if not source.is_file() or f"class {name}" not in source.read_text(encoding="utf-8"):
                yield f"plugin.py: {target} is not there"
        if isinstance(spec, ModelSpec) and not (package / spec.example).is_file():
            yield f"plugin.py: example {spec.example!r} is not there"


def readme_problems(folder: Path) -> Iterator[str]:
    """A README that does not say, where it tells when to use the model, which plugin of ours is better and when."""
    text = (folder / "README.md").read_text(encoding="utf-8")
    if not text.startswith(f"# {folder.name}\n"):
        yield f"README.md does not begin with # {folder.name}"
    when = re.search(r"^## When to use it\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    if when is None:
        yield "README.md has no section ## When to use it"
        return
    others = {plugin.name for plugin in PLUGINS} - {folder.name}
    said = re.findall(_INSTEAD, when[1], re.MULTILINE | re.DOTALL)
    reasons = {name: reason for name, reason in said if name in others}
    if not reasons:
        yield (
            "README.md, When to use it: no model of ours is named that is better at something; write: Take "
            "**[tzrec-other](../tzrec-other)** instead when, and the reasons"
        )
    for name, reason in reasons.items():
        if len(reason.split()) < 10:
            yield f"README.md says {name} instead, and hardly why"


LAWS = (file_problems, pyproject_problems, package_problems, manifest_problems, readme_problems)


@every_plugin
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__.removesuffix("_problems"))
def test_a_plugin_keeps_the_law(folder, law):
    found = list(law(folder))
    assert not found, f"{folder.name}:\n" + "\n".join(found)


# ---- each law can be broken


def edited(path: str, old: str, new: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        text = (folder / path).read_text(encoding="utf-8")
        assert old in text, f"{old!r} is not in {path}"
        (folder / path).write_text(text.replace(old, new), encoding="utf-8")

    return edit


def removed(path: str) -> Callable[[Path], None]:
    return lambda folder: (folder / path).unlink()


TOML, README, INIT, MANIFEST = "pyproject.toml", "README.md", "tzrec_deepfm/__init__.py", "tzrec_deepfm/plugin.py"
TAKE = "Take **[tzrec-wide-and-deep](../tzrec-wide-and-deep)** instead when"


@pytest.mark.parametrize(
    ("law", "change", "words"),
    [
        (file_problems, removed("tests/test_conformance.py"), "tests/test_conformance.py is missing"),
        (file_problems, removed("tests/test_model.py"), "tests/test_model.py is missing"),
        (file_problems, removed("README.md"), "README.md is missing"),
        (file_problems, removed("tzrec_deepfm/config.proto"), "tzrec_deepfm/config.proto is missing"),
        (file_problems, removed("tzrec_deepfm/config_pb2.pyi"), "tzrec_deepfm/config_pb2.pyi is missing"),
        (file_problems, removed("tzrec_deepfm/model.py"), "tzrec_deepfm/model.py is missing"),
        (file_problems, removed("tzrec_deepfm/examples/tiny.config"), "examples/tiny.config is missing"),
        (file_problems, removed(MANIFEST), "tzrec_deepfm/plugin.py is missing"),
        (pyproject_problems, edited(TOML, 'version = "0.1.0"', 'version = "0.2.0"'), "project.version is '0.2.0', not"),
        (pyproject_problems, edited(TOML, "Apache-2.0", "MIT"), "project.license is 'MIT', not 'Apache-2.0'"),
        (pyproject_problems, edited(TOML, "The tzrec developers", "Somebody"), "project.authors is"),
        (pyproject_problems, edited(TOML, ">=3.11", ">=3.12"), "project.requires-python is '>=3.12'"),
        (pyproject_problems, edited(TOML, "<0.2", "<1"), "project.dependencies is"),
        (pyproject_problems, edited(TOML, 'readme = "README.md"\n', ""), "project.readme is None"),
        (pyproject_problems, edited(TOML, "deepfm = ", "fm = "), "project.entry-points is"),
        (pyproject_problems, edited(TOML, "tzrec_deepfm.plugin", "tzrec_deepfm.spec"), "project.entry-points is"),
        (pyproject_problems, edited(TOML, "setuptools>=77", "setuptools"), "build-system.requires is"),
        (pyproject_problems, edited(TOML, ', "*.config"', ""), "tool.setuptools is"),
        (pyproject_problems, edited(TOML, "[project]", "[project]\nkeywords = []"), "project.keywords is"),
        (pyproject_problems, edited(TOML, "DeepFM for tzrec.", ""), "project.description is ''"),
        (package_problems, edited(INIT, "__version__", "import os\n__version__"), "__init__.py is not a docstring and"),
        (package_problems, edited(INIT, '"0.1.0"', '"0.1.1"'), "__version__ = '0.1.0'"),
        (package_problems, edited(INIT, '"""DeepFM', 'x = """DeepFM'), "__init__.py is not a docstring and"),
        (manifest_problems, edited(MANIFEST, "return [", "return [\n" + "\n" * 60), "more than 60"),
        (manifest_problems, edited(MANIFEST, "model:DeepFM", "model:DeepFn"), "tzrec_deepfm.model:DeepFn is not there"),
        (manifest_problems, edited(MANIFEST, "config_pb2:DeepFM", "config:DeepFM"), "config:DeepFM is not there"),
        (manifest_problems, edited(MANIFEST, "tiny.config", "big.config"), "'examples/big.config' is not there"),
        (manifest_problems, edited(MANIFEST, 'summary="', 'summary="" and "'), "summary"),
        (readme_problems, edited(README, "# tzrec-deepfm", "# DeepFM"), "does not begin with # tzrec-deepfm"),
        (readme_problems, edited(README, "## When to use it", "## Usage"), "no section ## When to use it"),
        (readme_problems, edited(README, TAKE, "It is always the best when"), "no model of ours is named"),
        (readme_problems, edited(README, "[tzrec-wide-and-deep]", "[tzrec-deepfm]"), "no model of ours is named"),
        (readme_problems, edited(README, "[tzrec-wide-and-deep]", "[tzrec-magic]"), "no model of ours is named"),
        (readme_problems, edited(README, TAKE, f"{TAKE} needed.\n\n## Input\n\n"), "hardly why"),
    ],
)  # fmt: skip
def test_a_broken_law_is_told(tmp_path, law, change, words):
    folder = tmp_path / "tzrec-deepfm"
    ignored = shutil.ignore_patterns("*.egg-info", "__pycache__", "build", "goldens")
    shutil.copytree(ROOT / "plugins/tzrec-deepfm", folder, ignore=ignored)
    assert not list(law(folder))
    change(folder)
    found = "\n".join(law(folder))
    assert words in found, found


def test_a_plugin_with_several_models_has_a_file_and_an_example_for_each(tmp_path):
    package = tmp_path / "tzrec-two" / "tzrec_two"
    package.mkdir(parents=True)
    specs = ", ".join(
        f'ModelSpec("{name}", "tzrec_two.{name}:X", "tzrec_two.config_pb2:X", summary="X.", task=Task.RANK)'
        for name in ("one", "two")
    )
    text = f"from tzrec_core.plugins import ModelSpec, Task\ndef tzrec_specs():\n    return [{specs}]\n"
    (package / "plugin.py").write_text(text, encoding="utf-8")
    found = set(file_problems(package.parent))
    assert {f"tzrec_two/{name} is missing" for name in ("one.py", "two.py", "examples/one.config")} <= found
    assert "tzrec_two/model.py is missing" not in found
