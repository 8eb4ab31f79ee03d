import json
from pathlib import Path

import pytest
import torch
from google.protobuf import text_format

from tzrec_core.errors import ConfigError
from tzrec_core.features import create_features
from tzrec_core.protos import feature_pb2, pipeline_pb2

_GOLDENS = Path(__file__).parents[1] / "goldens"
_FACTS = json.loads((_GOLDENS / "features_facts.json").read_text())["rows"]


@pytest.mark.parametrize("fact", _FACTS, ids=[f"{row['case']} {row['name']}" for row in _FACTS])
def test_every_fact_of_torcheasyrec_holds(fact):
    config = text_format.Parse(fact["config"], feature_pb2.FeatureConfig())
    feature = {f.name: f for f in create_features([config])}[fact["name"]]
    for name in (
        "is_sparse",
        "is_sequence",
        "is_grouped_sequence",
        "value_dim",
        "output_dim",
        "has_embedding",
    ):
        assert getattr(feature, name) == fact[name], name
    assert feature.data_group == fact["data_group"]
    assert feature.inputs == fact["inputs"]
    assert [list(pair) for pair in feature.side_inputs] == fact["side_inputs"]
    table = fact.get("table")
    if isinstance(table, str):
        with pytest.raises(ConfigError, match="vocab_file"):
            _ = feature.emb_bag_config
    elif table is None:
        assert feature.emb_bag_config is None and feature.emb_config is None and feature.num_embeddings == 0
    else:
        bag, single = feature.emb_bag_config, feature.emb_config
        assert table == {
            "name": bag.name,
            "num_embeddings": bag.num_embeddings,
            "embedding_dim": bag.embedding_dim,
            "pooling": str(bag.pooling),
        }
        assert (single.name, single.num_embeddings, single.embedding_dim) == tuple(table.values())[:3]
        assert bag.feature_names == single.feature_names == [feature.name]


@pytest.mark.parametrize("case", ["dssm_neg_inner", "tdm_softmax", "hstu_match_cosine"])
def test_data_groups_and_sizes_are_those_of_the_model_goldens(case):
    golden = json.loads((_GOLDENS / f"{case}.json").read_text())
    text = golden["config_text"]
    head, _, _ = text.partition("model_config {")
    config = text_format.Parse(head, pipeline_pb2.EasyRecConfig())
    features = create_features(config.feature_configs, config.data_config)
    names = ("name", "data_group", "is_sparse", "is_sequence", "value_dim", "output_dim")
    assert [{name: getattr(f, name) for name in names} for f in features] == golden["features"]


def test_a_table_takes_its_name_type_and_initialiser_from_the_config(make_features):
    (feature,) = make_features(
        'id_feature { feature_name: "x" expression: "user:x" num_buckets: 10 embedding_dim: 4 '
        'embedding_name: "shared" data_type: "FP16" trainable: false init_fn: "nn.init.constant_,val=2.0" }'
    )
    bag = feature.emb_bag_config
    assert bag.name == "shared" and bag.data_type.value == "FP16" and not feature.trainable
    assert torch.equal(bag.init_fn(torch.zeros(2)), torch.full((2,), 2.0))


def test_each_table_config_is_a_fresh_object(make_features):
    (feature,) = make_features('id_feature { feature_name: "x" expression: "user:x" num_buckets: 10 embedding_dim: 4 }')
    feature.emb_bag_config.name = "renamed"
    assert feature.emb_bag_config.name == "x_emb"


def test_autodis_embeds_a_number_without_a_table(make_features):
    (feature,) = make_features(
        'raw_feature { feature_name: "x" expression: "user:x" embedding_dim: 4 autodis { num_channels: 3 } }'
    )
    assert feature.dense_emb_config.num_channels == 3
    assert feature.output_dim == 4 and not feature.is_sparse


def test_a_vocab_file_sizes_the_table_by_its_lines(make_features, tmp_path):
    (tmp_path / "words.txt").write_text("a\nb\nc\n")
    text = f'vocab_file: "{tmp_path}/words.txt"'
    plain, fallback = make_features(
        f"""id_feature {{ feature_name: "x" expression: "user:x" embedding_dim: 4 {text} }}
        id_feature {{ feature_name: "y" expression: "user:y" embedding_dim: 4 {text}
        default_bucketize_value: 0 }}"""
    )
    assert plain.num_embeddings == 5
    assert fallback.num_embeddings == 3


def test_a_vocab_file_that_is_not_there_is_named(make_features):
    (feature,) = make_features(
        'id_feature { feature_name: "x" expression: "user:x" embedding_dim: 4 vocab_file: "/no/such/words" }'
    )
    with pytest.raises(ConfigError, match=r"'x'.*vocab_file.*/no/such/words"):
        _ = feature.num_embeddings


def test_fg_normal_reads_the_columns_of_the_expression(make_features):
    features = make_features(
        """id_feature { feature_name: "x" expression: "user:col" num_buckets: 10 embedding_dim: 4 }
        sequence_feature { sequence_name: "s" sequence_length: 3
        features { raw_feature { feature_name: "y" expression: "item:p" } } }""",
        "fg_mode: FG_NORMAL",
    )
    assert [f.inputs for f in features] == [["col"], ["s__p"]]
    assert features[1].name == "s__y"


def test_a_sequence_takes_length_delimiter_and_key_from_its_group(make_features):
    grouped, single = make_features(
        """sequence_feature { sequence_name: "s" sequence_length: 3 sequence_delim: "|" sequence_pk: "user:s"
        features { raw_feature { feature_name: "y" expression: "item:p" } } }
        sequence_id_feature { feature_name: "z" expression: "user:z" sequence_length: 7
        num_buckets: 3 embedding_dim: 2 }"""
    )
    assert (grouped.sequence_name, grouped.sequence_length, grouped.sequence_delim) == ("s", 3, "|")
    assert grouped.sequence_pk == "user:s"
    assert (single.sequence_name, single.sequence_length, single.sequence_delim) == (None, 7, ";")


def test_only_the_sequence_fields_of_a_member_get_the_sequence_prefix(make_features):
    (feature,) = make_features(
        'sequence_feature { sequence_name: "s" sequence_length: 3 features { lookup_feature { '
        'feature_name: "y" map: "user:m" key: "item:k" sequence_fields: "k" } } }'
    )
    assert feature.side_inputs == [("user", "m"), ("item", "s__k")]
