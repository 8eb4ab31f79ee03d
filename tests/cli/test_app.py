import signal

import pytest
import tiny_data
import typer

from tzrec_core.cli import inspect, launch, run
from tzrec_core.cli.app import app
from tzrec_core.errors import CheckpointError, ConfigError, DataError, PluginError

MANIFEST = """
from tzrec_core.plugins import hookimpl

@hookimpl
def tzrec_commands(app):
    {body}
"""


def write_manifest(folder, name: str, body: str) -> str:
    path = folder / f"{name}.py"
    path.write_text(MANIFEST.format(body=body))
    return str(path)


# Usage


def test_without_arguments_the_commands_are_listed(tzrec):
    result = tzrec()
    assert result.code == 2
    for command in app.registered_commands:
        assert command.name in result.out + result.err


def test_the_version_is_that_of_the_core(tzrec):
    assert tzrec("--version").out == "tzrec-core 0.1.0\n"


def test_a_misspelt_command_is_a_usage_error_that_names_the_nearest(tzrec):
    result = tzrec("lst-models")
    assert (result.code, result.out) == (2, "")
    assert "No such command 'lst-models'" in result.err
    assert "list-models" in result.err


def test_a_misspelt_option_is_a_usage_error_that_names_the_nearest(tzrec):
    result = tzrec("list-models", "--tsk", "rank")
    assert result.code == 2
    assert "--task" in result.err


# Errors


@pytest.mark.parametrize("error", [CheckpointError, ConfigError, DataError, PluginError])
def test_an_error_is_its_words_on_standard_error_and_an_exit_code(tzrec, monkeypatch, error):
    monkeypatch.setattr(inspect, "registry", lambda: raise_(error("what, where and [bold]the fix[/bold]")))
    code = {CheckpointError: 1, ConfigError: 2, DataError: 2, PluginError: 3}[error]
    result = tzrec("list-models")
    assert result == type(result)(code, "", "error: what, where and [bold]the fix[/bold]\n")
    for arguments in (("--debug", "list-models"), ("list-models", "--debug")):
        shown = tzrec(*arguments)
        assert (shown.code, shown.out) == (code, "")
        assert "Traceback (most recent call last)" in shown.err
        assert shown.err.endswith("error: what, where and [bold]the fix[/bold]\n")


def raise_(error):
    raise error


def test_an_interrupted_command_exits_with_130(tiny, monkeypatch, config_file):
    monkeypatch.setattr(run, "print_plugin_problems", lambda: raise_(KeyboardInterrupt()))
    assert tiny("train", str(config_file)).code == 130


