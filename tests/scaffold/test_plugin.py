import importlib
import itertools
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tzrec_core import api
from tzrec_core.config import load_config, parse_config
from tzrec_core.data.draft import draft_config
from tzrec_core.errors import ConfigError
from tzrec_core.plugins import ModelSpec, Registry, Selection, Task, use_registry
from tzrec_core.scaffold import TASKS, PluginNames, plugin_files
from tzrec_core.testing.tables import write_example_tables

ROOT = Path(__file__).parents[2]
PROTOC_PYTHON = os.environ.get("TZREC_PROTOC_PYTHON") or str(ROOT / ".venv-protos/bin/python")
COMBINATIONS = [
    pytest.param(task, dataclass, standalone, id=f"{task}{'-dataclass' * dataclass}{'-standalone' * standalone}")
    for task, dataclass, standalone in itertools.product(TASKS, (False, True), (False, True))
]
every_flag = pytest.mark.parametrize(("task", "dataclass", "standalone"), COMBINATIONS)


def render(name, task=Task.RANK, *, dataclass=False, standalone=False):
    return plugin_files(PluginNames.of(name), task=task, dataclass=dataclass, standalone=standalone)


def write(folder, texts):
    for path, text in texts.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
    return folder


# ---- names


def test_one_name_gives_all_the_others():
    for name in ("wide-and-deep2", "wide_and_deep2"):
        names = PluginNames.of(name)
        assert names.model == "wide_and_deep2"
        assert names.distribution == "tzrec-wide-and-deep2"
        assert names.package == "tzrec_wide_and_deep2"
        assert names.model_class == "WideAndDeep2"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Din", "lower-case letters and digits"),
        ("2din", "such as 'wide-and-deep'"),
        ("di n", "is not a name"),
        ("din-", "is not a name"),
        ("../din", "is not a name"),
        ("", "is not a name"),
        ("dín", "is not a name"),
        ("lambda", "is a word of Python"),
        ("tzrec-din", "write 'din'"),
    ],
)
def test_a_name_that_cannot_be_one_is_refused_with_what_to_write(name, words):
    with pytest.raises(ConfigError, match=words):
        PluginNames.of(name)


@pytest.mark.parametrize("name", ["rank_model", "batch", "any"])
def test_a_class_that_would_hide_what_its_module_imports_is_refused(name):
    with pytest.raises(ConfigError, match=f"a name that its module imports.*{name}_net"):
        render(name)


# ---- files


@every_flag
def test_the_files_are_those_of_the_official_plugins(task, dataclass, standalone):
    found = set(render("din", task, dataclass=dataclass, standalone=standalone))
    expected = {
        "pyproject.toml", "README.md", "tzrec_din/__init__.py", "tzrec_din/plugin.py", "tzrec_din/model.py",
        "tzrec_din/examples/tiny.config", "tests/test_conformance.py", "tests/test_model.py",
    }  # fmt: skip
    proto = {"tzrec_din/config.proto", "tzrec_din/config_pb2.py", "tzrec_din/config_pb2.pyi"}
    expected |= {"tzrec_din/config.py"} if dataclass else proto
    expected |= {"LICENSE", ".gitignore", ".github/workflows/ci.yml"} if standalone else set()
    assert found == expected


@every_flag
def test_nothing_is_left_of_the_names_in_the_templates(task, dataclass, standalone):
    for path, text in render("din", task, dataclass=dataclass, standalone=standalone).items():
        left = [word for word in ("new_model", "new-model", "NewModel", "NEWMODEL") if word in path + text]
        assert not left, f"{path} holds {left}"
        assert not (dataclass and "config_pb2" in text), path


def test_every_template_is_used():
    templates = ROOT / "tzrec_core/scaffold/templates"
    used = {
        text for task, flag in itertools.product(TASKS, (False, True))
        for text in render("new_model", task, dataclass=flag, standalone=True).values()
    }  # fmt: skip
    unused = [
        path for path in templates.rglob("*.tmpl")
        if path.read_text("utf-8") not in used and path.read_text("utf-8").replace("config_pb2", "config") not in used
    ]  # fmt: skip
    assert not unused


def test_the_pyproject_has_the_keys_of_the_official_ones():
    def common(text):
        found = tomllib.loads(text)
        for own in ("authors", "description"):
            assert found["project"].pop(own)
        return found

    official = (ROOT / "plugins/tzrec-deepfm/pyproject.toml").read_text(encoding="utf-8")
    assert common(render("deepfm")["pyproject.toml"]) == common(official)


def test_a_new_plugin_has_developers_of_its_own():
    project = tomllib.loads(render("din")["pyproject.toml"])["project"]
    assert project["authors"] == [{"name": "The tzrec-din developers"}]


def test_the_licence_is_the_one_that_the_pyproject_names():
    assert render("din", standalone=True)["LICENSE"] == (ROOT / "LICENSE").read_text(encoding="utf-8")


