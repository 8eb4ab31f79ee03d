import json
from pathlib import Path

import pytest
from google.protobuf import text_format
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tzrec_core.config import config_to_kwargs, load_config, model_offer, parse_config
from tzrec_core.errors import ConfigError, PluginError, TzrecError
from tzrec_core.plugins import Registry, list_models, use_registry

GOLDENS = sorted((Path(__file__).parents[1] / "goldens").glob("*.json"))


def partial(text):
    return parse_config(text, partial=True)


def words(text, **options):
    with pytest.raises(ConfigError) as caught:
        parse_config(text, **options)
    return str(caught.value)


# What is read


def test_a_valid_config_has_its_values_and_the_defaults(valid):
    config = parse_config(valid, validate=True)
    assert config.train_input_path == "data/train.parquet"
    assert config.model_config.WhichOneof("model") == "deepfm"
    assert list(config.model_config.deepfm.deep.hidden_units) == [8, 4]
    assert config.model_config.deepfm.wide_embedding_dim == 4
    assert config.data_config.batch_size == 1024


def test_the_models_message_is_the_class_that_the_plugin_generated(valid):
    from tzrec_deepfm.config_pb2 import DeepFM

    assert type(parse_config(valid).model_config.deepfm) is DeepFM


def test_a_config_prints_and_parses_back_to_itself(valid):
    config = parse_config(valid)
    again = parse_config(str(config))
    assert again == config
    assert parse_config(text_format.MessageToString(config)) == config
    assert "tzrec_assembled" not in str(config)


@pytest.mark.parametrize(
    "text",
    [
        'train_input_path: "a" # model_dir: 5 }',
        'train_input_path: "{[<#" ',
        "train_input_path: '}\"'",
        'train_input_path: "it\\"s \\n \\001"',
        'train_input_path: "two" " strings"\n  \'in one\'',
        "model_config < deepfm < deep < hidden_units: 1; hidden_units: 2 >; >; >",
        "model_config { deepfm { deep { hidden_units: [1, 2], dropout_ratio: [] } } }",
        "model_config: { deepfm: { deep: { hidden_units: [ 1 , 2 ] } } }",
        'data_config { label_fields: ["a", "b"]; label_fields: "c", }',
        'feature_configs: [{ id_feature { feature_name: "a" } }, < raw_feature { feature_name: "b" } >]',
        "# nothing but a comment",
        "",
        "\n\t \r\n",
        "\ufefftrain_input_path: 'with a byte order mark'",
        "train_config { sparse_optimizer { adagrad_optimizer { lr: 1e-3 } } }",
        "data_config { sample_mask_prob: .5f }",
        "model_config { variational_dropout { regularization_lambda: -0.5 } }",
    ],
)
def test_every_way_to_write_protobuf_text_is_read(text):
    config = partial(text)
    assert partial(str(config)) == config


def test_a_string_may_hold_anything():
    assert partial("train_input_path: \"a{b\" 'c}d#' # e").train_input_path == "a{bc}d#"


@pytest.mark.parametrize("path", GOLDENS, ids=lambda path: path.stem)
def test_the_configs_of_the_goldens_parse(path):
    golden = json.loads(path.read_text())
    texts = [c["config_text"] for c in golden.get("cases", []) if "config_text" in c]
    texts += [golden["config_text"]] if "config_text" in golden else []
    texts += [f"feature_configs {{ {row['config']} }}" for row in golden.get("rows", []) if "config" in row]
    for text in texts:
        try:
            config = partial(text)
        except PluginError as error:  # a model of an official plugin that is not written yet
            assert "is not installed" in str(error)
        except ConfigError as error:
            assert "there is no model" in error.problems[0]
            assert not any(f"{name} {{" in text for name in list_models())
        else:
            assert partial(str(config)) == config


