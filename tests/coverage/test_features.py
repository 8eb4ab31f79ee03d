"""What each field of a feature does, for every type of feature; the columns are encoded (FG_NONE)."""

import json

import pyarrow as pa
import pytest
import torch

from tzrec_core.data import DataParser
from tzrec_core.engine.constraints import read_constraints
from tzrec_core.engine.plan import create_plan
from tzrec_core.errors import ConfigError, DataError
from tzrec_core.protos import feature_pb2
from tzrec_core.protos.train_pb2 import TrainConfig

INPUTS = {
    "id_feature": 'expression: "user:c"',
    "raw_feature": 'expression: "user:c"',
    "combo_feature": 'expression: ["user:a", "user:b"]',
    "combine_feature": 'expression: "user:c"',
    "lookup_feature": 'map: "user:m" key: "item:k"',
    "match_feature": 'nested_map: "user:m" pkey: "item:k" skey: "item:s"',
    "expr_feature": 'expression: "a + b" variables: ["user:a", "user:b"]',
    "overlap_feature": 'query: "user:q" title: "item:t" method: "is_equal"',
    "tokenize_feature": 'expression: "user:c"',
    "custom_feature": 'operator_name: "Op" expression: "user:c"',
    "kv_dot_product": 'query: "user:q" document: "item:t"',
    "bool_mask_feature": 'expression: ["user:a", "user:b"]',
}
MESSAGES = {kind: feature_pb2.FeatureConfig.DESCRIPTOR.fields_by_name[kind].message_type for kind in INPUTS}
ID_WAYS = {
    "hash_bucket_size": ("hash_bucket_size: 23", 23),
    "num_buckets": ("num_buckets: 24", 24),
    "vocab_list": ('vocab_list: ["x", "y", "z"]', 5),
    "vocab_dict": ('vocab_dict { key: "x" value: 2 } vocab_dict { key: "y" value: 8 }', 9),
    "vocab_file": ('vocab_file: "{file}"', 6),
    "boundaries": ("boundaries: [0.5, 1.5, 2.5]", 4),
}


def kinds_with(*fields):
    return [kind for kind, message in MESSAGES.items() if all(f in message.fields_by_name for f in fields)]


def as_ids(kind):
    """A setting that makes the feature give ids below 4."""
    if kind == "tokenize_feature":
        return 'vocab_file: "{file}"'
    return next(ID_WAYS[way][0] for way in ("num_buckets", "hash_bucket_size", "boundaries") if kind in kinds_with(way))


def feature(kind, settings="", name="f"):
    base = kind.removeprefix("sequence_")
    return f'feature_configs {{ {kind} {{ feature_name: "{name}" {INPUTS[base]} {settings} }} }}'


def group(kind="DEEP", names=("f",)):
    listed = " ".join(f'feature_names: "{name}"' for name in names)
    return f' model_config {{ feature_groups {{ group_name: "g" group_type: {kind} {listed} }} }}'


@pytest.fixture
def filled(tmp_path):
    """A text with {file} filled in: a tokenizer of 6 tokens for a tokenize_feature, else a list of 4 words."""

    def fill(kind, text):
        file = tmp_path / "words"
        vocab = {"model": {"vocab": {"a": 0, "b": 5}}}
        file.write_text(json.dumps(vocab) if "tokenize" in kind else "a\nb\nc\nd\n")
        return text.replace("{file}", str(file))

    return fill


@pytest.fixture
def table(embed, filled):
    """The only table of a feature that gives ids, with its group's output for a column."""

    def make(kind, settings, column=((1, 2),)):
        settings = settings if "embedding_dim" in settings else f"embedding_dim: 3 {settings}"
        text = filled(kind, feature(kind, f"{as_ids(kind)} {settings}") + group())
        module, output = embed(text, {"f": pa.array(list(column), pa.list_(pa.int64()))})
        ((name, weight),) = module.named_parameters()
        return name, weight, output["g"]

    return make


# What every type has


@pytest.mark.parametrize("kind", INPUTS)
def test_its_encoded_column_has_its_name(features_of, filled, kind):
    ids = as_ids(kind) + " embedding_dim: 4"
    (found,) = features_of(filled(kind, feature(kind, ids, name="renamed")))
    assert found.name == "renamed" and found.inputs == ["renamed"]
    assert found.parse({"renamed": pa.array([3, None])}).values.tolist() == [3]


