import dataclasses
from dataclasses import dataclass, field
from enum import Enum

import pytest
from google.protobuf import text_format

from tzrec_core.config import config_to_kwargs, parse_config
from tzrec_core.config.dataclass_message import dataclass_of, message_from_dataclass
from tzrec_core.errors import PluginError
from tzrec_core.plugins import ModelSpec, Plugin, Registry, State, registry, use_registry
from tzrec_core.protos.module_pb2 import MLP
from tzrec_core.protos.tower_pb2 import TaskTower


class Mode(Enum):
    NONE = 0
    FAST = 7


class Other(Enum):
    NONE = "none"


@dataclass(frozen=True)
class Layer:
    width: int
    dropout: float = 0.1


@dataclass(frozen=True)
class Settings:
    """What the model needs."""

    title: str
    scale: float = 1.5
    is_deep: bool = True
    rows: int = -3
    limit: int | None = None
    text: str = 'a "quoted" \\ text'
    mode: Mode = Mode.FAST
    other: Other = Other.NONE
    modes: tuple[Mode, ...] = ()
    layer: Layer | None = None
    layers: list[Layer] = field(default_factory=list)
    names: tuple[str, ...] = field(default=(), metadata={"doc": "Whom to greet."})


def test_a_dataclass_becomes_a_message_with_its_types_and_defaults():
    cls = message_from_dataclass(Settings)
    message = text_format.Parse('title: "x" layers { width: 2 } names: "a" names: "b" modes: FAST', cls())
    assert config_to_kwargs(message) == {
        "title": "x",
        "scale": 1.5,
        "is_deep": True,
        "rows": -3,
        "limit": 0,
        "text": 'a "quoted" \\ text',
        "mode": "FAST",
        "other": "NONE",
        "modes": ["FAST"],
        "layers": [{"width": 2, "dropout": 0.1}],
        "names": ["a", "b"],
    }
    assert not message.HasField("limit")


def test_a_field_without_a_default_is_required():
    cls = message_from_dataclass(Settings)
    assert cls().FindInitializationErrors() == ["title"]
    assert text_format.Parse('title: "x" layers {}', cls()).FindInitializationErrors() == ["layers[0].width"]


def test_integers_have_64_bits_and_floats_are_doubles():
    cls = message_from_dataclass(Settings)
    message = text_format.Parse(f"rows: {-(2**63)} scale: 0.1", cls())
    assert (message.rows, message.scale) == (-(2**63), 0.1)


def test_the_same_dataclass_gives_the_same_message_class():
    assert message_from_dataclass(Settings) is message_from_dataclass(Settings)


def test_a_message_knows_its_dataclass():
    descriptor = message_from_dataclass(Settings).DESCRIPTOR
    assert dataclass_of(descriptor.full_name) is Settings
    assert dataclass_of(descriptor.fields_by_name["layers"].message_type.full_name) is Layer
    assert dataclass_of("tzrec_core.protos.MLP") is None


def test_a_dataclass_may_hold_itself():
    cls = message_from_dataclass(Node)
    message = text_format.Parse("children { children { value: 3 } }", cls())
    assert message.children[0].children[0].value == 3


@dataclass(frozen=True)
class Node:
    value: int = 0
    children: "tuple[Node, ...]" = ()


@dataclass(frozen=True)
class Towers:
    bottom: MLP
    top: MLP | None = None
    tasks: tuple[TaskTower, ...] = ()


def test_a_generated_message_is_a_part_like_any_other():
    cls = message_from_dataclass(Towers)
    message = text_format.Parse('bottom { hidden_units: 4 } tasks { tower_name: "a" label_name: "b" }', cls())
    assert (type(message.bottom), type(message.tasks[0])) == (MLP, TaskTower)
    assert message.tasks[0].weight == 1
    assert not message.HasField("top")
    assert cls().FindInitializationErrors() == ["bottom"]


def made(annotation, **options):
    return dataclasses.make_dataclass("Made", [("x", annotation, field(**options))], frozen=True)


