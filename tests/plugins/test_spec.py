import pytest

from tzrec_core import builtin
from tzrec_core.plugins import (
    CallbackSpec,
    FeatureSpec,
    Group,
    LossSpec,
    MetricSpec,
    ModelSpec,
    Output,
    ReaderSpec,
    SeqEncoderSpec,
    Task,
    Trait,
)

GOOD = {"name": "deepfm", "target": "pkg.model:DeepFM", "config": "pkg.config_pb2:DeepFM", "summary": "A model."}


def problems(**changes):
    return "; ".join(ModelSpec(**{**GOOD, **changes}).problems())


def test_a_complete_spec_has_no_problems():
    spec = ModelSpec(
        **GOOD,
        task=Task.RANK,
        groups=(Group("wide", types=("WIDE",)), Group("*"), Group(from_field="user_tower.input")),
        traits=frozenset({Trait.SCRIPT}),
        aliases=("deep_fm", "dfm2"),
        replaces=("fm",),
    )
    assert spec.problems() == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "deep fm"}, "name 'deep fm' is not a letter followed by"),
        ({"name": ""}, "name '' is not a letter"),
        ({"name": 3}, "name 3 is not a letter"),
        ({"name": "DeepFM"}, "name 'DeepFM' is not in snake_case"),
        ({"name": "tzrec_deepfm__deepfm"}, "is not in snake_case"),
        ({"target": "pkg.model.DeepFM"}, "target 'pkg.model.DeepFM' is not of the form 'module:Class'"),
        ({"target": None}, "target None is not of the form 'module:Class'"),
        ({"config": ""}, "config '' is not of the form 'module_pb2:Message'"),
        ({"config": "pkg.config_pb2"}, "is not of the form 'module_pb2:Message'"),
        ({"summary": ""}, "summary is empty"),
        ({"summary": "  "}, "summary is empty"),
        ({"task": "rank"}, "task 'rank' is not a Task (RANK, MULTITASK, MATCH"),
        ({"traits": frozenset({"fly"})}, "is not a collection of Trait (SEQUENCE, SHARDED"),
        ({"traits": Trait.SCRIPT}, "is not a collection of Trait"),
        ({"groups": Group("deep")}, "is not a tuple of Group"),
        ({"groups": ("deep",)}, "is not a tuple of Group"),
        ({"groups": (Group("deep", types=("DEPE",)),)}, "Group types ('DEPE',) is not a tuple of DEEP, WIDE"),
        ({"groups": (Group("deep", types="DEEP"),)}, "Group types 'DEEP' is not a tuple of DEEP"),
        ({"groups": (Group("deep", types=()),)}, "Group types ()"),
        ({"groups": (Group(),)}, "either a name or from_field"),
        ({"groups": (Group("deep", from_field="a.b"),)}, "either a name or from_field"),
        ({"aliases": "dfm"}, "aliases 'dfm' is not a tuple of names"),
        ({"replaces": "fm"}, "replaces 'fm' is not a tuple of names"),
        ({"aliases": ("d fm",)}, "name 'd fm' is not in snake_case"),
        ({"aliases": ("deepfm",)}, "name 'deepfm' is given twice"),
    ],
)
def test_a_wrong_model_spec_says_what_is_wrong(changes, words):
    assert words in problems(**changes)


def test_all_that_is_wrong_is_said_at_once():
    found = problems(target="x", summary="", traits={"fly"})
    assert "target 'x'" in found
    assert "summary is empty" in found
    assert "Trait" in found


@pytest.mark.parametrize(
    ("cls", "changes", "words"),
    [
        (LossSpec, {"output": "binary"}, "output 'binary' is not an Output (BINARY, SOFTMAX"),
        (LossSpec, {"tasks": Task.RANK}, "tasks <Task.RANK: 'rank'> is not a collection of Task"),
        (LossSpec, {"num_class": 2}, "num_class 2 is not (smallest, largest or None)"),
        (LossSpec, {"num_class": (3, 2)}, "num_class (3, 2)"),
        (MetricSpec, {"outputs": ()}, "is not a collection of Output"),
        (MetricSpec, {"outputs": Output.BINARY}, "is not a collection of Output"),
        (SeqEncoderSpec, {"config": ""}, "config '' is not of the form"),
        (FeatureSpec, {"summary": ""}, "summary is empty"),
        (ReaderSpec, {"target": "x"}, "target 'x'"),
        (CallbackSpec, {"summary": ""}, "summary is empty"),
    ],
)
def test_a_wrong_spec_of_another_kind_says_what_is_wrong(cls, changes, words):
    assert words in "; ".join(cls(**{**GOOD, **changes}).problems())


@pytest.mark.parametrize("cls", [FeatureSpec, ReaderSpec, CallbackSpec])
def test_features_readers_and_callbacks_need_no_config_message(cls):
    assert cls(name="x", target="a:B", summary="s").problems() == []


def test_an_open_num_class_is_fine():
    assert LossSpec(**GOOD, num_class=(2, None)).problems() == []


def test_what_the_core_offers_is_right_and_named_once():
    specs = builtin.tzrec_specs()
    assert [f"{s.name}: {p}" for s in specs for p in s.problems()] == []
    names = [(type(s), s.name) for s in specs]
    assert len(names) == len(set(names))
