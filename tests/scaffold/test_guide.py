"""The blocks of the guide `write_a_plugin` work as they stand there."""

import re
import shlex
import sys
import types
from pathlib import Path

from tzrec_core.cli.app import _core_commands
from tzrec_core.config.comments import field_comments
from tzrec_core.config.dataclass_message import message_from_dataclass
from tzrec_core.models import BaseModel
from tzrec_core.plugins import LossSpec, ModelSpec
from tzrec_core.scaffold import TASKS, PluginNames, plugin_files
from tzrec_core.testing import PluginConformance

GUIDES = Path(__file__).parents[2] / "registry_docs/guides"
GUIDE = (GUIDES / "write_a_plugin.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)


def names_of(word):
    """What the one block that holds `word` defines."""
    (block,) = [block for block in BLOCKS if word in block]
    names = {"__name__": "guide"}
    exec(block, names)
    return names


def test_every_block_runs():
    for block in BLOCKS:
        exec(block, {"__name__": "guide"})


def test_the_model_is_a_model():
    assert issubclass(names_of("class Din(RankModel)")["Din"], BaseModel)


def test_the_dataclass_can_be_settings_and_all_its_fields_are_documented(monkeypatch):
    module = types.ModuleType("guide")  # where the annotations of its dataclasses are looked up
    module.__dict__.update(names_of("class Attention"))
    monkeypatch.setitem(sys.modules, "guide", module)
    descriptor = message_from_dataclass(module.Din).DESCRIPTOR
    assert [field.name for field in descriptor.fields] == ["hidden_units", "attention", "pooling"]
    assert set(field_comments(descriptor)) == {"hidden_units", "attention", "pooling"}


def test_the_manifest_offers_a_model_and_a_loss():
    model, loss = names_of("def tzrec_specs")["tzrec_specs"]()
    assert (type(model), type(loss)) == (ModelSpec, LossSpec)
    assert model.problems() == loss.problems() == []


def test_the_test_class_has_no_attribute_that_the_kit_does_not_know():
    found = names_of("class TestPlugin")["TestPlugin"]
    assert issubclass(found, PluginConformance)
    own = {name for name in vars(found) if not name.startswith("__")}
    assert own <= set(PluginConformance.__annotations__)


def test_the_table_of_files_is_what_new_plugin_writes():
    rows = re.findall(r"^\| (`[\w./]+`.*?) \|", GUIDE, re.MULTILINE)
    told = {name for row in rows for name in re.findall(r"`([\w./]+)`", row)}
    told |= {f"tzrec_din/{name}" for name in told if name.startswith("config_pb2")}
    written = set()
    for dataclass in (False, True):
        written |= set(plugin_files(PluginNames.of("din"), task=TASKS[0], dataclass=dataclass, standalone=False))
    assert written - {"tzrec_din/__init__.py", "tzrec_din/config.py"} <= told


def test_every_command_that_is_told_exists():
    prose = re.sub(r"^```.*?^```$", "", GUIDE, flags=re.MULTILINE | re.DOTALL)
    told = [shlex.split(line) for line in re.findall(r"^    (.*)$", prose, re.MULTILINE)]
    assert len(told) == 5
    for program, command, *_ in told:
        assert program == "pip" or command in _core_commands(), command


def test_links_to_files_of_the_repository_are_not_dead():
    for target in re.findall(r"\]\(([\w./]+)\)", GUIDE):
        assert (GUIDES / target).is_file(), target