@pytest.mark.parametrize(
    ("cls", "words"),
    [
        (int, "is not a frozen dataclass"),
        (dataclasses.make_dataclass("Thawed", [("x", int)]), "Thawed is not a frozen dataclass"),
        (made(dict[str, int]), "Made.x: a config field cannot be a dict[str, int]"),
        (made(list), "a config field cannot be"),
        (made(list[list[int]]), "a config field cannot be"),
        (made(int | str), "a config field cannot be"),
        (made(tuple[int, int]), "a config field cannot be"),
        (made(object), "use bool, int, float, str, an Enum"),
        (made(tuple[int, ...], default=(64, 32)), "Made.x: a config cannot hold the default (64, 32)"),
        (made(list[int], default_factory=lambda: [1]), "a config cannot hold the default [1]"),
        (made(MLP, default_factory=lambda: MLP(bias=False)), "write MLP | None = None, and read None as your default"),
        (made(TaskTower, default_factory=TaskTower), "a config cannot hold the default"),
        (made(Layer, default=Layer(3)), "a config cannot hold the default"),
        (made(Node, default=Node(3)), "give the fields of Node that default"),
        (made(dataclasses.make_dataclass("Thawed", [("x", int)])), "Thawed is not a frozen dataclass"),
    ],
)
def test_what_a_config_cannot_hold_is_refused(cls, words):
    with pytest.raises(TypeError) as caught:
        message_from_dataclass(cls)
    assert words in str(caught.value)


def test_a_default_message_that_is_all_defaults_is_fine():
    message = message_from_dataclass(made(Node, default=Node()))()
    assert message.x.value == 0


def test_two_parts_of_one_name_are_refused_and_not_mixed_up():
    twin = dataclasses.make_dataclass("Layer", [("y", str, "")], frozen=True)
    both = dataclasses.make_dataclass(
        "Both", [("a", Node, Node()), ("b", twin, twin()), ("c", Layer | None, None)], frozen=True
    )
    with pytest.raises(TypeError, match="give them different names"):
        message_from_dataclass(both)


def test_a_model_with_a_dataclass_config_is_configured_like_any_other():
    text = """
    model_config {
      plain_model { title: "x" head: MEAN layers { width: 8 } layers { width: 4 dropout: 0.5 } max_rows: 5000000000 }
    }
    """
    settings = parse_config(text, partial=True).model_config.plain_model
    assert config_to_kwargs(settings)["layers"] == [{"width": 8, "dropout": 0.0}, {"width": 4, "dropout": 0.5}]
    assert config_to_kwargs(settings)["head"] == "MEAN"
    assert settings.max_rows == 5_000_000_000


def test_mistakes_in_a_dataclass_config_read_like_any_others(mistakes):
    found = mistakes("model_config { plain_model { titel: 'x' head: MEEN layers { } } }", partial=True)
    assert found[0] == "1:30: PlainModel has no field 'titel'. Did you mean 'title'?"
    assert found[1] == "1:47: head: 'MEEN' is not one of LINEAR, MEAN. Did you mean 'MEAN'?"
    text = "model_config { feature_groups { group_name: 'a' group_type: DEEP } plain_model { layers { } } }"
    (missing,) = [f for f in mistakes(text) if "required" in f]
    assert "model_config.plain_model.title" in missing
    assert "model_config.plain_model.layers[0].width" in missing
    assert "_config.v" not in "".join(found)


def test_a_dataclass_that_does_not_work_makes_its_plugin_broken(monkeypatch):
    import json as module

    monkeypatch.setattr(module, "Bad", made(dict[str, int]), raising=False)
    spec = ModelSpec("bad", "json:loads", "json:Bad", summary="s")
    broken = Plugin(name="bad", distribution="acme-bad", specs=[spec])
    with use_registry(Registry([broken])):
        with pytest.raises(PluginError, match=r"acme-bad, which is broken: model 'bad' of acme-bad: Made\.x: a config"):
            parse_config("model_config { bad {} }", partial=True)
        assert broken.state is State.BROKEN
        assert len(registry().problems()) == 1
