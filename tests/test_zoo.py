"""tzrec-zoo depends on what lies beside it in plugins/."""

import importlib.util
import sys
import tomllib
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "scripts/zoo.py"
VERSIONS = {"tzrec-core": "1.4.2", "tzrec-old": "0.9", "tzrec-new": "2.10.0rc1"}


@pytest.fixture
def zoo():
    spec = importlib.util.spec_from_file_location("zoo", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tree(zoo, tmp_path, monkeypatch):
    """A repository with a core, two plugins and a zoo that knows none of them."""
    for name, version in VERSIONS.items():
        folder = tmp_path / ("" if name == "tzrec-core" else f"plugins/{name}")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "pyproject.toml").write_text(f'[project]\nname = "{name}"\nversion = "{version}"\n')
    (tmp_path / "plugins/tzrec-zoo").mkdir()
    (tmp_path / "plugins/tzrec-zoo/pyproject.toml").write_text("old")
    monkeypatch.setattr(zoo, "ROOT", tmp_path)
    return tmp_path


def test_the_zoo_in_the_repository_is_current(zoo, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["zoo.py", "--check"])
    zoo.main()


def test_the_zoo_takes_of_each_distribution_what_is_compatible_with_its_version(zoo, tree, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["zoo.py"])
    zoo.main()
    zoo.main()
    assert capsys.readouterr().out == "wrote: plugins/tzrec-zoo/pyproject.toml\n"
    project = tomllib.loads((tree / "plugins/tzrec-zoo/pyproject.toml").read_text())["project"]
    assert (project["name"], project["version"]) == ("tzrec-zoo", "1.4.2")
    assert project["dependencies"] == ["tzrec-core>=1.4,<1.5", "tzrec-new>=2.10,<2.11", "tzrec-old>=0.9,<0.10"]


def test_a_stale_zoo_is_reported_and_left_alone(zoo, tree, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["zoo.py", "--check"])
    with pytest.raises(SystemExit, match=r"stale: plugins/tzrec-zoo/pyproject.toml. Run `make docs`"):
        zoo.main()
    assert (tree / "plugins/tzrec-zoo/pyproject.toml").read_text() == "old"
