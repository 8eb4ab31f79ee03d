"""examples/third_party_plugin, followed to the letter."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tzrec_core import api
from tzrec_core.cli.app import _core_commands, _split
from tzrec_core.config import parse_config
from tzrec_core.plugins import Registry, Selection, Task, use_registry
from tzrec_core.scaffold import PluginNames, plugin_files
from tzrec_core.testing.tables import write_example_tables

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples/third_party_plugin"
README = (EXAMPLE / "README.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^`([\w./-]+)`:\n\n```\w*\n(.*?)^```$", README, re.MULTILINE | re.DOTALL))
PROSE = re.sub(r"^```.*?^```$", "", README, flags=re.MULTILINE | re.DOTALL)
COMMANDS = [shlex.split(line) for line in re.findall(r"^    (.*)$", PROSE, re.MULTILINE)]
PROTOC_PYTHON = os.environ.get("TZREC_PROTOC_PYTHON") or str(ROOT / ".venv-protos/bin/python")
CHANGES = {
    "runs/fwfm": "runs/poly1",
    "losses { binary_cross_entropy {} }": "losses { plugin { [tzrec.dev/tzrec_fwfm.Poly1] { epsilon: 1 } } }",
}
SMALL = ["data_config.num_workers=0", "data_config.batch_size=16", "train_config.use_tensorboard=false"]


def with_the_loss(config):
    """The config after the change that the README asks for."""
    for old, new in CHANGES.items():
        assert config.count(old) == 1
        assert f"`{new}` for `{old}`" in " ".join(README.split())
        config = config.replace(old, new)
    return config


def write_tables(folder):
    """Small tables with the columns of the demo's."""
    config = parse_config(FILES["movielens.config"].replace("fwfm {", "deepfm { deep { hidden_units: 1 } } #"))
    write_example_tables(config, folder, num_rows=64)


def test_ten_commands_are_enough_and_two_train_the_model():
    assert len(COMMANDS) <= 10
    trains = [i for i, command in enumerate(COMMANDS) if command[0] == "tzrec" and "train" in command]
    assert trains == [1, len(COMMANDS) - 1]


def test_every_command_of_tzrec_exists():
    for command in COMMANDS:
        if command[0] == "tzrec":
            options, rest = _split(command[1:])
            assert rest[0] in _core_commands(), command
            assert options in ([], ["--plugin", "./plugin.py"])


def test_the_files_of_the_readme_are_those_of_the_folder():
    for path, text in FILES.items():
        expected = with_the_loss(text) if path == "movielens.config" else text
        assert (EXAMPLE / path).read_text(encoding="utf-8") == expected, path
    assert (EXAMPLE / "model.py").read_bytes() == (EXAMPLE / "tzrec-fwfm/tzrec_fwfm/model.py").read_bytes()


def test_the_other_files_of_the_package_are_what_new_plugin_writes():
    own = {"README.md", "pyproject.toml", "tzrec_fwfm/__init__.py", "tzrec_fwfm/model.py"}
    for path, text in plugin_files(PluginNames.of("fwfm"), task=Task.RANK, dataclass=True, standalone=False).items():
        if path not in own and f"tzrec-fwfm/{path}" not in FILES:
            assert (EXAMPLE / "tzrec-fwfm" / path).read_text(encoding="utf-8") == text, path


def test_the_model_is_less_than_60_lines():
    assert len(FILES["model.py"].splitlines()) < 60


def test_the_two_files_train_a_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for path in ("model.py", "plugin.py", "movielens.config"):
        Path(path).write_text(FILES[path], encoding="utf-8")
    write_tables(tmp_path)
    try:
        with use_registry(Registry.find(Selection(only=frozenset(), files=(str(tmp_path / "plugin.py"),)))) as found:
            assert not found.problems()
            result = api.train("movielens.config", overrides=[*SMALL, "train_config.num_epochs=1"])
        assert result.step == 4
        assert 0 <= result.metrics["auc"] <= 1
    finally:
        for name in ("plugin", "model"):
            sys.modules.pop(name, None)


@pytest.mark.slow
def test_the_tutorial_works_from_an_empty_folder(tmp_path):
    if subprocess.run([PROTOC_PYTHON, "-c", "import grpc_tools"], check=False, capture_output=True).returncode:
        pytest.skip("no Python with grpcio-tools: set TZREC_PROTOC_PYTHON, or run `make protos`")
    site = tmp_path / "site"
    here = tmp_path / "empty"
    here.mkdir()
    unset = ("TZREC_PLUGINS", "TZREC_PLUGIN_FILES")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))

    def run(*command):
        done = subprocess.run(command, capture_output=True, text=True, cwd=here, env=environment, check=False)
        assert done.returncode == 0, f"{command}:\n{done.stdout}{done.stderr}"
        return done.stdout

    def tzrec(*arguments):
        settings = [part for change in SMALL for part in ("--set", change)] if "train" in arguments else []
        return run(sys.executable, "-m", "tzrec_core.cli.app", *arguments, *settings)

    def write(prefix, *, but=""):
        for path, text in FILES.items():
            if path.startswith(prefix) and not (but and path.startswith(but)):
                (here / path).write_text(text, encoding="utf-8")

    write("", but="tzrec-fwfm/")
    for command in COMMANDS:
        match command:
            case ["python", script, "--out", "data"]:  # the demo's own tests see to the download
                assert (ROOT / script.removeprefix("~/tzrec/")).is_file()
                write_tables(here)
            case ["python", "-m", "venv", ".venv-protos"]:
                (here / ".venv-protos/bin").mkdir(parents=True)
                (here / ".venv-protos/bin/python").symlink_to(PROTOC_PYTHON)
            case [".venv-protos/bin/pip", "install", requirement]:
                assert requirement in (ROOT / "Makefile").read_text(encoding="utf-8")
            case ["tzrec", "protoc", file, "--python", _]:
                tzrec("protoc", file, "--python", PROTOC_PYTHON)
                for generated in (here / file).parent.glob("*_pb2.py*"):
                    committed = EXAMPLE / generated.relative_to(here)
                    assert generated.read_bytes() == committed.read_bytes(), f"{committed} is stale"
            case ["tzrec", "new-plugin", *_]:
                tzrec(*command[1:])
            case ["mv", *_]:
                run(*command)
                write("tzrec-fwfm/")
            case ["pip", "install", "-e", folder]:
                pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--no-build-isolation"]
                run(*pip, "--target", str(site), folder)
            case ["tzrec", "train", config]:
                (here / config).write_text(with_the_loss(FILES[config]), encoding="utf-8")
                assert "poly1" in tzrec(*command[1:])
            case ["tzrec", *arguments]:
                tzrec(*arguments)
            case _:
                pytest.fail(f"the README tells a command that this test does not know: {command}")
    assert list((here / "runs/fwfm").glob("model.ckpt-*"))
    assert list((here / "runs/poly1").glob("model.ckpt-*"))
    tzrec("predict", "movielens.config", "--input", "data/eval.parquet", "--output", "scores.parquet")
    assert pq.read_table(here / "scores.parquet").num_rows == 64
    run(sys.executable, "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider", "tzrec-fwfm/tests")
    shutil.rmtree(here)