def test_a_config_is_read_from_a_file_and_errors_name_it(tmp_path, valid):
    good, bad = tmp_path / "good.config", tmp_path / "bad.config"
    good.write_text(valid, encoding="utf-8-sig")
    bad.write_text("model_di: 'x'\n" + valid)
    assert load_config(good).model_dir == "runs/one"
    assert load_config(str(good), overrides=["model_dir=elsewhere"]).model_dir == "elsewhere"
    with pytest.raises(ConfigError, match=r"bad\.config: 1:1: EasyRecConfig has no field 'model_di'"):
        load_config(bad)
    with pytest.raises(ConfigError, match=r"does not exist\. Did you mean 'good\.config'"):
        load_config(tmp_path / "god.config")
    with pytest.raises(ConfigError, match="does not exist"):
        load_config(tmp_path / "no" / "such" / "folder")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not UTF-8; save it as UTF-8"):
        load_config(tmp_path / "binary")
    (tmp_path / "wide.json").write_text('{"model_dir": "x"}', encoding="utf-16")
    with pytest.raises(ConfigError, match="is not UTF-8; save it as UTF-8"):
        load_config(tmp_path / "wide.json")


# Mistakes, each with its place and the fix


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n  batch_sise: 1", "2:3: EasyRecConfig has no field 'batch_sise'. Its fields are: train_input_path,"),
        (
            "data_config {\n  batch_sise: 1\n}",
            "2:3: DataConfig has no field 'batch_sise'. Did you mean 'batch_size'?",
        ),
        (
            "model_config { deepfm { deep { hidden_unit: 1 } } }",
            "1:32: MLP has no field 'hidden_unit'. Did you mean 'hidden_units'?",
        ),
        (
            "model_config { num_clas: 2 }",
            "1:16: ModelConfig has no field 'num_clas'. Did you mean 'num_class'?",
        ),
        ("model_config { losses { l2_loss { x: 1 } } }", "1:35: L2Loss has no field 'x'. It has no fields."),
        ("train_input_path: 5", "1:19: train_input_path: expected string but found: '5'"),
        ("train_input_path 'x'", '1:18: train_input_path: expected ":"'),
        ("train_input_path", "1:1: train_input_path has no value"),
        ("train_input_path:\nmodel_dir: 'x'", "1:1: train_input_path has no value"),
        ("data_config {\n  batch_size\n}", "2:3: batch_size has no value"),
        ("data_config { batch_size: -1 }", "1:27: batch_size: value out of range: -1"),
        ("data_config { batch_size: 99999999999 }", "1:27: batch_size: value out of range"),
        ("data_config { batch_size: 1.5 }", "1:27: batch_size: couldn't parse integer: 1.5"),
        ("data_config { shuffle: maybe }", '1:24: shuffle: expected "true" or "false"'),
        ("data_config { fg_mode: FG_NON }", "1:24: fg_mode: 'FG_NON' is not one of FG_NONE, FG_NORMAL"),
        ("data_config { fg_mode: 77 }", "fg_mode: '77' is not one of FG_NONE"),
        ("data_config { sample_mask_prob: abc }", "1:33: sample_mask_prob: couldn't parse float: abc"),
        ("model_dir: 'a'\nmodel_dir: 'b'", "2:1: 'model_dir' is set twice in one EasyRecConfig; keep one"),
        ("model_config {}\nmodel_config {}", "2:1: 'model_config' is set twice in one EasyRecConfig"),
        (
            "model_config { losses { l2_loss {} jrc_loss {} } }",
            "1:36: 'jrc_loss' cannot stand beside 'l2_loss': only one loss is allowed here",
        ),
        ("model_config { deepfm {", "1:1: model_config is opened and never closed"),
        ("model_config {\n  deepfm { deep { hidden_units: 1 } \n}", "1:1: model_config is opened and never closed"),
        ("data_config { label_fields: ['a', 'b' }", "1:15: label_fields is opened and never closed"),
        ("}", "1:1: expected identifier or number, got }"),
        ("data_config { batch_size: 1 >", "1:29: data_config: expected identifier or number, got >"),
        ("'abc'", "1:1: expected identifier or number, got 'abc'"),
        ("model_dir: 'abc", "1:12:"),
        ("model_dir: '\ud800'", "is half a character"),
        ("model_dir: 'abc\n'", "1:12:"),
        ("[tzrec.dev/foo]: 3", "settings of a plugin"),
        ("[foo.bar] { }", "[foo.bar] cannot stand here; the settings of a plugin stand in a slot"),
        ("data_config { reader { [foo.Bar] {} } }", "[foo.Bar] cannot stand here"),
    ],
)
def test_a_mistake_names_its_place_and_the_fix(text, message):
    found = words(text, partial=True)
    assert found.startswith(message) or message in found
    assert "tzrec_assembled" not in found
    assert "tzrec_core" not in found


