"""The guide names every command, option, environment variable and JSON key that there is."""

import re
from pathlib import Path

import pytest
import typer

from tzrec_core.cli.app import app

GUIDE = (Path(__file__).parents[2] / "registry_docs/guides/command_line.md").read_text(encoding="utf-8")
SOURCES = Path(__file__).parents[2] / "tzrec_core"


def section(command: str) -> str:
    """What the guide says of a command's JSON."""
    return re.search(rf"^`{command}`: (.*?)(?=^`[\w-]+`: |^## )", GUIDE, re.MULTILINE | re.DOTALL)[1]


def keys_of(value) -> set[str]:
    if isinstance(value, list):
        return set().union(*map(keys_of, value))
    return (
        set(value) | keys_of([v for v in value.values() if isinstance(v, list)]) if isinstance(value, dict) else set()
    )


def test_every_command_and_option_is_in_the_guide():
    command = typer.main.get_command(app)
    for parameter in command.params:
        assert f"`{parameter.opts[0]}" in GUIDE or parameter.name == "help", parameter.opts
    for name, sub in command.commands.items():
        (row,) = [line for line in GUIDE.splitlines() if re.match(rf"\| `{name}[ `]", line)]
        for parameter in sub.params:
            option = parameter.opts[0]
            assert not option.startswith("--") or option in row or option == "--help", (name, option)


def test_every_environment_variable_is_in_the_guide():
    source = "\n".join(path.read_text(encoding="utf-8") for path in SOURCES.rglob("*.py"))
    for name in set(re.findall(r"\bTZREC_[A-Z_]+\b", source)):
        assert f"`{name}`" in GUIDE, name


@pytest.mark.parametrize(
    "arguments",
    [
        ["list-models", "--json"],
        ["list-plugins", "--json"],
        ["show-model", "tiny", "--json"],
        ["validate", "CONFIG", "--json"],
        ["train", "CONFIG", "--json"],
        ["eval", "CONFIG", "--json"],
        ["predict", "CONFIG", "--input", "EVAL", "--output", "OUT", "--json"],
    ],
)
def test_every_json_key_is_in_the_guide(tiny, config_file, tmp_path, arguments):
    files = {"CONFIG": str(config_file), "EVAL": str(tmp_path / "eval.parquet"), "OUT": str(tmp_path / "out.parquet")}
    if arguments[0] in ("eval", "predict"):
        tiny("train", str(config_file))
    shown = tiny(*[files.get(argument, argument) for argument in arguments]).json
    said = section(arguments[0])
    if "as in `list-models`" in said:
        said += section("list-models")
    for key in keys_of(shown):
        assert f"`{key}`" in said, key


def test_every_json_key_of_doctor_is_in_the_guide(tiny, monkeypatch):
    import importlib

    monkeypatch.setattr(importlib.import_module("tzrec_core.cli.doctor"), "_PROBES", {})
    for key in keys_of(tiny("doctor", "--json").json):
        assert f"`{key}`" in section("doctor"), key


def test_files_of_a_run_are_in_the_guide(tiny, config_file, tmp_path):
    tiny("train", str(config_file), "--set", "train_config.use_tensorboard=true")
    tiny("eval", str(config_file))
    for path in (tmp_path / "run").iterdir():
        assert path.name.replace("ckpt-5", "ckpt-<step>") in GUIDE, path
