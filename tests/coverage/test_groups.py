"""What each field of a feature group and of a sequence encoder does."""

import pyarrow as pa
import pytest
import torch
from torch import nn

from tzrec_core.errors import ConfigError

FEATURES = """
feature_configs { id_feature { feature_name: "q" expression: "item:q" num_buckets: 9 embedding_dim: 4 value_dim: 1 } }
feature_configs { sequence_id_feature { feature_name: "s" expression: "user:s" sequence_length: 9 num_buckets: 9
  embedding_dim: 4 } }
feature_configs { sequence_id_feature { feature_name: "w" expression: "user:w" sequence_length: 9 num_buckets: 9
  embedding_dim: 6 } }
"""
ENCODERS = {
    "din_encoder": "attn_mlp { hidden_units: 3 }",
    "simple_attention": "",
    "pooling_encoder": "",
    "self_attention_encoder": "",
    "multi_window_din_encoder": "attn_mlp { hidden_units: 3 } windows_len: [1, 2]",
}
LIMITED = [name for name in ENCODERS if name != "multi_window_din_encoder"]  # those with max_seq_length


def columns(steps=(1, 2, 3)):
    return {"q": pa.array([5]), "s": pa.array([list(steps)]), "w": pa.array([list(steps)])}


def encoded(encoder, settings="", more=""):
    """A config with a DEEP group `g` that holds nothing but the encoded sequence `h`."""
    written = settings.split()
    defaults = ENCODERS[encoder] if "attn_mlp" not in written else ENCODERS[encoder].partition("}")[2]
    defaults = defaults if "windows_len:" not in written else defaults.partition("windows_len")[0]
    return f"""{FEATURES} model_config {{ feature_groups {{ group_name: "g" group_type: DEEP
    sequence_groups {{ group_name: "h" feature_names: ["q", "s"] }}
    sequence_encoders {{ {encoder} {{ input: "h" {defaults} {settings} }} }} {more} }} }}"""


def encoder_of(embed, name, settings=""):
    module, _ = embed(encoded(name, settings))
    (encoder,) = module._group_name_to_seq_encoders["g"]
    return encoder


# Groups


def test_a_group_is_named_and_lists_features_of_its_type(embed):
    groups = 'feature_groups { group_name: "g" group_type: SEQUENCE feature_names: ["q", "s"] }'
    module, output = embed(f"{FEATURES} model_config {{ {groups} }}", columns())
    assert module.group_names() == ["g"] and list(output) == ["g.query", "g.sequence", "g.sequence_length"]
    assert output["g.query"].shape == (1, 4) and output["g.sequence"].shape == (1, 3, 4)


def test_embedding_name_suffix_keeps_tables_apart(embed):
    sequences = 'sequence_groups { feature_names: "s" embedding_name_suffix: "b" }'
    encoder = "sequence_encoders { pooling_encoder {} }"
    groups = f"""feature_groups {{ group_name: "g" group_type: DEEP feature_names: "q" embedding_name_suffix: "a"
    {sequences} {encoder} }}"""
    module, _ = embed(f"{FEATURES} model_config {{ {groups} }}")
    assert [name.split(".")[-2] for name, _ in module.named_parameters()] == ["q_emb_a", "s_emb_b"]


def test_sequence_groups_are_encoded_and_follow_the_groups_own_features(embed):
    sequences = 'sequence_groups { group_name: "h" feature_names: "s" }'
    encoder = 'sequence_encoders { pooling_encoder { input: "h" pooling_type: "sum" } }'
    groups = f'feature_groups {{ group_name: "g" group_type: DEEP feature_names: "q" {sequences} {encoder} }}'
    module, output = embed(f"{FEATURES} model_config {{ {groups} }}", columns())
    tables = {name.split(".")[-2]: p for name, p in module.named_parameters()}
    expected = torch.cat([tables["q_emb"][5], tables["s_emb"][[1, 2, 3]].sum(0)])
    torch.testing.assert_close(output["g"][0], expected)


# Encoders


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_reads_the_sequence_group_that_input_names(embed, name):
    other = """sequence_groups { group_name: "i" feature_names: ["q", "w"] }
    sequence_encoders { self_attention_encoder { input: "i" multihead_attn_dim: 16 num_heads: 2 } }"""
    module, output = embed(encoded(name, more=other), columns())
    width = {"self_attention_encoder": 512, "multi_window_din_encoder": 12}.get(name, 4)
    assert module.group_dims("g") == [width, 16] and output["g"].shape == (1, width + 16)


@pytest.mark.parametrize("name", ENCODERS)
def test_messages_call_an_encoder_by_its_name(embed, name):
    wrong = "max_seq_length: -1" if name in LIMITED else "windows_len: 0"
    with pytest.raises(ConfigError, match="'clicks' on group 'h'"):
        embed(encoded(name, f'name: "clicks" {wrong}'))


@pytest.mark.parametrize("name", LIMITED)
def test_max_seq_length_reads_the_first_steps_only(embed, name):
    outputs = [embed(encoded(name, "max_seq_length: 2"), columns(steps))[1]["g"] for steps in ((1, 2, 3), (1, 2, 7))]
    torch.testing.assert_close(*outputs)


@pytest.mark.parametrize("name", ["din_encoder", "multi_window_din_encoder"])
def test_attn_mlp_is_the_network_that_scores(embed, name):
    encoder = encoder_of(embed, name, "attn_mlp { hidden_units: [5, 2] }")
    assert [m.out_features for m in encoder.mlp.modules() if isinstance(m, nn.Linear)] == [5, 2]


def test_pooling_type_sum_adds_the_steps_up(embed):
    module, output = embed(encoded("pooling_encoder", 'pooling_type: "sum"'), columns())
    steps = dict(module.named_parameters())["seq_emb_impls.__BASE__.ec_dict.4.embeddings.s_emb.weight"][[1, 2, 3]]
    torch.testing.assert_close(output["g"][0], steps.sum(0))


def test_self_attention_has_its_width_heads_and_dropout(embed):
    encoder = encoder_of(embed, "self_attention_encoder", "multihead_attn_dim: 12 num_heads: 3 dropout: 0.25")
    attention = encoder.multihead_attn
    assert (encoder.output_dim(), attention.embed_dim, attention.num_heads, attention.dropout) == (12, 12, 3, 0.25)


def test_self_attention_drops_attention_weights_in_training_only(embed):
    def outputs(train):
        module, _ = embed(encoded("self_attention_encoder", "multihead_attn_dim: 8 num_heads: 2 dropout: 0.5"))
        (encoder,) = module.train(train)._group_name_to_seq_encoders["g"]
        data = {"h.sequence": torch.ones(1, 3, 4), "h.sequence_length": torch.tensor([3])}
        return encoder(data), encoder(data)

    assert torch.equal(*outputs(train=False)) and not torch.equal(*outputs(train=True))


def test_windows_len_gives_one_vector_per_window_and_the_query(embed):
    module, _ = embed(encoded("multi_window_din_encoder", "windows_len: [1, 1, 4]"))
    assert module.group_dims("g") == [4 * 4]
