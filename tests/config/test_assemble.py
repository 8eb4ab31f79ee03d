import copy
import gc
import pickle

import pytest
from google.protobuf import text_format

from tzrec_core.config import model_offer, parse_config, spec_of
from tzrec_core.config.assemble import any_offer, assembled, unpack
from tzrec_core.errors import ConfigError, PluginError
from tzrec_core.plugins import (
    Group,
    LossSpec,
    MetricSpec,
    ModelSpec,
    Plugin,
    ReaderSpec,
    Registry,
    State,
    use_registry,
)
from tzrec_core.protos import model_pb2, pipeline_pb2

MLP = "tzrec_core.protos.module_pb2:MLP"


def model(name, **changes):
    return ModelSpec(**{"name": name, "target": "json:loads", "config": MLP, "summary": "s", **changes})


def plugin(distribution, *specs):
    return Plugin(name=distribution, distribution=distribution, specs=list(specs))


def test_the_root_has_all_fields_of_the_static_one_and_one_per_model():
    root = assembled().root.DESCRIPTOR
    assert [f.name for f in root.fields] == [f.name for f in pipeline_pb2.EasyRecConfig.DESCRIPTOR.fields]
    model_config = root.fields_by_name["model_config"].message_type
    names = {f.name for f in model_config.fields} - {f.name for f in model_pb2.ModelConfig.DESCRIPTOR.fields}
    assert names == {"deepfm", "wide_and_deep", "plain_model", "plain", "two_tasks", "two_towers"}
    assert {f.name for f in model_config.oneofs_by_name["model"].fields} == names
    assert "model" not in model_pb2.ModelConfig.DESCRIPTOR.oneofs_by_name


def test_the_root_is_assembled_once_and_anew_for_other_plugins():
    before = assembled()
    assert assembled() is before
    with use_registry(Registry([plugin("acme-a", model("a"))])):
        assert assembled().root is not before.root
        assert set(assembled().models) == {"a"}
    assert assembled() is before


def test_a_config_parses_without_any_plugin():
    with use_registry(Registry([])):
        config = parse_config("model_config { num_class: 2 }", partial=True)
        with pytest.raises(ValueError, match="names no model"):
            model_offer(config.model_config)


def test_a_config_cannot_become_bytes(valid):
    config = parse_config(valid)
    gc.collect()  # protobuf rebuilds a class that nobody holds, without the guard
    for make_bytes in (
        config.SerializeToString,
        config.SerializePartialToString,
        config.model_config.SerializeToString,
        lambda: pickle.dumps(config),
        lambda: pickle.dumps(config.model_config),
        lambda: pickle.dumps({"config": config}),
    ):
        with pytest.raises(TypeError, match=r"travels as text: use str\(config\) and tzrec_core\.config\.parse_config"):
            make_bytes()


def test_it_cannot_become_bytes_after_a_garbage_collection_either():
    with use_registry(Registry([plugin("acme-collected", model("collected"))])):
        config = parse_config("model_config { collected { } }", partial=True)
    gc.collect()
    for part in (config, config.model_config):
        with pytest.raises(TypeError, match="travels as text"):
            part.SerializePartialToString()


def test_parts_of_a_config_that_are_not_assembled_can_be_pickled(valid):
    config = parse_config(valid)
    for part in (config.data_config, config.feature_configs[0], config.model_config.deepfm):
        assert pickle.loads(pickle.dumps(part)) == part


def test_a_config_can_be_copied(valid):
    config = parse_config(valid)
    other = type(config)()
    other.CopyFrom(config)
    assert other == copy.deepcopy(config) == config
    other.model_dir = "elsewhere"
    assert config.model_dir == "runs/one"


def test_message_to_string_is_what_str_says(valid):
    config = parse_config(valid)
    assert text_format.MessageToString(config) == str(config)
    assert "deepfm {" in str(config.model_config)


def test_the_model_of_a_config_knows_who_offers_it(valid):
    offer = model_offer(parse_config(valid).model_config)
    assert (offer.spec.name, offer.plugin.distribution) == ("deepfm", "tzrec-deepfm")


def test_models_that_are_equal_in_json_can_live_side_by_side():
    with use_registry(Registry([plugin("acme-a", model("a_1")), plugin("acme-b", model("a1"))])):
        assert parse_config("model_config { a_1 {} }", partial=True).model_config.HasField("a_1")
        assert parse_config('{"model_config": {"a1": {}}}', partial=True).model_config.HasField("a1")
        assert parse_config('{"model_config": {"a_1": {}}}', partial=True).model_config.HasField("a_1")


