"""The command line starts fast because it imports little; how fast is measured in benchmarks/cli_start.py."""

import importlib.util
import json
from pathlib import Path

import pytest
import tiny_data

BENCHMARK = Path(__file__).parents[2] / "benchmarks/cli_start.py"


@pytest.fixture(scope="module")
def cli_start():
    spec = importlib.util.spec_from_file_location("cli_start", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("command", [["list-models", "--json"], ["list-plugins", "--json"], ["--help"]])
def test_commands_that_look_load_no_heavy_library_with_30_plugins(cli_start, tmp_path, command):
    cli_start.write_plugins(tmp_path, 30)
    printed, modules = cli_start.loaded_modules(command, cli_start.environment(tmp_path))
    assert "tzrec_fake_29" in modules
    assert modules & set(cli_start.HEAVY) == set()
    if command[0] == "list-models":
        assert {row["name"] for row in json.loads(printed)} >= {f"fake_{number}" for number in range(30)}


def test_a_config_is_checked_without_a_heavy_library(cli_start, tmp_path, config_file):
    command = ["--plugin", tiny_data.MANIFEST, "validate", str(config_file), "--json"]
    printed, modules = cli_start.loaded_modules(command, cli_start.environment(tmp_path))
    assert json.loads(printed)["ok"] is True
    assert modules & set(cli_start.HEAVY) == set()
