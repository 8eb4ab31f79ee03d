import pytest

from tzrec_core.config import apply_overrides, parse_config
from tzrec_core.errors import ConfigError


@pytest.fixture
def config(valid):
    return parse_config(valid)


def problem(config, override):
    with pytest.raises(ConfigError) as caught:
        apply_overrides(config, [override])
    (found,) = caught.value.problems
    assert found.startswith(f"--set {override}: ")
    assert "tzrec_assembled" not in found
    return found


@pytest.mark.parametrize(
    ("override", "read", "value"),
    [
        ("model_dir=runs/two", lambda c: c.model_dir, "runs/two"),
        ('model_dir="runs/two"', lambda c: c.model_dir, "runs/two"),
        ("model_dir='it''s'", lambda c: c.model_dir, "'it''s'"),
        ("model_dir=a=b", lambda c: c.model_dir, "a=b"),
        ("model_dir=", lambda c: c.model_dir, ""),
        ("model_dir= spaced out ", lambda c: c.model_dir, "spaced out"),
        ("model_dir=[not a list]", lambda c: c.model_dir, "[not a list]"),
        ("model_dir=C:\\data", lambda c: c.model_dir, "C:\\data"),
        ('model_dir=say "hi"', lambda c: c.model_dir, 'say "hi"'),
        ("model_dir='unfinished", lambda c: c.model_dir, "'unfinished"),
        ("model_dir=two\nlines # no comment", lambda c: c.model_dir, "two\nlines # no comment"),
        ("model_dir=größe", lambda c: c.model_dir, "größe"),
        ("data_config.batch_size=64", lambda c: c.data_config.batch_size, 64),
        ("data_config.shuffle=true", lambda c: c.data_config.shuffle, True),
        ("data_config.shuffle=False", lambda c: c.data_config.shuffle, False),
        ("data_config.fg_mode=FG_NORMAL", lambda c: c.data_config.fg_mode, 2),
        ("data_config.label_fields=[a, 'b, c', \"d\"]", lambda c: list(c.data_config.label_fields), ["a", "b, c", "d"]),
        ("data_config.label_fields=a", lambda c: list(c.data_config.label_fields), ["a"]),
        ("data_config.label_fields=[]", lambda c: list(c.data_config.label_fields), []),
        ("data_config.label_fields[0]=z", lambda c: list(c.data_config.label_fields), ["z"]),
        ("eval_config.num_steps=3", lambda c: c.eval_config.num_steps, 3),
        (
            "model_config.deepfm.deep.hidden_units=[64, 32]",
            lambda c: list(c.model_config.deepfm.deep.hidden_units),
            [64, 32],
        ),
        ("model_config.deepfm.deep.hidden_units=64", lambda c: list(c.model_config.deepfm.deep.hidden_units), [64]),
        ("model_config.deepfm.deep.hidden_units[1]=7", lambda c: list(c.model_config.deepfm.deep.hidden_units), [8, 7]),
        ("feature_configs[1].id_feature.embedding_dim=8", lambda c: c.feature_configs[1].id_feature.embedding_dim, 8),
        (
            "feature_configs[3].sequence_feature.features[0].id_feature.embedding_dim=8",
            lambda c: c.feature_configs[3].sequence_feature.features[0].id_feature.embedding_dim,
            8,
        ),
        ("model_config.losses[0].l2_loss={}", lambda c: c.model_config.losses[0].WhichOneof("loss"), "l2_loss"),
        ("model_config.losses=[{l2_loss {}}, {jrc_loss {}}]", lambda c: len(c.model_config.losses), 2),
        (
            "model_config.wide_and_deep={deep {hidden_units: 2}}",
            lambda c: c.model_config.WhichOneof("model"),
            "wide_and_deep",
        ),
        (
            "feature_configs[0].id_feature.vocab_dict=[{key: 'a' value: 3}]",
            lambda c: dict(c.feature_configs[0].id_feature.vocab_dict),
            {"a": 3},
        ),
        (
            "data_config.reader={[tzrec.dev/acme_ranking.Counting] {rows: 3}}",
            lambda c: c.data_config.reader.TypeName(),
            "acme_ranking.Counting",
        ),
    ],
)  # fmt: skip
def test_a_field_is_set(config, override, read, value):
    apply_overrides(config, [override])
    assert read(config) == value
    assert parse_config(str(config), partial=True) == config


