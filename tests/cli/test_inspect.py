from functools import partial

import pytest
import tiny_data
from rich.console import Console

from tzrec_core.cli import output


@pytest.fixture
def narrow(monkeypatch):
    """A terminal of 100 columns."""
    monkeypatch.setattr(output, "Console", partial(Console, width=100, force_terminal=True, color_system=None))


# list-models


def test_models_are_listed_with_task_plugin_and_summary(tiny, narrow):
    result = tiny("list-models")
    assert (result.code, result.err) == (0, "")
    head, rule, row = [line for line in result.out.splitlines() if "tiny.py" not in line or "tiny " in line][:3]
    assert head.split() == ["name", "task", "plugin", "summary"]
    assert set(rule) == {"─"}
    assert row.startswith("tiny   rank")
    assert "One hidden layer over" in result.out


def test_models_as_json(tiny):
    assert tiny("list-models", "--json").json == [
        {
            "name": "tiny",
            "task": "rank",
            "summary": "One hidden layer over embeddings.",
            "paper": "",
            "plugin": tiny_data.MANIFEST,
            "version": "",
            "aliases": [],
            "traits": [],
        }
    ]


def test_models_of_one_task(tiny):
    assert [row["name"] for row in tiny("list-models", "--task", "rank", "--json").json] == ["tiny"]
    assert tiny("list-models", "--task", "match", "--json").json == []
    assert "No model of task match is installed" in tiny("list-models", "--task", "match").out
    result = tiny("list-models", "--task", "rnak")
    assert result.code == 2
    assert "--task 'rnak' is not one of rank, multitask, match" in result.err
    assert "Did you mean 'rank'?" in result.err


def test_without_models_the_way_to_one_is_shown(tzrec):
    result = tzrec("list-models")
    assert result.code == 0
    assert "No models are installed. Install one, for instance: pip install tzrec-deepfm" in result.out


def test_a_name_that_two_plugins_offer_is_listed_qualified(tzrec, installed_plugins, monkeypatch):
    monkeypatch.syspath_prepend(str(installed_plugins))
    result = tzrec("list-models", "--json", only="tzrec-clash-one,tzrec-clash-two")
    found = [row["name"] for row in result.json]
    assert {"tzrec-clash-one:clash", "tzrec-clash-two:clash"} <= set(found)


# list-plugins


def test_plugins_are_listed_with_what_they_offer(tiny, narrow):
    result = tiny("list-plugins")
    assert result.out.splitlines()[0].split() == ["name", "plugin", "state", "offers"]
    assert "model tiny" in result.out
    assert "5 losses; 12 metrics" in result.out


def test_a_broken_plugin_is_told_below_the_table(tzrec, narrow, tmp_path):
    path = tmp_path / "bad.py"
    path.write_text("import nowhere_to_be_found")
    result = tzrec("--plugin", str(path), "list-plugins")
    assert result.code == 0
    assert "broken" in result.out
    assert "is broken: ModuleNotFoundError: No module named" in " ".join(result.out.split())


def test_plugins_as_json(tiny):
    row = next(row for row in tiny("list-plugins", "--json").json if row["name"] == "tiny")
    assert row == {
        "name": "tiny",
        "distribution": tiny_data.MANIFEST,
        "version": "",
        "module": tiny_data.MANIFEST,
        "requires_core": "",
        "state": "ok",
        "reason": "",
        "notes": [],
        "offers": [{"kind": "model", "name": "tiny"}],
    }


# show-model


def test_a_model_is_shown_with_groups_fields_and_meanings_on_100_columns(tiny, narrow):
    result = tiny("show-model", "tiny")
    assert (result.code, result.err) == (0, "")
    assert max(map(len, result.out.splitlines())) <= 100
    assert result.out.startswith("tiny: One hidden layer over embeddings.\ntask rank; from ")
    rows = [line.split() for line in result.out.splitlines()]
    assert ["deep", "DEEP", "yes"] in rows
    assert ["hidden", "int", "8", "Width", "of", "the", "hidden", "layer."] in rows
    assert ["dropout", "float", "0"] in rows
    assert ["first", "Part", "unset"] in rows


def test_a_message_that_two_fields_hold_is_shown_once(tiny):
    out = tiny("show-model", "tiny").out
    assert out.count("Part { ... }") == out.count("Width of a part.") == 1


def test_a_model_as_json_has_every_field_by_its_path(tiny):
    shown = tiny("show-model", "tiny", "--json").json
    fields = {row["field"]: row for row in shown.pop("fields")}
    assert fields["first.width"] == {
        "field": "first.width",
        "type": "int",
        "default": "4",
        "meaning": "Width of a part.",
    }
    assert set(fields) == {
        "hidden", "dropout", "unused_layer", "first", "first.width", "second", "second.width",
    }  # fmt: skip
    assert shown["groups"] == [{"name": "deep", "from_field": "", "types": ["DEEP"], "required": True}]
    assert (shown["target"], shown["example"]) == ("tiny_model:Tiny", "")


def test_an_unknown_model_names_the_nearest_one(tiny):
    result = tiny("show-model", "tiyn")
    assert (result.code, result.out) == (2, "")
    assert "Did you mean 'tiny'?" in result.err


def test_a_model_that_is_not_installed_names_its_package(tiny):
    result = tiny("show-model", "deepfm")
    assert result.code == 3
    assert "deepfm" in result.err


# validate


def test_a_valid_config_is_summed_up(tiny, config_file):
    result = tiny("validate", str(config_file))
    assert result.code == 0
    assert "tiny.config is valid: tiny of " in result.out
    assert "tiny.py, 3 features in groups deep" in result.out
    shown = tiny("validate", str(config_file), "--json").json
    assert shown == {"ok": True, "problems": [], "model": "tiny", "num_features": 3}


def test_a_check_notes_what_is_wrong_with_plugins_as_a_run_does(tiny, config_file, tmp_path):
    (tmp_path / "bad.py").write_text("import nowhere_to_be_found")
    result = tiny("--plugin", str(tmp_path / "bad.py"), "validate", str(config_file), "--json")
    assert result.json["ok"]
    assert "bad.py is broken: ModuleNotFoundError" in result.err


def test_all_mistakes_come_at_once(tiny, config_file):
    changes = ["--set", "model_config.feature_groups[0].feature_names=[usr, item]", "--set", "nothing.here=1"]
    result = tiny("validate", str(config_file), *changes)
    assert (result.code, result.out) == (2, "")
    assert "'usr' is not a feature" in result.err
    assert "nothing.here=1" in result.err
    shown = tiny("validate", str(config_file), *changes, "--json")
    assert shown.code == 2
    assert (shown.json["ok"], len(shown.json["problems"])) == (False, 2)


def test_a_config_that_is_not_there_names_the_nearest_file(tiny, config_file):
    result = tiny("validate", str(config_file.with_name("tiny.confg")))
    assert result.code == 2
    assert "does not exist. Did you mean 'tiny.config'?" in result.err