def test_an_unknown_model_names_the_nearest():
    assert words("model_config {\n  deepfn { }\n}", partial=True).startswith(
        "3 mistakes\n  1. 2:3: there is no model 'deepfn'. Did you mean 'deepfm'?"
    ) or "2:3: there is no model 'deepfn'. Did you mean 'deepfm'?" in words(
        "model_config {\n  deepfn { }\n}", partial=True
    )


def test_a_model_that_is_not_installed_is_a_plugin_error_with_the_package(valid):
    with use_registry(Registry([])), pytest.raises(PluginError) as caught:
        parse_config(valid, partial=True)
    assert "23:3: model 'deepfm' is not installed; run: pip install tzrec-deepfm" in str(caught.value)
    assert caught.value.exit_code == 3


def test_a_model_of_a_broken_plugin_is_a_plugin_error_with_its_cause(use_plugins):
    use_plugins("tzrec-broken-config", "tzrec-plain")
    with pytest.raises(PluginError) as caught:
        partial("model_config { broken_config { } }")
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert "comes from tzrec-broken-config, which is broken" in str(caught.value)
    assert "the config of this plugin was eaten" in str(caught.value)


def test_a_broken_config_module_does_not_stop_a_run_that_does_not_use_it(use_plugins, valid):
    current = use_plugins("tzrec-broken-config", "tzrec-deepfm")
    assert parse_config(valid).model_config.HasField("deepfm")
    (line,) = current.problems()
    assert line.startswith("plugin tzrec-broken-config is broken: model 'broken_config' of tzrec-broken-config: ")
    assert "RuntimeError: the config of this plugin was eaten" in line


def test_the_model_of_an_incompatible_plugin_says_what_it_needs(use_plugins):
    use_plugins("tzrec-other-core")
    with pytest.raises(PluginError, match="incompatible: needs tzrec-core<10,>=9"):
        partial("model_config { other_core { } }")


def test_a_clash_says_what_to_write_in_the_config(use_plugins):
    use_plugins("tzrec-clash-one", "tzrec-clash-two")
    with pytest.raises(PluginError, match=r"1:16: model 'clash' is offered by .*tzrec_clash_one__clash \{ \.\.\. \}"):
        partial("model_config { clash { } }")


def test_two_models_are_refused():
    text = "model_config {\n deepfm { deep {} }\n wide_and_deep { deep {} }\n}"
    found = words(text, partial=True)
    assert "3:2: model_config names two models, 'deepfm' and 'wide_and_deep'; keep one of them" in found


def test_missing_required_fields_are_listed_with_their_paths(valid):
    text = valid.replace('model_dir: "runs/one"', "").replace('group_name: "deep"', "")
    text = text.replace('feature_name: "price"', "")
    found = words(text)
    assert (
        "3 required fields are missing: model_dir, feature_configs[2].raw_feature.feature_name, "
        "model_config.feature_groups[1].group_name" in found
    )
    assert parse_config(text, partial=True)


def test_one_missing_field_is_in_the_singular(valid):
    assert words(valid.replace('model_dir: "runs/one"', "")) == "1 required field is missing: model_dir"


def test_all_mistakes_are_found_in_one_go_and_in_order(changed, mistakes):
    text = changed(
        'model_dir: "runs/one"', "",
        "dataset_type: ParquetDataset", "dataset_type: ParketDataset",
        'feature_name: "price"', 'feature_nam: "price"',
        'feature_names: "item_id" }', 'feature_names: "item" }',
        "hidden_units: [8, 4]", "hidden_units: [8, x]",
        "metrics { auc {} }", "metrics { acu {} }",
    )  # fmt: skip
    found = mistakes(text)
    expected = [
        "6:17: dataset_type: 'ParketDataset' is not one of",
        "12:33: RawFeature has no field 'feature_nam'. Did you mean 'feature_name'?",
        "23:37: hidden_units: couldn't parse integer: x",
        "25:13: MetricConfig has no field 'acu'. Did you mean 'auc'?",
        "1 required field is missing: model_dir",
        "model_config.feature_groups[0] ('wide'): 'item' is not a feature. Did you mean 'item_id'?",
    ]
    assert len(found) == len(expected), found
    for problem, start in zip(found, expected, strict=True):
        assert problem.startswith(start), (problem, start)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("feature_name:", "feature_nam:"),
        ("group_name:", "grup_name:"),
        ("data_config {", "data_confg {"),
        ("deepfm {", "deepfn {"),
        ("deep {", "deeep {"),
        ("label_fields:", "label_field:"),
        ("sequence_name:", "sequence_nam:"),
        ("features {", "feature {"),
        ("losses {", "loses {"),
    ],
)
def test_one_misspelt_name_is_one_mistake_and_not_a_cascade(changed, mistakes, old, new):
    found = mistakes(changed(old, new))
    assert len(found) == 1, found
    assert "Did you mean" in found[0]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"price"', "5"),
        ("hidden_units: [8, 4]", "hidden_units: [8, 'a', b]"),
        ("auc {}", "auc { thresholds: -1 }"),
        ("num_buckets: 9", "num_buckets: nine"),
        ("group_type: WIDE", "group_type: WIDTH"),
        ('"runs/one"', "runs"),
    ],
)
def test_one_wrong_value_is_one_mistake_and_not_also_a_missing_field(changed, mistakes, old, new):
    assert len(mistakes(changed(old, new))) == 1


