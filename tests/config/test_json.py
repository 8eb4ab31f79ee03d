import json

import pytest
from google.protobuf import json_format
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tzrec_core.config import parse_config
from tzrec_core.errors import ConfigError, PluginError, TzrecError


@pytest.fixture
def data(valid):
    """The valid config as JSON data."""
    return json_format.MessageToDict(parse_config(valid), preserving_proto_field_name=True)


def problems(data, **options):
    text = data if isinstance(data, str) else json.dumps(data)
    with pytest.raises(ConfigError) as caught:
        parse_config(text, **{"partial": True, **options})
    assert "tzrec_assembled" not in str(caught.value)
    return caught.value.problems


def test_text_and_json_are_the_same_config(valid, data):
    config = parse_config(valid)
    assert parse_config(json.dumps(data), validate=True) == config
    assert parse_config("\n " + json.dumps(data, indent=2)) == config
    assert parse_config("\ufeff" + json.dumps(data)) == config
    assert parse_config(json_format.MessageToJson(config)) == config  # camelCase


def test_null_leaves_a_field_unset():
    assert parse_config('{"model_dir": null, "data_config": null}', partial=True) == parse_config("", partial=True)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ('{"model_dir": }', "1:15: not valid JSON: Expecting value"),
        ('{\n "model_dir": "a",\n}', ": not valid JSON"),
        ('{"model_dir": "a"} x', "1:20: not valid JSON: Extra data"),
        ('{"a": ' + "1" * 5000 + "}", "not valid JSON"),
        ('{"model_dir": "a", "model_dir": "b"}', "'model_dir' is written twice in one object"),
        ({"data_config": {"batch_size": 1, "batchSize": 2}}, "data_config.batchSize is written twice, also as"),
        ({"batch_sise": 1}, "batch_sise: EasyRecConfig has no field 'batch_sise'. Its fields are:"),
        (
            {"feature_configs": [{}, {"id_feature": {"feature_nam": "a"}}]},
            "feature_configs[1].id_feature.feature_nam: IdFeature has no field 'feature_nam'. Did you mean",
        ),
        ({"model_dir": 5}, "model_dir: expected a string, but found 5"),
        ({"data_config": {"batch_size": -1}}, "batch_size: expected a whole number, 0 to 4294967295, but found -1"),
        ({"data_config": {"batch_size": "x"}}, 'batch_size: expected a whole number, 0 to 4294967295, but found "x"'),
        ({"data_config": {"batch_size": [1]}}, "whole number, 0 to 4294967295, but found [1]"),
        ({"data_config": {"batch_size": {}}}, "whole number, 0 to 4294967295, but found {}"),
        ('{"data_config": {"batch_size": Infinity}}', "data_config.batch_size: "),
        ('{"data_config": {"fg_mode": "\\ud800"}}', "data_config.fg_mode: "),
        ('{"model_dir": "\\ud800"}', "model_dir: "),
        ({"data_config": {"shuffle": "maybe"}}, 'data_config.shuffle: expected true or false, but found "maybe"'),
        ({"data_config": {"dataset_type": "ParketDataset"}}, "Did you mean 'ParquetDataset'?"),
        ({"data_config": {"dataset_type": 99}}, "data_config.dataset_type: expected one of OdpsDataset, "),
        ({"data_config": {"dataset_type": ["ParquetDataset"]}}, 'but found ["ParquetDataset"]'),
        ({"data_config": []}, "data_config: expected an object, {...}, but found []"),
        ({"feature_configs": {"id_feature": {}}}, "feature_configs: expected a list, [...], but found {"),
        ({"feature_configs": ["x"]}, 'feature_configs[0]: expected an object, {...}, but found "x"'),
        ({"data_config": {"label_fields": "x"}}, 'label_fields: expected a list, each a string, but found "x"'),
        (
            {"data_config": {"label_fields": ["a" * 70, 5]}},
            "data_config.label_fields: expected a list, each a string, but found 5",
        ),
        ({"model_config": {"deepfn": {}}}, "model_config.deepfn: there is no model 'deepfn'. Did you mean 'deepfm'?"),
        ({"model_config": {"num_clas": 2}}, "model_config.num_clas: ModelConfig has no field 'num_clas'. Did you"),
        (
            {"model_config": {"deepfm": {}, "wide_and_deep": {}}},
            "model_config.wide_and_deep: model_config names two models, 'deepfm' and 'wide_and_deep'; keep one",
        ),
        (
            {"model_config": {"losses": [{"l2_loss": {}, "jrc_loss": {}}]}},
            "model_config.losses[0].jrc_loss: 'jrc_loss' cannot stand beside 'l2_loss': only one loss",
        ),
        ({"data_config": {"reader": {}}}, 'data_config.reader: name the settings, as "@type": "tzrec.dev/pkg.Message"'),
        ({"data_config": {"reader": {"@type": 5}}}, "data_config.reader: name the settings"),
        (
            {"data_config": {"reader": {"@type": "tzrec.dev/acme_ranking.Counting", "rwos": 1}}},
            "data_config.reader.rwos: Counting has no field 'rwos'. Did you mean 'rows'?",
        ),
        (
            {"feature_configs": [{"id_feature": {"vocab_dict": {"a": "x"}}}]},
            'vocab_dict: expected an object, each value a whole number, 0 to 18446744073709551615, but found "x"',
        ),
    ],
)
def test_a_mistake_names_its_path_and_the_fix(data, message):
    found = problems(data)
    assert message in found[0], found