def test_what_was_there_is_replaced_and_the_rest_is_left(config, valid):
    apply_overrides(config, ["model_config.deepfm={deep {hidden_units: 3}}", "model_config.deepfm.final={}"])
    assert str(config.model_config.deepfm) == "deep {\n  hidden_units: 3\n}\nfinal {\n}\n"
    apply_overrides(config, ["model_config.deepfm={deep {hidden_units: [8, 4]}}"])
    assert config == parse_config(valid)


def test_later_overrides_win(config):
    apply_overrides(config, ["model_dir=a", "model_dir=b"])
    assert config.model_dir == "b"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model_dir", "write it as path=value"),
        ("=x", "write it as path=value"),
        ("model_di=x", "EasyRecConfig has no field 'model_di'. Did you mean 'model_dir'?"),
        ("data_config.batch_sise=1", "DataConfig has no field 'batch_sise'. Did you mean 'batch_size'?"),
        ("eval_config.what=1", "EvalConfig has no field 'what'. Its fields are: num_steps, "),
        ("data_config..batch_size=1", "'' is not a field name"),
        ("feature_configs[-1].id_feature.embedding_dim=1", "'feature_configs[-1]' is not a field name"),
        ("feature_configs[9].id_feature.embedding_dim=1", "feature_configs has 4 elements, so there is no [9]"),
        ("feature_configs.id_feature.embedding_dim=1", "is repeated; say which one, as feature_configs[0]"),
        ("data_config[0].batch_size=1", "data_config is not repeated; leave out [0]"),
        ("data_config.batch_size[0]=1", "batch_size is not repeated; leave out [0]"),
        ("data_config.label_fields[1]=x", "label_fields has 1 element, so there is no [1]; counting starts at 0"),
        ("data_config.label_fields[0]=[a, b]", "is not one element of label_fields"),
        ("data_config.batch_size.x=1", "batch_size holds a value, not a message"),
        ("data_config.batch_size=x", "'x' is not a value of batch_size: couldn't parse integer: x"),
        ("data_config.batch_size=", "'' is not a value of batch_size"),
        ("data_config.batch_size=-1", "value out of range"),
        ("data_config.batch_size=1 num_workers: 3", "it is more than one value"),
        ("data_config.batch_size=1 batch_size: 2", "is not a value of batch_size"),
        ("data_config.shuffle=maybe", "is not a value of shuffle"),
        ("data_config.fg_mode=FG_NON", "has no value named FG_NON"),
        ("data_config=5", "is not a value of data_config"),
        ("data_config={batch_sise: 1}", 'has no field named "batch_sise"'),
        ("model_config.dcn_x={}", "there is no model 'dcn_x'. Installed: deepfm,"),
        ("model_config.wide_and_deep.wide_embedding_dim=2", "the config has deepfm, not wide_and_deep"),
        ("model_config.losses[0].jrc_loss.alpha=1", "the config has binary_cross_entropy, not jrc_loss"),
        ("feature_configs[0].id_feature.vocab_dict.a=3", "vocab_dict is a map; set all of it"),
        ("data_config.reader={[tzrec.dev/acme_ranking.Counting] {}}", "it lacks rows"),
        ("data_config.reader={[tzrec.dev/no.Such] {}}", "no.Such"),
    ],
)
def test_an_override_that_cannot_be_applied_says_why(config, override, words):
    assert words in problem(config, override)


def test_all_overrides_that_fail_are_named(config):
    with pytest.raises(ConfigError) as caught:
        apply_overrides(config, ["model_di=x", "model_dir=fine", "data_config.batch_size=x"])
    assert len(caught.value.problems) == 2
    assert config.model_dir == "fine"


def test_an_override_can_supply_what_the_text_lacks(changed):
    text = changed('model_dir: "runs/one"', "")
    assert parse_config(text, overrides=["model_dir=runs/one"]).model_dir == "runs/one"


def test_a_wrong_override_is_reported_together_with_the_mistakes_of_the_text(changed, mistakes):
    found = mistakes(changed("auc {}", "acu {}"), overrides=["data_config.batch_size=x"])
    assert len(found) == 2
    assert "'acu'" in found[0]
    assert found[1].startswith("--set data_config.batch_size=x: ")