def test_a_bug_of_ours_keeps_its_traceback(tzrec, monkeypatch):
    monkeypatch.setattr(inspect, "registry", lambda: raise_(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        tzrec("list-models")


# Plugins


def names(result) -> list[str]:
    return [row["name"] for row in result.json]


def test_a_manifest_is_used_wherever_its_option_stands(tzrec, monkeypatch):
    monkeypatch.chdir(tiny_data.MANIFEST.rpartition("/")[0])
    for arguments in (
        ("--plugin", "./tiny.py", "list-models", "--json"),
        ("--plugin=tiny.py", "list-models", "--json"),
        ("list-models", "--json", "--plugin", tiny_data.MANIFEST),
    ):
        assert names(tzrec(*arguments)) == ["tiny"]


def test_several_manifests_can_be_used(tzrec, tmp_path):
    other = write_manifest(tmp_path, "other", "pass")
    found = tzrec("--plugin", tiny_data.MANIFEST, f"--plugin={other}", "list-plugins", "--json").json
    assert {row["name"]: row["state"] for row in found if row["name"] in ("tiny", "other")} == {
        "tiny": "ok",
        "other": "ok",
    }


def test_an_option_without_its_manifest_is_a_usage_error(tzrec):
    result = tzrec("list-models", "--plugin")
    assert (result.code, result.out) == (2, "")
    assert "--plugin needs the path of a manifest, such as ./plugin.py" in result.err


@pytest.mark.parametrize(
    "command", [["list-models"], ["list-plugins"], ["show-model", "tiny"], ["validate", "CONFIG"], ["train", "CONFIG"]]
)
def test_a_manifest_that_is_not_there_stops_every_command_that_uses_plugins(tzrec, config_file, command):
    result = tzrec("--plugin", "nowhere.py", *(str(config_file) if word == "CONFIG" else word for word in command))
    assert (result.code, result.out) == (3, "")
    assert result.err.startswith("error: --plugin ")
    assert "nowhere.py: there is no such file" in result.err


def test_no_plugins_wins_over_the_environment(tzrec, installed_plugins, monkeypatch):
    monkeypatch.syspath_prepend(str(installed_plugins))
    assert [r["state"] for r in tzrec("list-plugins", "--json", only="plain").json if r["name"] == "plain"] == ["ok"]
    shown = tzrec("--no-plugins", "list-plugins", "--json", only="plain").json
    assert {row["state"] for row in shown if row["name"] != "core"} == {"disabled"}


def test_a_strict_run_does_not_mind_disabled_plugins(tzrec):
    assert tzrec("list-models", "--strict-plugins").code == 0


def test_a_name_in_the_environment_that_no_plugin_has_is_said(tzrec):
    result = tzrec("list-models", only="nobody")
    assert (result.code, result.err) == (0, "note: TZREC_PLUGINS names 'nobody', which is not installed.\n")


# Commands of plugins


def test_a_plugins_commands_are_mounted_under_its_name(tiny):
    assert tiny("tiny", "hello", "you").out == "hello you\n"
    assert tiny("tiny", "bye").out == "bye\n"
    assert "tiny" in tiny("--help").out
    assert tiny("tiny", "helo").code == 2


def test_options_behind_a_plugins_command_are_the_plugins(tzrec, tmp_path):
    path = write_manifest(tmp_path, "own", "@app.command()\n    def say(debug: bool = False): print(debug)")
    assert tzrec("--plugin", path, "own", "say", "--debug").out == "True\n"


def test_names_of_the_core_cannot_be_taken(tzrec, tmp_path):
    path = write_manifest(tmp_path, "train", "@app.command()\n    def hello(): print('mine')")
    assert "mine" not in tzrec("--plugin", path, "train", "hello").out
    tzrec("--plugin", path)
    shown = tzrec("--plugin", path, "--help")
    assert "Train a model" in shown.out
    assert "Commands of" not in shown.out


@pytest.mark.parametrize(
    "body",
    ["raise SystemExit('no')", "1 / 0", "pass", "@app.command()\n    def bad(x: object()): pass"],
)
def test_a_plugin_whose_commands_cannot_be_mounted_takes_no_other_down(tzrec, tmp_path, body):
    path = write_manifest(tmp_path, "bad", body)
    result = tzrec("--plugin", tiny_data.MANIFEST, "--plugin", path, "tiny", "bye")
    assert (result.code, result.out) == (0, "bye\n")
    assert tzrec("--plugin", path, "bad", "x").code == 2


@pytest.mark.parametrize(
    ("error", "local_rank", "is_shared", "is_said"),
    [
        (DataError, 1, False, True),
        (DataError, 1, True, False),
        (ConfigError, 1, False, False),  # process 0 of the machine says the same
        (ConfigError, 0, False, True),
        (PluginError, 0, True, False),
    ],
)
def test_of_several_processes_each_tells_what_the_first_cannot_know(
    tzrec, monkeypatch, error, local_rank, is_shared, is_said
):
    failure = error("what is wrong")
    failure.is_shared = is_shared
    monkeypatch.setattr(inspect, "registry", lambda: raise_(failure))
    for name, value in {"RANK": 3, "LOCAL_RANK": local_rank, "WORLD_SIZE": 4}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr("os._exit", lambda code: raise_(SystemExit(code)))
    assert ("error (process 3): what is wrong" in tzrec("list-models").err) is is_said


@pytest.mark.parametrize(("num_ended_well", "code"), [(2, 0), (1, 143), (0, 143)])
def test_a_launcher_that_was_told_to_stop_ends_well_if_all_its_processes_did(monkeypatch, num_ended_well, code):
    import torch.distributed.launcher.api as api
    from torch.distributed.elastic.multiprocessing.api import SignalException

    def stopped(*command):
        for rank in range(num_ended_well):
            monkeypatch.setenv("RANK", str(rank))
            launch.note_end(0)
        monkeypatch.setenv("RANK", "9")
        launch.note_end(1)
        raise SignalException("told to stop", signal.SIGTERM)

    monkeypatch.setattr(api, "elastic_launch", lambda config, entry: stopped)
    monkeypatch.setenv("TZREC_LAUNCH_FOLDER", "")
    if code:
        with pytest.raises(typer.Exit) as ended:
            launch.relaunched(2)
        assert ended.value.exit_code == code
    else:
        assert launch.relaunched(2)
