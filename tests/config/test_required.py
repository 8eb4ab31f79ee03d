import pytest
from google.protobuf import text_format

from tzrec_core.config import parse_config
from tzrec_core.config.required import folded, missing_fields
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


def test_of_many_missing_fields_each_name_is_said_once_in_a_line():
    text = "feature_configs { id_feature { feature_name: 'a' embedding_dim: 4 } } " * 39
    text += "model_config { losses { jrc_loss {} } }"
    with pytest.raises(ConfigError) as caught:
        parse_config(text)
    (line,) = [line for line in caught.value.problems if "missing" in line]
    assert line.startswith("43 required fields are missing: train_input_path; eval_input_path; model_dir; ")
    assert "expression in feature_configs[0].id_feature, [1].id_feature and 37 more" in line
    assert "model_config.losses[0].jrc_loss.session_name" in line
    assert len(line) <= 300


def test_a_line_of_many_missing_names_says_fewer_places():
    paths = [f"{'deep.' * 11}a[{n}].{name}" for n in range(9) for name in ("one", "two", "three")]
    line = folded(paths)
    assert line.startswith(f"one in {'deep.' * 11}a[0] and 8 more; two in ")
    assert (
        folded([f"{'deep.' * 99}a[{n}].{name}" for n in range(9) for name in ("x", "y")]) == "x (9 times); y (9 times)"
    )
