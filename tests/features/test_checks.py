import pytest

from tzrec_core.errors import ConfigError

_ID = 'id_feature {{ feature_name: "x" expression: "user:x" {} }}'
_RAW = 'raw_feature {{ feature_name: "x" expression: "user:x" {} }}'
_SEQUENCE = 'sequence_id_feature {{ feature_name: "x" expression: "user:x" num_buckets: 9 embedding_dim: 4 {} }}'


def _refused(make_features, config, data_config=""):
    with pytest.raises(ConfigError) as caught:
        make_features(config, data_config)
    return str(caught.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            "embedding_dim: 4",
            "no size for its embedding table. Set one of zch, dynamicemb, hash_bucket_size, num_buckets",
        ),
        ("embedding_dim: 4 hash_bucket_size: 0", "hash_bucket_size is 0"),
        ("embedding_dim: 4 num_buckets: 0", "num_buckets is 0"),
        ("embedding_dim: 0 num_buckets: 5", "embedding_dim is 0"),
        ('embedding_dim: 4 num_buckets: 5 pooling: "max"', "pooling 'max' is not one of sum, mean"),
        ('embedding_dim: 4 num_buckets: 5 data_type: "INT8"', "data_type 'INT8' is not one of FP32, FP16"),
        ("embedding_dim: 4 num_buckets: 5 use_mask: true", "use_mask: masking a feature is not supported yet"),
        (
            'embedding_dim: 4 num_buckets: 5 fg_value_type: "INT"',
            "choosing a value type is not supported yet",
        ),
        ('embedding_dim: 4 num_buckets: 5 asset_dir: "d"', "asset_dir: a folder of assets is not supported yet"),
        ('embedding_dim: 4 num_buckets: 5 init_fn: "nn.init.unifrom_"', ": init_fn 'nn.init.unifrom_': "),
        (
            "embedding_dim: 4 num_buckets: 5 sequence_length: 3",
            "sequence_length belongs to a sequence_id_feature",
        ),
        (
            'embedding_dim: 4 num_buckets: 5 sequence_delim: "|"',
            "sequence_delim belongs to a sequence_id_feature",
        ),
        ('embedding_dim: 4 num_buckets: 5 sequence_fields: "x"', "sequence_fields belongs to"),
        (
            "embedding_dim: 4 num_buckets: 5 default_bucketize_value: 1",
            "default_bucketize_value needs vocab_list",
        ),
        (
            'embedding_dim: 4 vocab_list: ["a", "b"] default_bucketize_value: 2',
            "default_bucketize_value 2 is outside",
        ),
        ('embedding_dim: 4 vocab_list: ["a", "b", "a"]', "vocab_list has 'a' twice"),
        ('embedding_dim: 4 vocab_dict { key: "a" value: 1 }', "gives 'a' the id 1"),
        (
            'embedding_dim: 4 num_buckets: 5 fg_encoded_default_value: "no"',
            "fg_encoded_default_value 'no' is not an id",
        ),
        (
            'embedding_dim: 4 num_buckets: 5 fg_encoded_default_value: "5"',
            "'5' is outside its table's rows, 0 to 4",
        ),
    ],
)
def test_a_mistake_in_an_id_feature_is_named(make_features, settings, words):
    text = _refused(make_features, _ID.format(settings))
    assert words in text and "id_feature 'x'" in text


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("embedding_dim: 4 boundaries: [0.1, 0.3, 0.2]", "boundaries must ascend, but 0.2 follows 0.3"),
        ("embedding_dim: 4 boundaries: [0.1, 0.1]", "boundaries must ascend"),
        ("boundaries: [0.1]", "embedding_dim is 0"),
        ("embedding_dim: 4", "embedding_dim has no effect"),
        ('embedding_name: "e"', "embedding_name has no effect"),
        ("embedding_dim: 4 boundaries: [1] mlp {}", "boundaries makes it an id"),
        ("value_dim: 0", "value_dim is 0"),
        ('normalizer: "method=zscor,mean=0"', "Did you mean 'zscore'?"),
        ('value_dim: 2 fg_encoded_default_value: "1\\0032\\0033"', "not one number, nor 2"),
    ],
)
def test_a_mistake_in_a_raw_feature_is_named(make_features, settings, words):
    assert words in _refused(make_features, _RAW.format(settings))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ('separator: ""', "separator is empty"),
        ('default_value: "zero"', "default_value 'zero' is not one number"),
        ('default_value: "nan"', "default_value 'nan' is not one number"),
    ],
)
def test_a_mistake_in_raw_columns_of_numbers_is_named(make_features, settings, words):
    assert words in _refused(make_features, _RAW.format(settings), "fg_mode: FG_NORMAL")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ('num_buckets: 5 separator: ""', "separator is empty"),
        ('num_buckets: 5 default_value: "none"', "default_value 'none' is not an id"),
        ('num_buckets: 5 default_value: "7"', "default_value '7' is outside"),
        ("zch { zch_size: 5 lfu {} }", "zch is not supported yet in FG_NORMAL"),
    ],
)
def test_a_mistake_in_raw_columns_of_ids_is_named(make_features, settings, words):
    text = _refused(make_features, _ID.format(f"embedding_dim: 4 {settings}"), "fg_mode: FG_NORMAL")
    assert words in text


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("weighted: true", "a sequence has no weights"),
        ('sequence_delim: ""', "sequence_delim is empty"),
        ('sequence_fields: "y"', "sequence_fields 'y' is not one of its inputs (x)"),
    ],
)
def test_a_mistake_in_a_sequence_is_named(make_features, settings, words):
    assert words in _refused(make_features, _SEQUENCE.format(settings))


def test_a_length_inside_a_sequence_group_belongs_to_the_group(make_features):
    text = _refused(
        make_features,
        'sequence_feature { sequence_name: "s" sequence_length: 3 features { raw_feature { feature_name: "y" '
        'expression: "item:p" sequence_length: 2 } } }',
    )
    assert "'s__y': sequence_length belongs to its sequence_feature" in text


@pytest.mark.parametrize("expression", ["x", "user:", ":x"])
def test_an_expression_without_side_or_column_is_refused(make_features, expression):
    text = _refused(
        make_features,
        f'id_feature {{ feature_name: "x" expression: "{expression}" num_buckets: 5 embedding_dim: 4 }}',
    )
    assert "side:column" in text and repr(expression) in text


def test_fg_normal_has_no_features_of_features(make_features):
    text = _refused(
        make_features,
        'id_feature { feature_name: "x" expression: "feature:y" num_buckets: 5 embedding_dim: 4 }',
        "fg_mode: FG_NORMAL",
    )
    assert "'feature'" in text and "user, item, context" in text


def test_a_table_of_dynamic_ids_is_accepted_here(make_features):
    (feature,) = make_features(_ID.format("embedding_dim: 4 dynamicemb { max_capacity: 100 }"))
    assert feature.num_embeddings == 100


def test_weights_with_mean_pooling_are_accepted(make_features):
    (feature,) = make_features(_ID.format('embedding_dim: 4 num_buckets: 5 weighted: true pooling: "mean"'))
    assert feature.is_weighted
