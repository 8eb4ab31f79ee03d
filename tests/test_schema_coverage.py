"""Every field of TorchEasyRec's config schema works, is refused, or says what it waits for: schema_coverage.toml."""

import importlib
import json
import os
import re
import subprocess
import sys
import tomllib
from collections import deque
from functools import cache
from pathlib import Path

import pytest

from tzrec_core.config import find_mistakes, parse_config
from tzrec_core.config.unsupported import REFUSED
from tzrec_core.data import create_dataloader
from tzrec_core.errors import ConfigError
from tzrec_core.features import create_features
from tzrec_core.protos.feature_pb2 import FeatureConfig

TESTS = Path(__file__).resolve().parent
FIRST_OWN_NUMBER = 1000
SCHEMA = json.loads((TESTS / "goldens" / "config_schema.json").read_text())["messages"]
LEDGER = tomllib.loads((TESTS / "schema_coverage.toml").read_text())
OWN = LEDGER.pop("own")
MODEL = """
feature_configs { id_feature { feature_name: "item" expression: "item:item" num_buckets: 9 embedding_dim: 4 } }
data_config { dataset_type: ParquetDataset label_fields: "label" }
model_config {
  feature_groups { group_name: "wide" group_type: WIDE feature_names: "item" }
  feature_groups { group_name: "deep" group_type: DEEP feature_names: "item" }
  wide_and_deep { deep { hidden_units: 4 } }
  losses { binary_cross_entropy {} }
}
"""
# What a `later` must say if setting the field today is no mistake.
NOTHING_IS_LOST = ("FG_NORMAL of ", "training does not read it")


def entries(kind):
    """(message, field, text) of every entry of one kind, TorchEasyRec's fields and our own."""
    return [
        (message, field, entry[kind])
        for tables in (LEDGER, OWN)
        for message, fields in tables.items()
        for field, entry in fields.items()
        if kind in entry
    ]


# Every field stands there once


def own_fields():
    """The fields that only our .proto files have, by message; those of TorchEasyRec's messages have large numbers."""
    found = {}
    for file in (TESTS.parent / "tzrec_core" / "protos").glob("*_pb2.py"):
        module = importlib.import_module(f"tzrec_core.protos.{file.stem}")
        for name, message in module.DESCRIPTOR.message_types_by_name.items():
            known = {field["name"] for field in SCHEMA.get(name, {"fields": []})["fields"]}
            if own := [field.name for field in message.fields if field.name not in known]:
                numbers = [message.fields_by_name[field].number for field in own]
                assert name not in SCHEMA or min(numbers) >= FIRST_OWN_NUMBER, (name, own)
                found[name] = own
    return found


@pytest.mark.parametrize(
    ("ledger", "schema"),
    [
        pytest.param(LEDGER, {m: [f["name"] for f in facts["fields"]] for m, facts in SCHEMA.items()}, id="theirs"),
        pytest.param(OWN, own_fields(), id="ours"),
    ],
)
def test_every_field_is_accounted_for_and_no_other(ledger, schema):
    wanted = {(message, field) for message, fields in schema.items() for field in fields}
    whole = {message for message, fields in ledger.items() if list(fields) == ["*"]}
    assert whole <= set(schema), f"no such messages: {sorted(whole - set(schema))}"
    written = {(message, field) for message in ledger if message not in whole for field in ledger[message]}
    missing = sorted(pair for pair in wanted - written if pair[0] not in whole)
    assert not missing, f"schema_coverage.toml lacks {missing}"
    assert not written - wanted, f"schema_coverage.toml has fields that are not in the schema: {written - wanted}"


def test_every_entry_says_one_thing():
    for tables in (LEDGER, OWN):
        for message, fields in tables.items():
            for field, entry in fields.items():
                assert len(entry) == 1 and set(entry) <= {"works", "refused", "later"}, (message, field, entry)
                assert all(entry.values()), (message, field, entry)
                assert field != "*" or "later" in entry, f"{message}: only `later` can stand for all fields"


# Works


def test_every_field_that_works_is_set_by_a_test_that_fails_without_it(tmp_path):
    claims = {}
    for message, field, test in entries("works"):
        claims.setdefault(test, [""]).append(f"{message}.{field}")
    (tmp_path / "claims.json").write_text(json.dumps(claims))
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    env |= {
        "PYTHONPATH": str(TESTS),
        "TZREC_SCHEMA_CLAIMS": str(tmp_path / "claims.json"),
        "TZREC_SCHEMA_RECORD": str(tmp_path / "record.json"),
    }
    command = [sys.executable, "-m", "pytest", "-p", "schema_recorder", "-n", "0", "-q", "--no-header"]
    command += ["-p", "no:cacheprovider", "--disable-warnings", *claims]
    run = subprocess.run(command, cwd=TESTS.parent, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-2000:]
    record = json.loads((tmp_path / "record.json").read_text())
    unset = [
        (test, name)
        for test, names in claims.items()
        for name in names
        if name and name not in record["set"].get(test, [])
    ]
    assert not unset, f"these tests do not set the field to anything but its default: {unset}"
    unmoved = {tuple(pair) for pair in record["unmoved"]}
    brittle = {(test, "") for test in claims} - unmoved
    assert not brittle, f"these tests fail in a second run though nothing was taken out: {brittle}"
    unmoved = {(test, name) for test, name in unmoved if name and name not in SAYS_THE_DEFAULT}
    assert not unmoved, f"these tests also pass without the field, so they do not show what it does: {unmoved}"


# Fields whose presence says what their absence means too. Without enable_global_grad_clip each process would count the
# parameters that it holds: that is all of them, for no dense parameter is split.
SAYS_THE_DEFAULT = (
    "SparseOptimizer.constant_learning_rate",
    "DenseOptimizer.constant_learning_rate",
    "PartOptimizer.constant_learning_rate",
    "GradClipping.enable_global_grad_clip",
)


