"""The guide to specs and hooks: its plugin works as it stands there, and it tells of every field of every spec."""

import dataclasses
import json
import re
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from typer.testing import CliRunner

from tzrec_core import api
from tzrec_core.cli.app import _core_commands, _split
from tzrec_core.config import used_plugins
from tzrec_core.plugins import ModelSpec, Registry, Selection, Spec, use_registry
from tzrec_core.plugins.spec import KINDS

GUIDE = (Path(__file__).resolve().parents[1] / "registry_docs/guides/specs_and_hooks.md").read_text(encoding="utf-8")
SHARED = {field.name for field in dataclasses.fields(Spec)} | {"summary"}
QUICK = ["data_config.num_workers=0", "train_config.use_tensorboard=false"]

_FIELD = re.compile(r"(optional|required) (\w+) (\w+) = (\d+)(?: \[default = (\w+)\])?;")


def blocks(language):
    found = re.findall(r"^```(\w*)\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
    return [body for name, body in found if name == language]


def section(head):
    return re.search(rf"^## {head}\n(.*?)(?=^## |\Z)", GUIDE, re.MULTILINE | re.DOTALL)[1]


def snippets():
    """The pieces of a config, and the config that they are pieces of."""
    *pieces, whole = blocks("")
    assert whole.startswith("train_input_path")
    return pieces, whole


def generated(proto):
    """What `tzrec protoc` would write, for the few things that the guide's file has; protoc itself is not installed."""
    file = FileDescriptorProto(
        name="extras/config.proto", syntax="proto2", package=re.search(r"package (\w+);", proto)[1]
    )
    for name, body in re.findall(r"^message (\w+) \{(.*?)\}", proto, re.MULTILINE | re.DOTALL):
        message = file.message_type.add(name=name)
        for label, kind, field, number, default in _FIELD.findall(body):
            message.field.add(
                name=field,
                number=int(number),
                label=getattr(FieldDescriptorProto, f"LABEL_{label.upper()}"),
                type=getattr(FieldDescriptorProto, f"TYPE_{kind.upper()}"),
                default_value=default or None,
            )
    assert sum(len(message.field) for message in file.message_type) == len(re.findall(r"= \d+\b.*;", proto))
    return (
        "from google.protobuf import descriptor_pool\n"
        "from google.protobuf.internal import builder\n"
        f"DESCRIPTOR = descriptor_pool.Default().AddSerializedFile({file.SerializeToString()!r})\n"
        "builder.BuildMessageAndEnumDescriptors(DESCRIPTOR, globals())\n"
        "builder.BuildTopDescriptorsAndMessages(DESCRIPTOR, 'extras.config_pb2', globals())\n"
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of somebody who follows the guide, with a table of JSON lines."""
    path = tmp_path_factory.mktemp("guide")
    (path / "extras").mkdir()
    (path / "extras/__init__.py").touch()
    for body in blocks("python"):
        name = re.match(r"# ([\w/]+\.py)\n", body)[1]
        (path / name).write_text(body, encoding="utf-8")
    (proto,) = blocks("proto")
    (path / "extras/config_pb2.py").write_text(generated(proto), encoding="utf-8")
    (path / "extras.config").write_text(snippets()[1], encoding="utf-8")
    rng = np.random.default_rng(0)
    for name, num_rows in (("train", 40), ("eval", 24)):
        rows = [
            {
                "user": int(rng.integers(20)),
                "title": "x" * int(rng.integers(30)),
                "clicks": rng.integers(0, 20, rng.integers(1, 5)).tolist(),
                "click": int(rng.integers(2)),
            }
            for _ in range(num_rows)
        ]
        (path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def _plugins(folder):
    before_path, before_modules = [*sys.path], set(sys.modules)
    with use_registry(Registry.find(Selection(files=(str(folder / "my_extras.py"),)))) as found:
        yield found
    sys.path[:] = before_path
    for name in set(sys.modules) - before_modules:
        if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(folder)):
            del sys.modules[name]


@pytest.fixture
def extras(_plugins, folder, monkeypatch):
    monkeypatch.chdir(folder)
    return _plugins


def test_the_plugin_offers_one_of_each_kind_but_a_model(extras):
    (mine,) = [plugin for plugin in extras.plugins if plugin.name == "my_extras"]
    assert not extras.problems()
    assert {type(spec) for spec in mine.specs} == {*KINDS} - {ModelSpec}


def test_the_config_trains_with_all_of_it(extras, folder):
    result = api.train("extras.config", overrides=[*QUICK, f"model_dir={folder / 'trained'}"])
    assert result.step == 2 * 3  # 40 rows in batches of 16
    assert set(result.metrics) >= {"auc", "brier", "weighted_cross_entropy"}
    assert 0 < result.metrics["brier"] < 1
    assert list(used_plugins(api.as_config("extras.config"))) == [str(folder / "my_extras.py"), "tzrec-wide-and-deep"]


def test_the_time_limit_ends_a_run(extras, folder):
    overrides = [*QUICK, f"model_dir={folder / 'limited'}"]
    text = snippets()[1].replace("seconds: 3600", "seconds: 0")
    result = api.train(text, overrides=overrides)
    assert (result.step, result.stopped) == (1, "the 0 seconds are over")


def test_the_loss_weighs_positive_rows(extras):
    from extras.loss import WeightedCrossEntropy

    rows = WeightedCrossEntropy(2.0, reduction="none")(torch.zeros(2), torch.tensor([1, 0]))
    torch.testing.assert_close(rows, torch.tensor([2.0, 1.0]) * np.log(2).astype(np.float32).item())


def test_the_encoder_takes_the_mean_of_the_last_steps(extras):
    from extras.encoder import LastSteps

    steps_BTD = torch.tensor([[[1.0], [2.0], [4.0]], [[5.0], [0.0], [0.0]], [[0.0], [0.0], [0.0]]])
    given = {"c.sequence": steps_BTD, "c.sequence_length": torch.tensor([3, 1, 0])}
    assert LastSteps(1, 0, "c", steps=2)(given).tolist() == [[3.0], [5.0], [0.0]]


def test_the_command_prints_the_share_of_positive_rows(extras, folder):
    import typer

    pq.write_table(pa.table({"click": [1, 0, 0, 0]}), folder / "train.parquet")
    (mine,) = [plugin for plugin in extras.plugins if plugin.name == "my_extras"]
    app = typer.Typer()
    app.callback()(lambda: None)
    mine.manifest.tzrec_commands(app=app)
    result = CliRunner().invoke(app, ["positives", "train.parquet", "click"])
    assert (result.exit_code, result.output) == (0, "25.00%\n")


def test_every_snippet_stands_in_the_config():
    pieces, whole = snippets()
    assert len(pieces) == len(KINDS) - 1
    for piece in pieces:
        assert "\n".join(line.strip() for line in piece.splitlines()) in "\n".join(
            line.strip() for line in whole.splitlines()
        )


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind is not ModelSpec], ids=lambda kind: kind.__name__)
def test_every_field_of_every_spec_is_told(kind):
    said = section(kind.__name__)
    for field in dataclasses.fields(kind):
        told = section("The manifest") if field.name in SHARED else said
        assert f"- `{field.name}`: " in told, field.name


def test_every_command_that_is_told_exists():
    told = re.findall(r"^    tzrec (.*)$", GUIDE, re.MULTILINE)
    assert told
    for line in told:
        options, rest = _split(line.split())
        assert options in ([], ["--plugin", "./my_extras.py"])
        assert rest[0] in {*_core_commands(), "my_extras"}
