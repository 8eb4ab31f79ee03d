import sys
from pathlib import Path

import pytest
from google.protobuf.any_pb2 import Any

from tzrec_core.config import parse_config
from tzrec_core.config.assemble import assembled, config_class
from tzrec_core.config.comments import field_comments, message_comment, scan
from tzrec_core.plugins import ModelSpec, registry
from tzrec_core.protos import data_pb2, loss_pb2, module_pb2, train_pb2


def descriptor_of(model):
    return config_class(registry().get(ModelSpec, model)).DESCRIPTOR


def test_the_cores_comments_are_shipped():
    assert message_comment(module_pb2.B2ICapsule.DESCRIPTOR)
    comments = field_comments(loss_pb2.JRCLoss.DESCRIPTOR)
    assert set(comments) == {"session_name", "alpha"}
    assert comments["alpha"].startswith("Share of the cross entropy in [0, 1]")


@pytest.mark.parametrize("module", [data_pb2, loss_pb2, module_pb2, train_pb2])
def test_every_field_of_the_core_has_one(module):
    for message in module.DESCRIPTOR.message_types_by_name.values():
        assert message_comment(message), message.full_name
        assert set(field_comments(message)) == {f.name for f in message.fields}, message.full_name


def test_the_assembled_root_has_those_of_the_static_one():
    comments = field_comments(assembled().root.DESCRIPTOR)
    assert set(comments) == {f.name for f in assembled().root.DESCRIPTOR.fields}
    model_config = parse_config("model_config {}", partial=True).model_config.DESCRIPTOR
    assert field_comments(model_config)["num_class"].startswith("Classes to predict")


def test_a_plugins_comments_are_read_from_the_proto_it_ships():
    descriptor = descriptor_of("deepfm")
    assert message_comment(descriptor).startswith("DeepFM (Guo et al., IJCAI 2017)")
    assert set(field_comments(descriptor)) == {f.name for f in descriptor.fields}
    assert field_comments(descriptor_of("two_towers"))["user_tower"] == "The user's side."


def test_a_dataclass_has_them_in_its_fields_metadata():
    descriptor = descriptor_of("plain_model")
    assert message_comment(descriptor) == "Logistic regression with frills."
    assert field_comments(descriptor) == {
        "title": "What the model calls itself.",
        "head": "How the output is made.",
    }
    assert message_comment(descriptor.fields_by_name["layers"].message_type) == "One hidden layer."


def test_a_dataclass_without_a_docstring_has_no_comment():
    from dataclasses import dataclass

    from tzrec_core.config.dataclass_message import message_from_dataclass

    @dataclass(frozen=True)
    class Bare:
        x: int = 1

    descriptor = message_from_dataclass(Bare).DESCRIPTOR
    assert message_comment(descriptor) == ""
    assert field_comments(descriptor) == {}


def test_what_ships_no_comments_has_none(monkeypatch):
    from tzrec_core.config import comments

    assert field_comments(Any.DESCRIPTOR) == {}
    comments._proto_comments.cache_clear()
    monkeypatch.setattr(comments, "files", lambda package: Path("/there/is/nothing"))
    assert message_comment(descriptor_of("two_tasks")) == ""
    assert field_comments(descriptor_of("two_tasks")) == {}
    comments._proto_comments.cache_clear()


def test_reading_comments_imports_no_model():
    message_comment(descriptor_of("two_tasks"))
    assert "acme_zoo.model" not in sys.modules


# The scanner

STYLE = """syntax = "proto2";

package some.where;

import "google/protobuf/any.proto";

// Above a message,
// in two lines.
message A {
  // Above a field.
  optional int32 x = 1 [default = 3];
  // Above a oneof.
  oneof kind {
    // Above a member.
    B b = 2;
  }
  // Above an enum.
  enum E {
    // Above a value.
    FIRST = 0;
  }
  map<string, uint64> counts = 3;
}

// Empty.
message B {}
"""


def test_parts_have_the_comments_above_them():
    source = scan(STYLE)
    assert source.unread == []
    assert (source.package, source.imports) == ("some.where", ["google/protobuf/any.proto"])
    assert source.comments() == {
        "some.where.A": "Above a message, in two lines.",
        "some.where.A.x": "Above a field.",
        "some.where.A.kind": "Above a oneof.",
        "some.where.A.b": "Above a member.",
        "some.where.A.E": "Above an enum.",
        "some.where.A.E.FIRST": "Above a value.",
        "some.where.B": "Empty.",
    }
    (x,) = [p for p in source.parts if p.path == "A.x"]
    assert (x.number, x.label, x.type, x.default, x.line) == (1, "optional", "int32", "3", 11)


@pytest.mark.parametrize(
    ("text", "unread"),
    [
        ("message A { optional int32 x = 1; }", [1]),
        ("message A {\n  // One.\n  optional int32 x = 1; // behind\n  // Two.\n  optional int32 y = 2;\n}", [3]),
        ("/* block */\nmessage A {\n}", [1]),
        ("extend B {\n  optional int32 x = 1;\n}\nmessage A {\n}", [1]),
        ("message A {\n  reserved 4, 5;\n  extensions 100 to max;\n}", [2, 3]),
        ("message A {", [1]),
        ("}", [1]),
        ("} }\nmessage A {\n}", [1]),
    ],
)
def test_another_style_is_read_as_far_as_it_goes(text, unread):
    source = scan(text)
    assert source.unread[: len(unread)] == unread
    if "// Two." in text:
        assert source.comments() == {"A.y": "Two."}
