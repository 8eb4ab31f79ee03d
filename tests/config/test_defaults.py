import numpy as np
import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st

from tzrec_core.config import config_to_kwargs, parse_config
from tzrec_core.protos import (
    data_pb2,
    feature_pb2,
    loss_pb2,
    metric_pb2,
    model_pb2,
    module_pb2,
    tower_pb2,
    train_pb2,
)


def kwargs(cls, text=""):
    return config_to_kwargs(text_format.Parse(text, cls()))


def test_every_scalar_is_there_with_its_default_and_every_list():
    assert kwargs(module_pb2.MLP) == {
        "hidden_units": [],
        "dropout_ratio": [],
        "activation": "nn.ReLU",
        "use_bn": False,
        "bias": True,
        "use_ln": False,
    }


def test_what_is_set_wins_over_the_default_also_when_it_is_zero_or_empty():
    found = kwargs(module_pb2.MLP, 'hidden_units: [8, 4] activation: "" bias: false')
    assert (found["hidden_units"], found["activation"], found["bias"]) == ([8, 4], "", False)


def test_unset_messages_and_oneof_members_are_left_out_and_set_ones_nested():
    tower = kwargs(tower_pb2.Tower, 'input: "user"')
    assert tower == {"input": "user"}
    tower = kwargs(tower_pb2.Tower, 'input: "user" mlp { hidden_units: 2 }')
    assert tower["mlp"] == kwargs(module_pb2.MLP, "hidden_units: 2")
    assert kwargs(tower_pb2.Tower, "mlp {}")["mlp"] == kwargs(module_pb2.MLP)
    assert kwargs(loss_pb2.LossConfig) == {}
    assert kwargs(loss_pb2.LossConfig, "l2_loss {}") == {"l2_loss": {}}


def test_an_unset_scalar_without_a_stated_default_is_the_zero_of_its_type():
    assert kwargs(metric_pb2.XAUC)["max_pairs"] == 0
    assert kwargs(metric_pb2.GroupedAUC) == {"grouping_key": ""}


@pytest.mark.parametrize("value", [0, 1, 2**53 + 1, 2**64 - 1])
def test_64_bit_integers_are_ints(value):
    found = kwargs(metric_pb2.XAUC, f"max_pairs: {value}")["max_pairs"]
    assert found == value
    assert type(found) is int


def test_enums_are_their_names_set_or_not_one_or_many():
    assert kwargs(model_pb2.ModelConfig)["kernel"] == "PYTORCH"
    assert kwargs(model_pb2.ModelConfig, "kernel: TRITON")["kernel"] == "TRITON"
    group = kwargs(model_pb2.FeatureGroupConfig, 'group_name: "a" group_type: JAGGED_SEQUENCE')
    assert group["group_type"] == "JAGGED_SEQUENCE"


def test_maps_are_dicts_and_repeated_messages_lists_of_dicts():
    feature = kwargs(feature_pb2.IdFeature, 'vocab_dict { key: "a" value: 3 } vocab_dict { key: "b" value: 4 }')
    assert feature["vocab_dict"] == {"a": 3, "b": 4}
    assert kwargs(feature_pb2.IdFeature)["vocab_dict"] == {}
    data = kwargs(data_pb2.DataConfig, 'input_fields { input_name: "a" } input_fields { input_name: "b" }')
    assert [field["input_name"] for field in data["input_fields"]] == ["a", "b"]


def test_a_struct_is_the_dict_it_stands_for():
    text = 'operator_params { fields { key: "a" value { list_value { values { number_value: 2 } } } } }'
    assert kwargs(feature_pb2.CustomFeature, text)["operator_params"] == {"a": [2.0]}


def test_a_float_is_the_number_that_was_written():
    assert kwargs(loss_pb2.JRCLoss, "alpha: 0.1")["alpha"] == 0.1
    assert kwargs(train_pb2.TrainConfig).get("num_steps") is not None
    assert kwargs(metric_pb2.XAUC)["sample_ratio"] == 0.001


@given(st.floats(width=32, allow_nan=False))
def test_a_float_keeps_its_value_in_32_bits_and_is_as_short_as_can_be(value):
    message = loss_pb2.JRCLoss(alpha=value)
    found = config_to_kwargs(message)["alpha"]
    assert np.float32(found) == np.float32(value)
    assert len(repr(found)) <= len(repr(float(value)))


def test_the_assembled_config_becomes_kwargs_too(valid):
    found = config_to_kwargs(parse_config(valid))
    assert found["model_config"]["deepfm"]["deep"]["hidden_units"] == [8, 4]
    assert "wide_and_deep" not in found["model_config"]
    assert found["model_config"]["feature_groups"][0]["group_type"] == "WIDE"
