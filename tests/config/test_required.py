import pytest
from google.protobuf import text_format

from tzrec_core.config import parse_config
from tzrec_core.config.required import missing_fields
from tzrec_core.errors import ConfigError
from tzrec_core.protos import pipeline_pb2

GOOD = 'feature_name: "a" expression: "a" embedding_dim: 4'


def missing(text):
    return list(missing_fields(text_format.Parse(text, pipeline_pb2.EasyRecConfig())))


def test_what_is_missing_is_listed_depth_first_in_the_order_of_the_schema():
    text = """
    model_dir: "x"
    data_config { input_fields { } input_fields { input_name: "a" } input_fields { } }
    model_config { losses { jrc_loss { } } }
    """
    assert missing(text) == [
        "train_input_path",
        "eval_input_path",
        "data_config.dataset_type",
        "data_config.input_fields[0].input_name",
        "data_config.input_fields[2].input_name",
        "model_config.losses[0].jrc_loss.session_name",
    ]


def test_a_complete_config_lacks_nothing(valid):
    assert list(missing_fields(parse_config(valid))) == []


@pytest.mark.parametrize("entries", [1, 2])
def test_a_map_before_a_missing_field_does_no_harm(entries):
    """protobuf's own search for missing fields crashes the process here."""
    words = "".join(f" vocab_dict {{ key: '{n}' value: {n} }}" for n in range(entries))
    text = f"feature_configs {{ id_feature {{ {GOOD}{words} }} }} feature_configs {{ id_feature {{ }} }}"
    with pytest.raises(ConfigError, match=r"feature_configs\[1\]\.id_feature\.feature_name"):
        parse_config(text)
    assert missing(text)[3:] == [
        f"feature_configs[1].id_feature.{name}" for name in ("feature_name", "expression", "embedding_dim")
    ]