# Refused


@cache
def paths():
    """The shortest way from the config's root to every message that the installed schema has."""
    root = parse_config("", partial=True).DESCRIPTOR
    found, queue = {root.name: ()}, deque([root])
    while queue:
        message = queue.popleft()
        for field in message.fields:
            inner = field.message_type
            if inner is not None and not inner.GetOptions().map_entry and inner.name not in found:
                found[inner.name] = (*found[message.name], field)
                queue.append(inner)
    return found


def message_called(name):
    if name == "EasyRecConfig":
        return parse_config("", partial=True).DESCRIPTOR
    return paths()[name][-1].message_type


def value_text(field):
    """The field with a value that is not its default."""
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        value = value_text(field.message_type.fields_by_name["value"])
        return f'{field.name} {{ key: "x" {value} }}'
    if field.message_type is not None:
        return f"{field.name} {{}}"
    if field.enum_type is not None:
        value = next(v.name for v in field.enum_type.values if v.number != field.default_value)
        return f"{field.name}: {value}"
    if field.cpp_type == field.CPPTYPE_STRING:
        return f'{field.name}: "x"'
    if field.cpp_type == field.CPPTYPE_BOOL:
        return f"{field.name}: {str(not field.default_value).lower()}"
    return f"{field.name}: {1 if field.is_repeated else field.default_value + 1}"


def smallest_config(message, setting):
    """A config with nothing but the way to a message, and a setting in it."""
    text = setting
    for field in reversed(paths()[message]):
        kind = "dataset_type: ParquetDataset" if field.name == "data_config" else ""
        text = f"{field.name} {{ {kind} {text} }}"
    return parse_config(text, partial=True)


def refusals(config):
    """What the config is refused with, by its checks and by what reads it."""
    found = set(find_mistakes(config, partial=True))
    for read in (
        lambda: create_features(config.feature_configs, config.data_config),
        lambda: create_dataloader(config.data_config, [], "nowhere"),
    ):
        try:
            read()
        except ConfigError as error:
            found.update(error.problems)
        except Exception:  # an incomplete config may fail in any way
            continue
    return found


@pytest.mark.parametrize(
    ("message", "field", "words"), [pytest.param(*e, id=f"{e[0]}.{e[1]}") for e in entries("refused")]
)
def test_every_field_that_is_refused_is_refused_in_these_words(message, field, words):
    setting = value_text(message_called(message).fields_by_name[field])
    refused = refusals(smallest_config(message, setting)) - refusals(smallest_config(message, ""))
    assert any(words in text for text in refused), f"{setting} gives {sorted(refused)}"


def test_nothing_that_the_checks_refuse_is_said_to_work():
    known = {(message, field) for message, field, _ in [*entries("refused"), *fields_that_wait()]}
    for key in REFUSED:
        name, _, value = key.partition("=")
        message, _, field = name.partition(".")
        has_field = message not in SCHEMA or any(f["name"] == field for f in SCHEMA[message]["fields"])
        assert value or not has_field or (message, field) in known, f"{key} is refused, but works in the ledger"


# Later


def fields_that_wait():
    """(message, field, text), with every field of a message that waits as a whole."""
    for message, field, text in entries("later"):
        for name in [f["name"] for f in SCHEMA[message]["fields"]] if field == "*" else [field]:
            yield message, name, text


def messages_of(name, found):
    """The message and all that its fields lead to."""
    if name not in found:
        found.add(name)
        for field in SCHEMA[name]["fields"]:
            if field.get("message") in SCHEMA:
                messages_of(field["message"], found)
    return found


def test_what_waits_for_a_model_names_the_models_that_use_it():
    fields = {f["name"]: f.get("message") for f in SCHEMA["ModelConfig"]["fields"]}
    uses = {name: messages_of(fields[name], set()) for name in fields if fields[name] in SCHEMA}
    for message, field, text in entries("later"):
        if "that offer" not in text:
            continue
        named = {word for word in re.findall(r"\w+", text.partition("model")[2]) if word in uses}
        if message == "ModelConfig":
            right = {field}
        else:
            right = {name for name, messages in uses.items() if message in messages}
        assert named == right or (named < right and text.endswith(" and others")), (message, field, text, right)


def test_no_field_that_waits_is_silently_ignored():
    whole = parse_config(MODEL, partial=True)
    assert find_mistakes(whole, partial=True) == []
    ignored = []
    for message, name, text in fields_that_wait():
        if message not in paths() or any(words in text for words in NOTHING_IS_LOST):
            continue
        field = message_called(message).fields_by_name.get(name)
        if field is None:  # a model that is not installed
            continue
        config = type(whole)()
        config.CopyFrom(whole)
        config.MergeFrom(smallest_config(message, value_text(field)))
        if not find_mistakes(config, partial=True):
            ignored.append((f"{message}.{name}", text))
    assert not ignored, f"these can be set, do nothing, and do not say why nothing is lost: {ignored}"


@pytest.mark.parametrize("kind", FeatureConfig.DESCRIPTOR.fields_by_name)
def test_fg_normal_of_a_type_that_waits_for_it_is_refused(kind):
    waiting = {text.split()[2].rstrip(";,") for *_, text in entries("later") if text.startswith("FG_NORMAL of ")}
    if kind not in waiting:
        return
    text = f"data_config {{ fg_mode: FG_NORMAL }} feature_configs {{ {kind} {{}} }}"
    assert any(
        f"FG_NORMAL of {kind} is not supported yet" in line for line in refusals(parse_config(text, partial=True))
    )