@pytest.mark.parametrize("name", ["losses", "num_class", "model", "feature_groups"])
def test_a_model_named_like_a_part_of_model_config_breaks_its_plugin_only(name):
    bad, good = plugin("acme-bad", model(name)), plugin("acme-good", model("good"))
    with use_registry(Registry([bad, good])):
        assert parse_config("model_config { good {} num_class: 2 }", partial=True).model_config.num_class == 2
    assert (bad.state, good.state) == (State.BROKEN, State.OK)
    assert f"model {name!r} has the name of a part of model_config; rename it" in bad.reason


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("nowhere.config_pb2:X", "ModuleNotFoundError"),
        ("json:absent", "AttributeError"),
        ("json:loads", "is not a frozen dataclass"),
        ("json:JSONDecoder", "is not a frozen dataclass"),
    ],
)
def test_a_config_that_is_no_message_breaks_its_plugin_with_the_reason(config, words):
    bad = plugin("acme-bad", model("fine"), model("bad", config=config))
    with use_registry(Registry([bad])):
        assert assembled().models == {}, "a broken plugin offers nothing"
        with pytest.raises(PluginError, match=words):
            parse_config("model_config { bad {} }", partial=True)
        with pytest.raises(PluginError, match="comes from acme-bad, which is broken"):
            parse_config("model_config { fine {} }", partial=True)
    assert bad.state is State.BROKEN


def test_only_models_may_have_a_dataclass(monkeypatch):
    import json
    from dataclasses import make_dataclass

    monkeypatch.setattr(json, "Settings", make_dataclass("Settings", [("x", int, 1)], frozen=True), raising=False)
    bad = plugin("acme-bad", LossSpec("bad", "json:loads", "json:Settings", summary="s"))
    with use_registry(Registry([bad])):
        assembled()
    assert "json:Settings is not a generated protobuf message" in bad.reason


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (model("m", groups=(Group(from_field="tower.input"),)), "names 'tower.input', but there is no 'tower'"),
        (model("m", groups=(Group(from_field="hidden_unit"),)), "Did you mean 'hidden_units'?"),
        (model("m", groups=(Group(from_field="bias.input"),)), "there is no 'input'"),
        (LossSpec("l", "json:loads", MLP, summary="s", grouping_field="session"), "there is no 'session'"),
    ],
)
def test_a_spec_that_names_a_field_which_is_not_there_breaks_its_plugin(spec, words):
    bad = plugin("acme-bad", spec)
    with use_registry(Registry([bad])):
        assembled()
    assert bad.state is State.BROKEN
    assert words in bad.reason


def test_a_plugin_given_as_a_file_can_clash_too():
    a, b = plugin("./my plugin.py", model("same")), plugin("acme-b", model("same"))
    with use_registry(Registry([a, b])):
        config = parse_config("model_config { ___my_plugin_py__same {} }", partial=True)
        assert model_offer(config.model_config).plugin is a


# The specs behind losses, metrics and slots


def loss_config(text):
    return parse_config(f"model_config {{ losses {{ {text} }} }}", partial=True).model_config.losses[0]


def test_a_built_in_loss_is_the_cores_even_when_a_plugin_takes_its_name():
    taker = plugin("acme-a", LossSpec("l2_loss", "json:loads", MLP, summary="s"))
    with use_registry(Registry([taker])) as current:
        offer, settings = spec_of(LossSpec, "l2_loss", loss_config("l2_loss {}").l2_loss)
        assert offer.plugin is current.core
        assert settings.DESCRIPTOR.name == "L2Loss"


def test_the_loss_in_a_slot_is_the_plugins_with_its_own_message():
    slot = loss_config("plugin { [tzrec.dev/acme_ranking.Tversky] { alpha: 0.5 } }").plugin
    offer, settings = spec_of(LossSpec, "plugin", slot)
    assert (offer.spec.name, offer.plugin.distribution) == ("tversky", "acme-ranking")
    assert type(settings).__module__ == "acme_ranking.config_pb2"
    assert settings.alpha == 0.5


def test_settings_of_another_kind_in_a_slot_are_refused_with_what_would_fit():
    slot = loss_config("plugin { [tzrec.dev/acme_ranking.Brier] { } }").plugin
    with pytest.raises(
        PluginError, match=r"acme_ranking\.Brier is not the settings of a loss\. Installed: acme_ranking"
    ):
        spec_of(LossSpec, "plugin", slot)
    assert spec_of(MetricSpec, "plugin", slot)[0].spec.name == "brier"


def test_an_empty_slot_is_refused():
    with pytest.raises(ConfigError, match=r"the slot is empty; write \[tzrec\.dev/pkg\.Message\]"):
        spec_of(LossSpec, "plugin", loss_config("plugin {}").plugin)


def test_bytes_that_are_not_the_settings_are_refused():
    text = 'data_config { reader { type_url: "tzrec.dev/acme_ranking.Counting" value: "\\377" } }'
    slot = parse_config(text, partial=True).data_config.reader
    with pytest.raises(ConfigError, match=r"not a acme_ranking\.Counting; write \[tzrec\.dev/acme_ranking\.Counting\]"):
        unpack(any_offer(ReaderSpec, slot), slot)