@every_flag
def test_the_code_passes_the_linter_of_this_repository(tmp_path, task, dataclass, standalone):
    write(tmp_path, render("din", task, dataclass=dataclass, standalone=standalone))
    command = [sys.executable, "-m", "ruff", "--config", str(ROOT / "pyproject.toml")]
    for arguments in (["check", "--ignore", "D"], ["format", "--check"]):
        done = subprocess.run(
            [*command[:3], *arguments, *command[3:], "--no-cache", str(tmp_path)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["din", "a", "deep_interest_network_with_a_rather_long_name_of_its_own_" + "x" * 90])
@pytest.mark.parametrize("task", TASKS)
def test_the_generated_code_is_what_protoc_generates(tmp_path, task, name):
    if subprocess.run([PROTOC_PYTHON, "-c", "import grpc_tools"], check=False, capture_output=True).returncode:
        pytest.skip("no Python with grpcio-tools: set TZREC_PROTOC_PYTHON, or run `make protos`")
    texts = render(name, task)
    package = PluginNames.of(name).package
    proto = write(tmp_path, {f"{package}/config.proto": texts[f"{package}/config.proto"]}) / package / "config.proto"
    command = [sys.executable, "-m", "tzrec_core.cli.app", "protoc", str(proto), "--python", PROTOC_PYTHON]
    subprocess.run(command, check=True, capture_output=True)
    for generated in ("config_pb2.py", "config_pb2.pyi"):
        assert texts[f"{package}/{generated}"] == (proto.parent / generated).read_text(encoding="utf-8")


# ---- the plugin


@pytest.fixture
def loaded(tmp_path, monkeypatch):
    """Makes a rendered plugin the only one of this process."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def load(name, texts):
        write(tmp_path, texts)
        manifest = str(tmp_path / PluginNames.of(name).package / "plugin.py")
        return Registry.find(Selection(only=frozenset(), files=(manifest,)))

    yield load
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.parametrize("dataclass", [False, True], ids=["proto", "dataclass"])
@pytest.mark.parametrize("task", TASKS)
def test_a_new_plugin_trains_a_step(tmp_path, loaded, task, dataclass):
    name = f"{task}_{'data' if dataclass else 'proto'}_net"  # a message of one name can be in a process once
    found = loaded(name, render(name, task, dataclass=dataclass))
    importlib.invalidate_caches()
    with use_registry(found):
        assert found.problems() == []
        assert found.get(ModelSpec, name).spec.task is task
        example = tmp_path / f"tzrec_{name}/examples/tiny.config"
        config = load_config(example, validate=True)
        settings = getattr(config.model_config, name)
        assert {field.name for field, _ in settings.ListFields()}, "the example sets nothing"
        paths = write_example_tables(config, tmp_path, num_rows=32)
        overrides = [f"{field}={path}" for field, path in paths.items()]
        overrides += [f"model_dir={tmp_path / 'run'}", "train_config.use_tensorboard=false"]
        assert api.train(example, overrides=overrides).step == 1


def test_a_config_drafted_for_a_new_multitask_plugin_has_the_layers_of_its_example(tmp_path, loaded):
    found = loaded("drafted_net", render("drafted_net", Task.MULTITASK))
    importlib.invalidate_caches()
    rows = {"item": ["a", "b"] * 50, "click": [0, 1, 1] * 33 + [0], "buy": [0, 0, 1] * 33 + [0]}
    pq.write_table(pa.table(rows), tmp_path / "train.parquet")
    with use_registry(found):
        offer = found.get(ModelSpec, "drafted_net")
        text = draft_config(offer, str(tmp_path / "train.parquet"), labels=["click", "buy"], model_dir="run")
        settings = parse_config(text).model_config.drafted_net
    assert settings.bottom_mlp.hidden_units == [32]
    assert [(tower.label_name, list(tower.mlp.hidden_units)) for tower in settings.task_towers] == [
        ("click", [16]),
        ("buy", [16]),
    ]
    assert not any(tower.task_space_indicator_label for tower in settings.task_towers)


@every_flag
@pytest.mark.slow
def test_a_new_plugin_passes_the_checks_as_an_installed_wheel(tmp_path, task, dataclass, standalone):
    source = write(tmp_path / "tzrec-din", render("din", task, dataclass=dataclass, standalone=standalone))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    wheel = [*pip, "wheel", "--no-deps", "--no-index", "--no-build-isolation", "-w", str(tmp_path), str(source)]
    subprocess.run(wheel, check=True, capture_output=True, text=True)
    (built,) = tmp_path.glob("tzrec_din-0.1.0-*.whl")
    site = tmp_path / "site"
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", str(site), str(built)], check=True)
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "TZREC_PLUGINS": "din"}

    def run(*arguments):
        command = [sys.executable, "-m", *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)

    done = run("tzrec_core.cli.app", "check", "tzrec-din")
    assert done.returncode == 0, done.stdout + done.stderr
    chosen = ["-k", "test_model or readme"]  # the rules once more, but through pytest, would only take long
    tested = run("pytest", "-q", "-p", "no:cacheprovider", *chosen, str(source / "tests"))
    assert tested.returncode == 0, tested.stdout + tested.stderr
    assert "passed" in tested.stdout


@pytest.mark.slow
def test_the_wheel_of_the_core_ships_the_templates(tmp_path):
    core = tmp_path / "core"  # a copy, for builds leave files beside the sources
    shutil.copytree(ROOT / "tzrec_core", core / "tzrec_core", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, core)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*command, "-w", str(tmp_path), str(core)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("tzrec_core-*.whl")
    shipped = set(zipfile.ZipFile(wheel).namelist())
    templates = {str(path.relative_to(ROOT)) for path in (ROOT / "tzrec_core/scaffold/templates").rglob("*.tmpl")}
    assert templates and templates <= shipped