def test_all_mistakes_are_found_in_one_go(data):
    del data["model_dir"]
    data["data_config"]["dataset_type"] = "ParketDataset"
    data["feature_configs"][2]["raw_feature"]["feature_nam"] = data["feature_configs"][2]["raw_feature"].pop(
        "feature_name"
    )
    data["model_config"]["deepfm"]["deep"]["hidden_units"] = [8, "x"]
    data["model_config"]["feature_groups"][0]["feature_names"] = ["user_id", "item"]
    found = problems(data, partial=False, validate=True)
    assert len(found) == 5, found
    starts = [
        "data_config.dataset_type: 'ParketDataset' is not one of",
        "feature_configs[2].raw_feature.feature_nam: ",
        "model_config.deepfm.deep.hidden_units: ",
        "1 required field is missing: model_dir",
        "model_config.feature_groups[0] ('wide'): 'item' is not a feature",
    ]
    for problem, start in zip(found, starts, strict=True):
        assert problem.startswith(start)


def test_a_field_that_is_wrong_is_not_also_missing(data):
    data["model_dir"] = 5
    assert len(problems(data, partial=False)) == 1


def test_a_slot_names_its_settings_by_type():
    slot = {"@type": "tzrec.dev/acme_ranking.Tversky", "alpha": 0.25}
    data = {"model_config": {"losses": [{"plugin": {**slot, "beside": {"plugin": slot}}}]}}
    config = parse_config(json.dumps(data), partial=True)
    assert config.model_config.losses[0].plugin.TypeName() == "acme_ranking.Tversky"
    assert parse_config(str(config), partial=True) == config


def test_required_fields_within_slots_are_missed_with_their_paths(data):
    data["data_config"]["reader"] = {"@type": "tzrec.dev/acme_ranking.Counting"}
    assert problems(data, partial=False) == ["1 required field is missing: data_config.reader.rows"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (
            {"data_config": {"reader": {"@type": "tzrec.dev/other_pkg.Reader"}}},
            "data_config.reader: no installed plugin offers 'other_pkg.Reader'. Is its plugin installed (pip install",
        ),
        (
            {"model_config": {"losses": [{"plugin": {"@type": "tzrec.dev/acme_ranking.Tverski"}}]}},
            "model_config.losses[0].plugin: no installed plugin offers 'acme_ranking.Tverski'. Did you mean",
        ),
    ],
)
def test_an_unknown_type_in_a_slot_is_a_plugin_error_with_path_nearest_and_package(data, words):
    with pytest.raises(PluginError) as caught:
        parse_config(json.dumps(data), partial=True)
    assert words in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2**70) | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["model_config", "deepfm", "deep", "losses", "plugin", "@type", "data_config", "reader",
                 "feature_configs", "custom_feature", "operator_params", "id_feature",
                 "vocab_dict", "dataset_type", "x", "modelDir"]
            ),
            inner | st.just("tzrec.dev/acme_ranking.Counting"),
            max_size=4,
        )
    ),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=300, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(["model_config", "data_config", "feature_configs", "x"]), JSON, max_size=3))
def test_no_json_breaks_the_parser(data):
    try:
        parse_config(json.dumps(data), partial=True, validate=True)
    except TzrecError as error:
        assert str(error)
        assert "tzrec_assembled" not in str(error)