def test_a_field_that_is_wrong_in_one_place_is_still_missed_in_another(valid):
    text = valid.replace('feature_name: "user_id"', "feature_name: 5").replace('feature_name: "price"', "")
    found = words(text)
    assert "expected string but found: '5'" in found
    assert "1 required field is missing: feature_configs[2].raw_feature.feature_name" in found


def test_the_place_is_right_after_a_name_was_mended(mistakes):
    text = "data_config { batch_sz: 1 batch_size_x: 'a' shufle: true num_worker: 'x' fg_threads: z }"
    places = [text.index(word) + 1 for word in ("batch_sz", "batch_size_x", "shufle", "num_worker", "z }")]
    found = mistakes(text, partial=True)
    assert [p.split(" ")[0] for p in found] == [f"1:{place}:" for place in places]


def test_of_many_mistakes_the_first_thirty_are_shown(mistakes):
    found = mistakes("\n".join(f"nonsense_{n}: {n}" for n in range(100)), partial=True)
    assert len([f for f in found if "nonsense" in f]) == 30
    assert "There may be more" in found[30]


def test_text_nested_without_end_is_refused():
    with pytest.raises(ConfigError, match="nested too deeply"):
        partial("a {" * 100_000)
    with pytest.raises(ConfigError, match="nested too deeply"):
        partial('{"a": ' * 100_000)


def test_a_qualified_name_without_a_clash_names_the_bare_one():
    assert "Did you mean 'deepfm'?" in words("model_config { tzrec_deepfm__deepfm { } }", partial=True)


def test_an_alias_and_a_retired_name():
    config = partial('model_config { plain { title: "x" } }')
    assert model_offer(config.model_config).spec.name == "plain_model"
    assert "1:16: model 'old_plain' was replaced by 'plain_model'." in words(
        "model_config { old_plain { } }", partial=True
    )


# Any slots

TVERSKY = "model_config { losses { plugin { [tzrec.dev/acme_ranking.Tversky] { alpha: 0.25 %s } } } }"


def test_a_slot_is_read_and_prints_back():
    from acme_ranking.config_pb2 import Tversky

    config = partial(TVERSKY % "gamma: 2")
    settings_ = Tversky()
    assert config.model_config.losses[0].plugin.Unpack(settings_)
    assert config_to_kwargs(settings_) == {"alpha": 0.25, "gamma": 2.0}
    assert "[tzrec.dev/acme_ranking.Tversky]" in str(config)
    assert partial(str(config)) == config


def test_slots_nest():
    inner = "beside { plugin { [tzrec.dev/acme_ranking.Tversky] { alpha: 1 } } }"
    config = partial(TVERSKY % inner)
    assert partial(str(config)) == config