@pytest.mark.parametrize("kind", INPUTS)
def test_its_sequence_variant_has_a_length_and_a_delimiter(features_of, filled, kind):
    ids = as_ids(kind) + ' embedding_dim: 4 sequence_length: 2 sequence_delim: "|"'
    (found,) = features_of(filled(kind, feature(f"sequence_{kind}", ids)))
    parsed = found.parse({"f": pa.array(["3|1|2", "", "2"])})
    assert parsed.values.tolist() == [3, 1, 2] and parsed.lengths.tolist() == [2, 0, 1]


@pytest.mark.parametrize("kind", INPUTS)
def test_a_member_of_a_sequence_feature_has_its_name_length_and_delimiter(features_of, filled, kind):
    member = feature(kind, as_ids(kind) + " embedding_dim: 4").removeprefix("feature_configs")
    text = 'feature_configs { sequence_feature { sequence_name: "s" sequence_length: 2 sequence_delim: "|" features '
    (found,) = features_of(filled(kind, f"{text} {member} }} }}"))
    parsed = found.parse({"s__f": pa.array(["3|1|2", "", "2"])})
    assert parsed.values.tolist() == [3, 1, 2] and parsed.lengths.tolist() == [2, 0, 1]


@pytest.mark.parametrize("kind", INPUTS)
def test_the_encoded_default_stands_for_a_missing_value(features_of, filled, kind):
    ids = as_ids(kind) + ' embedding_dim: 4 fg_encoded_default_value: "2"'
    (found,) = features_of(filled(kind, feature(kind, ids)))
    assert found.parse({"f": pa.array([3, None])}).values.tolist() == [3, 2]


@pytest.mark.parametrize("kind", INPUTS)
def test_a_stub_feeds_other_features_and_is_not_read(features_of, filled, kind):
    other = feature("id_feature", "num_buckets: 9 embedding_dim: 4", name="other")
    stub = feature(kind, as_ids(kind) + " embedding_dim: 4 stub_type: true")
    parser = DataParser(features_of(filled(kind, stub + other)))
    assert parser.input_columns == ["other"]
    assert list(parser.parse({"other": pa.array([3])})) == ["other.values", "other.lengths"]


# Tables


@pytest.mark.parametrize("kind", INPUTS)
def test_embedding_dim_is_the_width_of_its_table(table, kind):
    _, weight, output = table(kind, "embedding_dim: 7")
    assert weight.shape[1] == output.shape[1] == 7


@pytest.mark.parametrize("kind", INPUTS)
def test_embedding_name_names_its_table(table, kind):
    assert table(kind, 'embedding_name: "shared"')[0].endswith("embedding_bags.shared.weight")


@pytest.mark.parametrize("kind", INPUTS)
def test_init_fn_fills_its_table(table, kind):
    _, weight, _ = table(kind, 'init_fn: "nn.init.constant_,val=0.5"')
    assert (weight == 0.5).all()


@pytest.mark.parametrize("kind", INPUTS)
def test_trainable_false_freezes_its_table(table, kind):
    assert not table(kind, "trainable: false")[1].requires_grad


@pytest.mark.parametrize("kind", INPUTS)
def test_data_type_is_that_of_its_table(table, kind):
    assert table(kind, 'data_type: "FP16"')[1].dtype == torch.float16


@pytest.mark.parametrize("kind", INPUTS)
def test_embedding_constraints_say_how_its_table_is_split(embed, features_of, filled, kind):
    limits = 'embedding_constraints { sharding_types: "column_wise" compute_kernels: "fused_uvm" }'
    text = filled(kind, feature(kind, f"{as_ids(kind)} embedding_dim: 4 {limits}") + group())
    module, _ = embed(text)
    constraints = read_constraints(module, features_of(text), TrainConfig())
    plan = create_plan(module, 2, 2, "cuda", constraints=constraints, batch_size=4, hbm_bytes=2**30, ddr_bytes=2**30)
    (table,) = (how for tables in plan.plan.values() for how in tables.values())
    assert (table.sharding_type, table.compute_kernel) == ("column_wise", "fused_uvm")


@pytest.mark.parametrize("kind", INPUTS)
def test_pooling_makes_one_vector_of_several_ids(table, kind):
    _, weight, output = table(kind, 'pooling: "mean"', [[1, 2], [3], []])
    expected = torch.stack([(weight[1] + weight[2]) / 2, weight[3], torch.zeros(3)])
    torch.testing.assert_close(output, expected)


