"""`make dist`, and what its wheels are worth where no checkout can fill in for what they lack."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import parse_wheel_filename

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SOURCES = ("Makefile", "pyproject.toml", "README.md", "LICENSE", "tzrec_core", "plugins", "constraints")
PLUGINS = sorted(manifest.parents[1].name for manifest in ROOT.glob("plugins/*/*/plugin.py"))
OURS = ["tzrec-core", *PLUGINS]
STAND_IN = "fbgemm-gpu"
MODULES = [name.replace("-", "_") for name in OURS]
EXAMPLE = "tzrec_deepfm/examples/tiny.config"


def sources_in(folder: Path) -> Path:
    """A copy to build from, as builds leave files beside the sources."""
    folder.mkdir()
    left = shutil.ignore_patterns("build", "*.egg-info", "__pycache__")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=left)
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


def make_dist(folder: Path) -> dict[str, Path]:
    """The wheels that `make dist` of a copy builds with the tools of this environment, by distribution."""
    command = ["make", "-C", str(folder), "dist", f"VENV={sys.prefix}", "-o", f"{sys.prefix}/.tools"]
    subprocess.run(command, check=True, capture_output=True, text=True)
    found = {parse_wheel_filename(path.name)[0]: path for path in sorted(folder.glob("dist/**/*.whl"))}
    return {str(name): path for name, path in found.items()}


def metadata_of(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return HeaderParser().parsestr(archive.read(name).decode("utf-8"))


@pytest.fixture(scope="module")
def wheels(tmp_path_factory) -> dict[str, Path]:
    folder = sources_in(tmp_path_factory.mktemp("dist") / "tzrec")
    left_over = ["dist/tzrec_gone-0.1.0-py3-none-any.whl", "build/lib/tzrec_core/gone.py"]
    left_over += [f"plugins/{name}/build/lib/{name.replace('-', '_')}/gone.py" for name in PLUGINS]
    for name in left_over:
        (folder / name).parent.mkdir(parents=True)
        (folder / name).touch()
    return make_dist(folder)


class Installed:
    """The wheels in a folder, and a Python that has the stack, by links, and no tzrec but that folder's."""

    def __init__(self, folder: Path, wheels: list[Path]) -> None:
        self.target, self.elsewhere, self.python = folder / "target", folder / "elsewhere", folder / "env/bin/python"
        self.elsewhere.mkdir()
        venv.create(folder / "env", with_pip=False)
        (site,) = folder.glob("env/lib/python*/site-packages")
        for entry in Path(sysconfig.get_path("purelib")).iterdir():
            if not entry.name.startswith(("tzrec", "__editable__", "__pycache__")):
                (site / entry.name).symlink_to(entry)
        pip = [str(self.python), "-m", "pip", "--disable-pip-version-check", "-q"]
        command = [*pip, "install", "--no-index", "--no-deps", "--target", str(self.target), *map(str, wheels)]
        subprocess.run(command, check=True, capture_output=True, text=True)
        ours = ("PYTHONPATH", "TZREC_PLUGINS", "TZREC_PLUGIN_FILES")
        self.env = {name: value for name, value in os.environ.items() if name not in ours} | {"OMP_NUM_THREADS": "1"}

    def run(self, *command: str, sees_the_wheels: bool = True) -> subprocess.CompletedProcess[str]:
        env = self.env | ({"PYTHONPATH": str(self.target)} if sees_the_wheels else {})
        return subprocess.run(command, capture_output=True, text=True, cwd=self.elsewhere, env=env, check=False)

    def tzrec(self, *arguments: str) -> str:
        done = self.run(str(self.target / "bin/tzrec"), *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def installed(wheels, tmp_path_factory) -> Installed:
    return Installed(tmp_path_factory.mktemp("installed"), [wheels[name] for name in (*OURS, "tzrec-zoo")])


# The wheels


def test_there_is_a_wheel_of_the_core_of_every_plugin_and_of_the_zoo_and_none_is_left_of_an_earlier_build(wheels):
    assert sorted(wheels) == sorted([*OURS, "tzrec-zoo", STAND_IN])


def test_the_stand_in_for_fbgemm_lies_where_nobody_installs_it_by_accident(wheels):
    assert {name: path.parent.name for name, path in wheels.items() if path.parent.name != "dist"} == {STAND_IN: "cpu"}


@pytest.mark.parametrize("name", OURS)
def test_a_wheel_holds_every_file_of_the_package_and_no_other(wheels, name):
    package = (ROOT if name == "tzrec-core" else ROOT / "plugins" / name) / name.replace("-", "_")
    files = {str(path.relative_to(package.parent)) for path in package.rglob("*") if path.is_file()}
    shipped = {path for path in zipfile.ZipFile(wheels[name]).namelist() if ".dist-info/" not in path}
    assert shipped == {path for path in files if "__pycache__" not in path}


def test_the_zoo_is_nothing_but_its_dependencies_which_the_other_wheels_satisfy(wheels):
    assert all(".dist-info/" in path for path in zipfile.ZipFile(wheels["tzrec-zoo"]).namelist())
    needed = {r.name: r.specifier for r in map(Requirement, metadata_of(wheels["tzrec-zoo"]).get_all("Requires-Dist"))}
    assert sorted(needed) == sorted(OURS)
    for name, specifier in needed.items():
        version = metadata_of(wheels[name])["Version"]
        assert version in specifier, name
        assert "0.0.1" not in specifier and "9999" not in specifier, name


def test_the_stand_in_is_the_version_that_the_core_pins_and_brings_the_same_one_for_cpus(wheels):
    pinned = [d for d in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"] if "fbg" in d]
    (requirement,) = map(Requirement, pinned)
    stand_in = metadata_of(wheels[STAND_IN])
    assert requirement.name == stand_in["Name"]
    assert stand_in["Version"] in requirement.specifier
    assert stand_in.get_all("Requires-Dist") == [f"{STAND_IN}-cpu{requirement.specifier}"]


def test_the_same_sources_give_the_same_wheels(wheels, tmp_path):
    again = make_dist(sources_in(tmp_path / "again"))
    assert [name for name in wheels if again[name].read_bytes() != wheels[name].read_bytes()] == []


# What they install


def test_without_the_wheels_there_is_no_tzrec(installed):
    done = installed.run(str(installed.python), "-c", "import tzrec_core", sees_the_wheels=False)
    assert "No module named 'tzrec_core'" in done.stderr


def test_the_command_finds_every_model_in_the_wheels_and_nowhere_else(installed):
    models = json.loads(installed.tzrec("list-models", "--json"))
    assert {row["plugin"] for row in models} == set(PLUGINS)
    code = f"import importlib; print(*(importlib.import_module(name).__file__ for name in {MODULES}), sep='\\n')"
    done = installed.run(str(installed.python), "-c", code)
    assert done.stdout.split() == [str(installed.target / name / "__init__.py") for name in MODULES], done.stderr


def test_the_packaged_example_trains_on_generated_rows(installed):
    config = str(installed.target / EXAMPLE)
    code = (
        "from tzrec_core.config import load_config; from tzrec_core.testing.tables import write_example_tables;"
        f" write_example_tables(load_config({config!r}), '.')"
    )
    done = installed.run(str(installed.python), "-c", code)
    assert done.returncode == 0, done.stderr
    installed.tzrec("train", config)
    assert any(installed.elsewhere.glob("tiny_deepfm/model.ckpt-*"))
    assert "auc" in installed.tzrec("eval", config)


def test_a_plugin_proves_itself_from_its_wheel(installed):
    report = json.loads(installed.tzrec("check", "tzrec-deepfm", "--json"))
    assert report["ok"]
    assert {row["model"] for row in report["checks"]} == {"", "deepfm"}