@pytest.mark.parametrize(
    "text",
    [
        "data_config { reader { [tzrec.dev/acme_ranking.Counting] { rows: 1 } } }",
        "data_config { reader { [tzrec.dev/acme_ranking.Counting] < rows: 1 > } }",
        "data_config { reader { [ tzrec.dev / acme_ranking.Counting ]: { rows: 1 } } }",
        "data_config { reader: { [example.com/some/path/acme_ranking.Counting] { rows: 1 } } }",
    ],
)
def test_every_way_to_write_a_slot_is_read(text):
    assert partial(text).data_config.reader.TypeName() == "acme_ranking.Counting"


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("acme_ranking.Tverski", "Did you mean 'acme_ranking.Tversky'? acme-ranking offers no such message."),
        ("other_pkg.Loss", "no installed plugin offers 'other_pkg.Loss'. Is its plugin installed (pip install"),
        ("other_pkg.Loss", "(pip install other-pkg)?"),
        ("tzrec_deepfm.DeepFM", "tzrec-deepfm offers no such message"),
        ("other_pkg.Loss", "See `tzrec list-plugins`"),
    ],
)
def test_an_unknown_type_in_a_slot_names_line_nearest_and_package(name, advice):
    text = f"model_config {{\n  losses {{ plugin {{ [tzrec.dev/{name}] {{ }} }} }}\n}}"
    with pytest.raises(PluginError) as caught:
        partial(text)
    assert str(caught.value).startswith("2:21: ")
    assert advice in str(caught.value)


def test_an_unknown_type_in_a_slot_names_the_state_of_its_plugin_and_carries_the_cause(use_plugins):
    use_plugins("tzrec-import-error")
    with pytest.raises(PluginError, match="tzrec-import-error is broken: ModuleNotFoundError") as caught:
        partial("data_config { reader { [tzrec.dev/tzrec_import_error.Reader] { } } }")
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_a_type_name_in_a_string_or_a_comment_is_no_slot():
    partial("train_input_path: 'plugin { [tzrec.dev/no.Such] { } }' # [tzrec.dev/no.Such] { }")


def test_a_mistake_within_a_slot_has_its_place():
    found = words("data_config {\n  reader { [tzrec.dev/acme_ranking.Counting] {\n rwos: 1 } } }", partial=True)
    assert "3:2: Counting has no field 'rwos'. Did you mean 'rows'?" in found


def test_required_fields_within_slots_are_missed_with_their_paths(changed):
    inner = "beside { plugin { [tzrec.dev/acme_ranking.Tversky] { } } }"
    text = changed(
        "binary_cross_entropy {}", f"plugin {{ [tzrec.dev/acme_ranking.Tversky] {{ {inner} }} }}",
        "label_fields", "reader { [tzrec.dev/acme_ranking.Counting] { } } label_fields",
    )  # fmt: skip
    assert words(text) == (
        "3 required fields are missing: data_config.reader.rows, model_config.losses[0].plugin.alpha, "
        "model_config.losses[0].plugin.beside.plugin.alpha"
    )


def test_a_misspelt_required_field_in_a_slot_is_not_also_missed(changed, mistakes):
    slot = "plugin { [tzrec.dev/acme_ranking.Tversky] { alhpa: 1 } }"
    (problem,) = mistakes(changed("binary_cross_entropy {}", slot))
    assert "Tversky has no field 'alhpa'. Did you mean 'alpha'?" in problem


# Whatever is typed, only ConfigError and PluginError come out


def survives(text):
    try:
        parse_config(text, partial=True, validate=True)
    except TzrecError as error:
        assert str(error)
        assert "tzrec_assembled" not in str(error)


PIECES = [
    "model_config", "deepfm", "deep", "hidden_units", "losses", "plugin", "[tzrec.dev/acme_ranking.Tversky]", "[a/b.C]",
    "train_input_path", "feature_configs", "id_feature", "feature_name", "vocab_dict", "key", "value",
    "{", "}", "<", ">", "[", "]", ":", ";", ",", "#", "\n", " ", "'a'", '"b', "'", "\\", "1", "-1", "1e999",
    "nan", "true", "DEEP", "é", "\x00",
    "data_config", "reader", "type_url", "'tzrec.dev/acme_ranking.Counting'", "'\\xff'", "operator_params", "fields",
]  # fmt: skip


@settings(max_examples=300, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(PIECES), max_size=25).map(" ".join))
def test_no_sequence_of_words_breaks_the_parser(text):
    survives(text)


@settings(max_examples=200, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=40))
def test_no_text_breaks_the_parser(text):
    survives(text)


@settings(max_examples=250, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_change_of_a_valid_config_breaks_the_parser(valid, data):
    text = valid
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        end = min(len(text), start + data.draw(st.integers(0, 12)))
        text = text[:start] + data.draw(st.sampled_from(["", *PIECES])) + text[end:]
    survives(text)
