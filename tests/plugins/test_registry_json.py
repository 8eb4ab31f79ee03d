import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def script(monkeypatch):
    spec = importlib.util.spec_from_file_location("registry_json", ROOT / "scripts" / "registry_json.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", ["registry_json.py", "--check"])
    return module


def test_the_shipped_registry_is_what_the_manifests_say(script):
    assert script.REGISTRY.read_text() == script.registry_text(), "run `python scripts/registry_json.py`"


def test_every_official_plugin_is_in_it():
    models = json.loads((ROOT / "tzrec_core" / "plugins" / "registry.json").read_text())["models"]
    assert {entry["package"] for entry in models.values()} == {
        folder.name for folder in (ROOT / "plugins").glob("tzrec-*")
    }
    assert all(entry.keys() >= {"package", "task", "summary"} for entry in models.values())


def test_check_refuses_a_stale_file_and_does_not_touch_it(script, tmp_path, monkeypatch):
    stale = tmp_path / "registry.json"
    stale.write_text("{}")
    monkeypatch.setattr(script, "REGISTRY", stale)
    monkeypatch.setattr(script, "ROOT", tmp_path)
    monkeypatch.setattr(script, "registry_text", lambda: '{"models": {}}\n')
    with pytest.raises(SystemExit, match=r"stale: registry\.json"):
        script.main()
    assert stale.read_text() == "{}"


def test_an_alias_is_in_it_under_its_own_name(script, monkeypatch):
    from tzrec_core.plugins import ModelSpec

    class Manifest:
        @staticmethod
        def tzrec_specs():
            return [ModelSpec("new", "a:B", "a:B", summary="s", aliases=("nick",))]

    monkeypatch.setattr(script, "manifests", lambda: [("tzrec-new", Manifest)])
    models = json.loads(script.registry_text())["models"]
    assert models["new"] == {"package": "tzrec-new", "task": "rank", "summary": "s"}
    assert models["nick"] == {**models["new"], "alias_of": "new"}