@pytest.mark.parametrize(
    ("kind", "way"),
    [(kind, way) for way in ID_WAYS for kind in kinds_with(way)],
)
def test_each_way_to_make_ids_sizes_the_table(embed, filled, kind, way):
    settings, rows = ID_WAYS[way]
    module, _ = embed(filled(kind, feature(kind, f"{settings} embedding_dim: 3") + group()))
    assert [tuple(p.shape) for p in module.parameters()] == [(rows, 3)]


@pytest.mark.parametrize("kind", kinds_with("default_bucketize_value"))
def test_default_bucketize_value_keeps_no_rows_for_default_and_unseen_values(embed, kind):
    settings = 'vocab_list: ["x", "y", "z"] default_bucketize_value: 1 embedding_dim: 3'
    module, _ = embed(feature(kind, settings) + group())
    assert [tuple(p.shape) for p in module.parameters()] == [(3, 3)]


@pytest.mark.parametrize("kind", [k for k in kinds_with("value_dim") if k not in kinds_with("autodis")])
def test_value_dim_is_the_most_ids_of_a_row(features_of, kind):
    (found,) = features_of(feature(kind, f"{as_ids(kind)} embedding_dim: 4 value_dim: 2"))
    assert found.parse({"f": pa.array([[1, 2], [3]])}).lengths.tolist() == [2, 1]
    with pytest.raises(DataError, match="there are 3 ids, but value_dim is 2"):
        found.parse({"f": pa.array([[1, 2, 3]])})


# Numbers


@pytest.mark.parametrize("kind", kinds_with("value_dim", "autodis"))
def test_value_dim_is_how_many_numbers_a_row_has(features_of, kind):
    (found,) = features_of(feature(kind, "value_dim: 2"))
    assert found.parse({"f": pa.array([[1.5, 2.5], None])}).values.tolist() == [[1.5, 2.5], [0, 0]]


@pytest.mark.parametrize("kind", kinds_with("mlp"))
def test_mlp_embeds_the_number_by_a_linear_map(embed, kind):
    module, output = embed(feature(kind, "embedding_dim: 3 mlp {}") + group(), {"f": pa.array([2.0, -1.0])})
    (weight,) = module.parameters()
    torch.testing.assert_close(output["g"], torch.tensor([[2.0], [-1.0]]) * weight)


def autodis(x, proj_w, proj_m, meta, temperature, keep_prob):
    """Guo et al., KDD 2021, equations 4 to 7, for one number."""
    h = torch.nn.functional.leaky_relu(x * proj_w)
    return torch.softmax((proj_m @ h + keep_prob * h) / temperature, dim=0) @ meta


@pytest.mark.parametrize("kind", kinds_with("autodis"))
def test_autodis_embeds_the_number_as_a_mix(embed, kind):
    settings = "embedding_dim: 3 autodis { num_channels: 4 temperature: 2.0 keep_prob: 0.25 }"
    module, output = embed(feature(kind, settings) + group(), {"f": pa.array([0.7])})
    parts = {name.rpartition(".")[2]: p[0] for name, p in module.named_parameters()}
    expected = autodis(0.7, parts["proj_w"], parts["proj_m"], parts["meta_emb"], 2.0, 0.25)
    assert parts["proj_w"].shape == (4,)
    torch.testing.assert_close(output["g"][0], expected)


# What has no effect is refused


@pytest.mark.parametrize(
    "setting", ['pooling: "mean"', 'data_type: "FP16"', "trainable: false", 'init_fn: "nn.init.zeros_"']
)
@pytest.mark.parametrize("embedding", ["", "embedding_dim: 4 mlp {}"])
def test_what_only_a_table_has_is_refused_on_a_number_without_one(features_of, setting, embedding):
    with pytest.raises(ConfigError, match=rf"{setting.partition(':')[0]} has no effect"):
        features_of(feature("raw_feature", f"{setting} {embedding}"))


@pytest.mark.parametrize("kind", ["id_feature", "raw_feature"])
def test_sequence_fields_must_name_the_input(features_of, kind):
    sizes = as_ids(kind) + " embedding_dim: 4"
    with pytest.raises(ConfigError, match="sequence_fields 'd' is not one of its inputs"):
        features_of(feature(f"sequence_{kind}", f'{sizes} sequence_fields: "d"'))
