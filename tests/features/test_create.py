import pytest

from tzrec_core.errors import ConfigError
from tzrec_core.features import create_features
from tzrec_core.protos import feature_pb2

_ID = 'id_feature { feature_name: "x" expression: "user:x" num_buckets: 10 embedding_dim: 4 }'
_SAMPLER = 'num_sample: 3 attr_fields: "item_id" attr_fields: "cate" item_id_field: "item_id"'


def test_two_features_of_one_name_are_refused(make_features):
    with pytest.raises(ConfigError, match=r"'x'.*another feature has this name"):
        make_features(f"{_ID}\n{_ID}")


def test_the_mistakes_of_all_features_come_in_one_go(make_features):
    with pytest.raises(ConfigError) as caught:
        make_features(
            """id_feature { feature_name: "a" expression: "user:a" embedding_dim: 4 }
            id_feature { feature_name: "b" expression: "user:b" num_buckets: 3 embedding_dim: 0 }"""
        )
    assert len(caught.value.problems) == 2


def test_no_features_is_no_mistake():
    assert create_features([]) == []


def test_an_empty_entry_is_refused():
    with pytest.raises(ConfigError, match="entry is empty"):
        create_features([feature_pb2.FeatureConfig()])


@pytest.mark.parametrize("mode", ["FG_DAG", "FG_BUCKETIZE"])
def test_modes_that_are_not_there_yet_are_refused(make_features, mode):
    with pytest.raises(ConfigError, match=f"{mode}.*not supported yet"):
        make_features(_ID, f"fg_mode: {mode}")


def test_fg_normal_of_other_types_is_refused_with_the_way_out(make_features):
    with pytest.raises(ConfigError, match=r"FG_NORMAL of combo_feature is not supported yet.*'c'.*FG_NONE"):
        make_features(
            'combo_feature { feature_name: "c" expression: "user:a" expression: "user:b" '
            "hash_bucket_size: 9 embedding_dim: 4 }",
            "fg_mode: FG_NORMAL",
        )


def test_fg_encoded_false_means_raw_columns(make_features):
    (feature,) = make_features(_ID.replace("user:x", "user:col"), "fg_encoded: false")
    assert feature.inputs == ["col"]


def test_a_contradiction_of_fg_encoded_and_fg_mode_is_refused(make_features):
    with pytest.raises(ConfigError, match="fg_encoded: true contradicts fg_mode: FG_NORMAL"):
        make_features(_ID, "fg_encoded: true fg_mode: FG_NORMAL")


@pytest.mark.parametrize(
    "sampler",
    [
        f'negative_sampler {{ input_path: "p" {_SAMPLER} }}',
        'negative_sampler_v2 { user_input_path: "p" item_input_path: "p" pos_edge_input_path: "p" '
        f'user_id_field: "u" {_SAMPLER} }}',
        'hard_negative_sampler { user_input_path: "p" item_input_path: "p" '
        'hard_neg_edge_input_path: "p" num_hard_sample: 1 '
        f'user_id_field: "u" {_SAMPLER} }}',
    ],
)
def test_a_feature_whose_columns_a_sampler_fills_is_in_the_negative_group(make_features, sampler):
    features = """
        id_feature { feature_name: "item_id" expression: "item:item_id" num_buckets: 9 embedding_dim: 4 }
        id_feature { feature_name: "brand" expression: "item:brand" num_buckets: 9 embedding_dim: 4 }
        lookup_feature { feature_name: "both" map: "user:m" key: "item:cate" }"""
    groups = [f.data_group for f in make_features(features, sampler)]
    assert groups == ["__NEG__", "__BASE__", "__BASE__"]
    forced = [f.data_group for f in make_features(features, f"force_base_data_group: true {sampler}")]
    assert forced == ["__BASE__"] * 3


def test_in_fg_normal_the_columns_of_the_expression_decide_the_group(make_features):
    features = """id_feature { feature_name: "f" expression: "item:cate" num_buckets: 9 embedding_dim: 4 }
        id_feature { feature_name: "cate" expression: "item:other" num_buckets: 9 embedding_dim: 4 }"""
    found = make_features(features, f'fg_mode: FG_NORMAL negative_sampler {{ input_path: "p" {_SAMPLER} }}')
    assert [f.data_group for f in found] == ["__NEG__", "__BASE__"]


def test_a_tree_sampler_leaves_every_feature_in_the_base_group(make_features):
    sampler = (
        'tdm_sampler { item_input_path: "p" edge_input_path: "p" predict_edge_input_path: "p" '
        'attr_fields: "x" item_id_field: "x" }'
    )
    assert make_features(_ID, sampler)[0].data_group == "__BASE__"
