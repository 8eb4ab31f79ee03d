from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchrec import JaggedTensor, KeyedJaggedTensor, KeyedTensor
from torchrec.fx import Tracer

from tzrec_core.config import parse_config
from tzrec_core.data.batch import Batch
from tzrec_core.errors import ConfigError, DataError
from tzrec_core.features import create_features
from tzrec_core.modules.embedding_group import EmbeddingGroup
from tzrec_core.testing.golden import (
    assert_golden_parameters,
    assert_tensors,
    fill_parameters,
    golden_batch,
    load_golden,
)

GOLDENS = Path(__file__).parents[1] / "goldens"
CASES = ["embgroup_deep_wide", "embgroup_sequence"]

FEATURES = """
feature_configs { id_feature { feature_name: "a" expression: "user:a" num_buckets: 5 embedding_dim: 2 } }
feature_configs { id_feature { feature_name: "b" expression: "user:b" num_buckets: 5 embedding_dim: 2 pooling: "mean" } }
feature_configs { id_feature { feature_name: "one" expression: "item:one" num_buckets: 5 embedding_dim: 2 value_dim: 1 } }
feature_configs { raw_feature { feature_name: "r" expression: "user:r" value_dim: 2 } }
feature_configs { sequence_feature { sequence_name: "s" sequence_length: 9 sequence_delim: ";"
  features { id_feature { feature_name: "x" expression: "item:x" num_buckets: 5 embedding_dim: 2 } }
  features { id_feature { feature_name: "m" expression: "item:m" num_buckets: 5 embedding_dim: 2 value_dim: 0 } }
  features { raw_feature { feature_name: "p" expression: "item:p" } }
} }
feature_configs { sequence_id_feature { feature_name: "t" expression: "user:t" sequence_length: 9 num_buckets: 5 embedding_dim: 2 } }
"""  # noqa: E501


def build(groups: str, features: str = FEATURES, data: str = "", **kwargs) -> EmbeddingGroup:
    config = parse_config(f"data_config {{ {data} }} {features} model_config {{ {groups} }}", partial=True)
    created = create_features(config.feature_configs, config.data_config)
    return EmbeddingGroup(created, config.model_config.feature_groups, **kwargs)


def group(name: str, kind: str, features: str, more: str = "") -> str:
    names = " ".join(f'feature_names: "{feature}"' for feature in features.split())
    return f'feature_groups {{ group_name: "{name}" group_type: {kind} {names} {more} }}'


def ids(**columns) -> dict:
    """`{"__BASE__": ...}` of a golden's batch, from lists of rows of ids."""
    return {
        "__BASE__": {
            name: {"lengths": [len(row) for row in rows], "values": [v for row in rows for v in row]}
            for name, rows in columns.items()
        }
    }


def table(module: EmbeddingGroup, name: str) -> Tensor:
    found = {n: p for n, p in module.named_parameters() if f".{name}.weight" in n}
    assert len(found) == 1, found
    return next(iter(found.values())).detach()


def golden_module(golden, **kwargs) -> EmbeddingGroup:
    config = parse_config(golden["config_text"], partial=True)
    created = create_features(config.feature_configs, config.data_config)
    return EmbeddingGroup(created, config.model_config.feature_groups, **kwargs)


@pytest.mark.parametrize("case", CASES)
def test_computes_the_numbers_of_torcheasyrec(case):
    golden = load_golden(GOLDENS / f"{case}.json")
    module = golden_module(golden)
    assert_golden_parameters(module, golden)
    for block, ordered in (("output", False), ("output_ordered", True)):
        fill_parameters(module, ordered=ordered)
        assert_tensors(module(golden_batch(golden["batch"])), golden[block], f"{case} {block}")


@pytest.mark.parametrize("case", CASES)
def test_tells_the_widths_of_its_groups(case):
    golden = load_golden(GOLDENS / f"{case}.json")
    module = golden_module(golden)
    for name, expected in golden["group_dims"].items():
        assert module.group_dims(name) == expected["dims"]
        assert module.group_total_dim(name) == expected["total"]
        if "feature_dims" in expected:
            assert list(module.group_feature_dims(name).items()) == list(expected["feature_dims"].items())


@pytest.mark.parametrize("case", CASES)
def test_meta_device_leaves_the_tables_unmaterialised(case):
    golden = load_golden(GOLDENS / f"{case}.json")
    module = golden_module(golden, device=torch.device("meta"))
    assert_golden_parameters(module, golden)
    assert all(parameter.is_meta for parameter in module.parameters())


def test_torchs_default_device_reaches_every_parameter():
    features = FEATURES.replace('expression: "user:r" value_dim: 2', 'expression: "user:r" embedding_dim: 2 mlp {}')
    groups = 'sequence_groups { feature_names: "one" feature_names: "s__x" } '
    encoder = "sequence_encoders { din_encoder { attn_mlp { hidden_units: [3] } } }"
    with torch.device("meta"):
        module = build(group("d", "DEEP", "a r", groups + encoder), features)
    assert len(list(module.parameters())) == 8
    assert all(parameter.is_meta for parameter in module.parameters())
    assert all(ec.device.type == "meta" for ec in module.seq_emb_impls["__BASE__"].ec_dict.values())


def test_names_its_groups_and_what_it_emits():
    module = build(group("d", "DEEP", "a r") + group("q", "SEQUENCE", "one s__x") + group("j", "JAGGED_SEQUENCE", "t"))
    assert module.group_names() == ["d", "q", "j"]
    keys = ["d", "q.query", "q.sequence", "q.sequence_length", "j.sequence", "j.sequence_length"]
    assert module.grouped_features_keys() == keys
    present = ["d", "q", "q.query", "q.sequence", "j.sequence"]
    assert [name for name in [*present, "e", "d.query", "j.query"] if module.has_group(name)] == present


def test_asking_for_an_unknown_group_names_the_nearest():
    module = build(group("deep", "DEEP", "a") + group("hist", "SEQUENCE", "t"))
    with pytest.raises(ConfigError, match=r"'dep' is not a feature group.*Did you mean 'deep'"):
        module.group_dims("dep")
    with pytest.raises(ConfigError, match=r"'hist' is a sequence group: ask for 'hist.query' or 'hist.sequence'"):
        module.group_total_dim("hist")


def test_wide_tables_are_four_wide_unless_told_and_start_as_told():
    groups = group("w", "WIDE", "a", 'embedding_name_suffix: "v2"') + group("d", "DEEP", "a")
    assert build(groups).group_dims("w") == [4]
    assert build(groups, wide_embedding_dim=0).group_dims("w") == [4]
    module = build(groups, wide_embedding_dim=3, wide_init_fn="nn.init.constant_,val=0.5")
    assert torch.equal(table(module, "a_emb_wide_v2"), torch.full((5, 3), 0.5))
    assert not torch.equal(table(module, "a_emb"), torch.full((5, 2), 0.5))


def test_embedding_name_suffix_gives_a_group_tables_of_its_own():
    suffix = 'embedding_name_suffix: "v2"'
    module = build(
        group("d", "DEEP", "a")
        + group("e", "DEEP", "a b", suffix)
        + group("q", "SEQUENCE", "one s__x", suffix)
        + group("p", "SEQUENCE", "one s__x")
    )
    assert [name.split(".")[-2] for name, _ in module.named_parameters()] == [
        "a_emb", "a_emb_v2", "b_emb_v2", "one_emb_v2", "s__x_emb_v2", "one_emb", "s__x_emb",
    ]  # fmt: skip


def test_features_that_name_one_table_share_it_within_deep_and_within_sequence_groups():
    features = FEATURES.replace('feature_name: "x"', 'feature_name: "x" embedding_name: "shared"').replace(
        'feature_name: "one"', 'feature_name: "one" embedding_name: "shared"'
    )
    module = build(
        group("d", "DEEP", "one a") + group("q", "SEQUENCE", "one s__x") + group("p", "SEQUENCE", "s__x"),
        features,
    )
    assert [name for name, _ in module.named_parameters()] == [
        "emb_impls.__BASE__.ebc.embedding_bags.shared.weight",
        "emb_impls.__BASE__.ebc.embedding_bags.a_emb.weight",
        "seq_emb_impls.__BASE__.ec_dict.2.embeddings.shared.weight",
    ]
    batch = golden_batch({"sparse": ids(a=[[1]], one=[[3]], s__x=[[3, 0]])})
    outputs = module(batch)
    shared = module.get_parameter("seq_emb_impls.__BASE__.ec_dict.2.embeddings.shared.weight")
    assert torch.equal(outputs["q.query"], shared[[3]])
    assert torch.equal(outputs["q.sequence"][0], shared[[3, 0]])
    assert torch.equal(outputs["p.sequence"][0], shared[[3, 0]])


@pytest.mark.parametrize(
    ("mine", "yours", "words"),
    [
        ("num_buckets: 5", "num_buckets: 6", "num_embeddings 5 against 6"),
        ("embedding_dim: 2", "embedding_dim: 3", "embedding_dim 2 against 3"),
        ("", 'pooling: "mean"', "pooling 'sum' against 'mean'"),
        ("", "trainable: false", "trainable True against False"),
        ("", 'data_type: "FP16"', "data_type 'FP32' against 'FP16'"),
        (
            'init_fn: "nn.init.zeros_"',
            'init_fn: "nn.init.ones_"',
            "init_fn 'nn.init.zeros_' against 'nn.init.ones_'",
        ),
    ],
)
def test_features_that_share_a_table_and_differ_are_both_named(mine, yours, words):
    def feature(name: str, options: str) -> str:
        for field, default in (("num_buckets", 5), ("embedding_dim", 2)):
            options += "" if field in options else f" {field}: {default}"
        return (
            f'feature_configs {{ id_feature {{ feature_name: "{name}" expression: "user:{name}" '
            f'embedding_name: "shared" {options} }} }}'
        )

    with pytest.raises(ConfigError, match="'me' and 'you' share the embedding table 'shared'") as error:
        build(group("d", "DEEP", "me you"), feature("me", mine) + feature("you", yours))
    assert words in str(error.value)


def test_an_initialiser_set_on_one_user_of_a_shared_table_applies():
    features = FEATURES.replace('feature_name: "a"', 'feature_name: "a" embedding_name: "shared"').replace(
        'feature_name: "one"', 'feature_name: "one" embedding_name: "shared" init_fn: "nn.init.ones_"'
    )
    assert torch.equal(table(build(group("d", "DEEP", "a one"), features), "shared"), torch.ones(5, 2))


def test_weighted_ids_scale_their_vectors_and_mean_divides_by_their_number():
    features = FEATURES.replace('feature_name: "a"', 'feature_name: "a" weighted: true').replace(
        'feature_name: "b"', 'feature_name: "b" weighted: true'
    )
    module = build(group("d", "DEEP", "a b one") + group("q", "SEQUENCE", "a b s__x"), features)
    fill_parameters(module, ordered=True)
    columns = ids(a=[[1, 2], [], [3]], b=[[0, 4], [1], []], one=[[1], [2], [3]], s__x=[[1], [1], [1]])
    columns["__BASE__"]["a"]["weights"] = [0.5, 2.0, -1.0]
    columns["__BASE__"]["b"]["weights"] = [3.0, 1.0, 0.25]
    outputs = module(golden_batch({"sparse": columns}))
    for key, prefix in (("d", "emb_impls"), ("q.query", "seq_emb_impls")):
        weights = {n.split(".")[-2]: p.detach() for n, p in module.named_parameters() if n.startswith(prefix)}
        a, b = weights["a_emb"], weights["b_emb"]
        zero = torch.zeros(2)
        expected_a = torch.stack([0.5 * a[1] + 2 * a[2], zero, -a[3]])
        expected_b = torch.stack([(3 * b[0] + b[4]) / 2, 0.25 * b[1], zero])
        torch.testing.assert_close(outputs[key][:, :2], expected_a)
        torch.testing.assert_close(outputs[key][:, 2:4], expected_b)
    torch.testing.assert_close(outputs["d"][:, 4:], table(module, "one_emb")[[1, 2, 3]])


def test_numeric_embeddings_stand_in_the_groups_order():
    features = """
    feature_configs { raw_feature { feature_name: "u" expression: "user:u" embedding_dim: 3 mlp {} } }
    feature_configs { raw_feature { feature_name: "v" expression: "user:v" embedding_dim: 2 autodis { num_channels: 4 } } }
    feature_configs { raw_feature { feature_name: "w" expression: "user:w" } }
    feature_configs { id_feature { feature_name: "a" expression: "user:a" num_buckets: 5 embedding_dim: 2 } }
    """  # noqa: E501
    module = build(group("d", "DEEP", "w v a u") + group("e", "DEEP", "u"), features)
    assert module.group_feature_dims("d") == {"w": 1, "v": 2, "a": 2, "u": 3}
    assert [name.split(".")[2] for name, _ in module.named_parameters()] == ["ebc"] + ["dense_ec"] * 4
    fill_parameters(module, ordered=True)
    parameters = {tuple(p.shape): p.detach().double() for p in module.parameters()}
    dense = {"u": [[1.0], [-2.0]], "v": [[0.5], [-0.25]], "w": [[7.0], [8.0]]}
    outputs = module(golden_batch({"sparse": ids(a=[[1], [2, 3]]), "dense": {"__BASE__": dense}}))
    u = torch.tensor(dense["u"]).double() * parameters[1, 3]
    h = nn.functional.leaky_relu(torch.tensor(dense["v"]).double() * parameters[1, 4])
    mix = torch.softmax((h @ parameters[1, 4, 4][0].T + 0.8 * h) / 0.1, dim=1)
    a = parameters[5, 2]
    expected = torch.cat(
        [torch.tensor(dense["w"]), mix @ parameters[1, 4, 2][0], torch.stack([a[1], a[2] + a[3]]), u], dim=1
    )
    torch.testing.assert_close(outputs["d"], expected.float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(outputs["e"], u.float())


def encoded_group(encoders: str, groups: str) -> str:
    return group("d", "DEEP", "a r", groups + encoders)


def test_encoder_outputs_follow_the_plain_features_in_encoder_order():
    module = build(
        encoded_group(
            'sequence_encoders { pooling_encoder { input: "two" pooling_type: "sum" } } '
            'sequence_encoders { pooling_encoder { input: "one" } }',
            'sequence_groups { group_name: "one" feature_names: "one" feature_names: "s__x" '
            'feature_names: "s__p" } '
            'sequence_groups { group_name: "two" feature_names: "t" embedding_name_suffix: "v2" }',
        )
    )
    assert module.group_feature_dims("d") == {"a": 2, "r": 2, "d_seq_encoder_0": 2, "d_seq_encoder_1": 3}
    assert module.group_names() == ["d"] and module.grouped_features_keys() == ["d"]
    batch = {
        "sparse": ids(a=[[1], [2]], one=[[0], [1]], s__x=[[1, 2], []], t=[[4], [1, 1, 3]]),
        "dense": {"__BASE__": {"r": [[1.0, 2.0], [3.0, 4.0]]}},
        "sequence_dense": {"s__p": {"lengths": [2, 0], "values": [[1.0], [5.0]]}},
    }
    outputs = module(golden_batch(batch))
    assert list(outputs) == ["d"]
    a, x, t = table(module, "a_emb"), table(module, "s__x_emb"), table(module, "t_emb_v2")
    expected = torch.stack(
        [
            torch.cat([a[1], torch.tensor([1.0, 2.0]), t[4], (x[1] + x[2]) / 2, torch.tensor([3.0])]),
            torch.cat([a[2], torch.tensor([3.0, 4.0]), 2 * t[1] + t[3], torch.zeros(3)]),
        ]
    )  # fmt: skip
    torch.testing.assert_close(outputs["d"], expected)


def test_the_only_sequence_group_and_its_encoder_take_the_groups_name():
    encoder = "sequence_encoders { din_encoder { attn_mlp { hidden_units: [3] } } }"
    groups = 'sequence_groups { feature_names: "one" feature_names: "s__x" }'
    module = build(group("d", "DEEP", "", groups + encoder))
    assert module.group_feature_dims("d") == {"d_seq_encoder_0": 2}
    names = [name for name, _ in module.named_parameters()]
    assert names[:3] == [
        "seq_emb_impls.__BASE__.ec_dict.2.embeddings.one_emb.weight",
        "seq_emb_impls.__BASE__.ec_dict.2.embeddings.s__x_emb.weight",
        "_group_name_to_seq_encoders.d.0.mlp.mlp.0.perceptron.0.weight",
    ]
    outputs = module(golden_batch({"sparse": ids(one=[[1], [2]], s__x=[[3], []])}))
    torch.testing.assert_close(outputs["d"][0], table(module, "s__x_emb")[3])
    torch.testing.assert_close(outputs["d"][1], torch.zeros(2))


def test_sampled_items_have_their_own_rows_and_tables():
    features = """
    feature_configs { id_feature { feature_name: "u" expression: "user:u" num_buckets: 5 embedding_dim: 2 embedding_name: "e" } }
    feature_configs { id_feature { feature_name: "i" expression: "item:i" num_buckets: 5 embedding_dim: 2 embedding_name: "e" } }
    """  # noqa: E501
    sampler = 'negative_sampler { input_path: "x" num_sample: 1 attr_fields: "i" item_id_field: "i" }'
    module = build(group("user", "DEEP", "u") + group("item", "DEEP", "i"), features, sampler)
    assert [name.split(".")[1] for name, _ in module.named_parameters()] == ["__BASE__", "__NEG__"]
    sparse = {**ids(u=[[1], [2]]), "__NEG__": ids(i=[[0], [1], [4]])["__BASE__"]}
    outputs = module(golden_batch({"sparse": sparse}))
    assert outputs["user"].shape == (2, 2) and outputs["item"].shape == (3, 2)
    with pytest.raises(ConfigError, match="two data groups, __BASE__: u and __NEG__: i"):
        build(group("both", "DEEP", "u i"), features, sampler)


def test_single_value_query_takes_the_first_id_and_zeros_without_one():
    module = build(group("q", "SEQUENCE", "one t"))
    outputs = module(golden_batch({"sparse": ids(one=[[2, 3], [], [4]], t=[[1], [1], [1]])}))
    one = table(module, "one_emb")
    torch.testing.assert_close(outputs["q.query"], torch.stack([one[2], torch.zeros(2), one[4]]))


def test_padding_goes_to_the_longest_row_of_the_first_sequence_feature():
    module = build(group("short", "SEQUENCE", "t s__x") + group("long", "SEQUENCE", "s__x t"))
    outputs = module(golden_batch({"sparse": ids(t=[[1], [2]], s__x=[[0, 1, 2], []])}))
    assert outputs["short.sequence"].shape == (2, 1, 4) and outputs["long.sequence"].shape == (2, 3, 4)
    assert outputs["short.sequence_length"].tolist() == [1, 1]
    assert outputs["long.sequence_length"].tolist() == [3, 0]
    x, t = table(module, "s__x_emb"), table(module, "t_emb")
    torch.testing.assert_close(outputs["short.sequence"][0, 0], torch.cat([t[1], x[0]]))
    torch.testing.assert_close(outputs["long.sequence"][0, 1:], torch.cat([x[[1, 2]], torch.zeros(2, 2)], dim=1))


EMPTY_GROUPS = (
    group("d", "DEEP", "a b") + group("q", "SEQUENCE", "a one s__x s__m s__p") + group("j", "JAGGED_SEQUENCE", "t")
)


@pytest.mark.parametrize("num_rows", [1, 3])
def test_rows_and_batches_without_any_id_work_forward_and_backward(num_rows):
    module = build(EMPTY_GROUPS)
    rows = [[] for _ in range(num_rows)]
    batch = {
        "sparse": ids(a=rows, b=rows, one=rows, s__x=rows, s__m=rows, t=rows),
        "sequence_dense": {"s__p": {"lengths": [0] * num_rows, "values": []}},
        "sequence_mulval_lengths": {"__BASE__": {"s__m": {"key_lengths": [], "seq_lengths": [0] * num_rows}}},
    }
    outputs = module(golden_batch(batch))
    shapes = {key: tuple(value.shape) for key, value in outputs.items()}
    assert shapes == {
        "d": (num_rows, 4),
        "q.query": (num_rows, 4),
        "q.sequence": (num_rows, 0, 5),
        "q.sequence_length": (num_rows,),
        "j.sequence": (0, 2),
        "j.sequence_length": (num_rows,),
    }
    sum(value.sum() for value in outputs.values()).backward()
    assert not outputs["d"].any() and not outputs["q.query"].any()


def test_jagged_features_with_different_numbers_of_steps_are_named():
    module = build(group("j", "JAGGED_SEQUENCE", "t s__x"))
    with pytest.raises(DataError, match="different numbers of steps in this batch: t 2, s__x 1"):
        module(golden_batch({"sparse": ids(t=[[1, 2]], s__x=[[1]])}))


def test_frozen_tables_get_no_gradient_and_are_told_apart():
    features = FEATURES.replace('feature_name: "a"', 'feature_name: "a" trainable: false').replace(
        'feature_name: "x"', 'feature_name: "x" trainable: false'
    )
    module = build(group("d", "DEEP", "a b") + group("q", "SEQUENCE", "one s__x"), features)
    names = {id(parameter): name.split(".")[-2] for name, parameter in module.named_parameters()}
    trainable, frozen = module.sparse_parameters()
    assert [names[id(p)] for p in trainable] == ["b_emb", "one_emb"]
    assert [names[id(p)] for p in frozen] == ["a_emb", "s__x_emb"]
    outputs = module(golden_batch({"sparse": ids(a=[[1]], b=[[1]], one=[[1]], s__x=[[1]])}))
    sum(value.sum() for value in outputs.values()).backward()
    assert all(p.grad is None for p in frozen) and all(p.grad is not None for p in trainable)


def test_a_sequence_of_ids_in_a_deep_group_is_pooled_over_its_steps():
    module = build(group("d", "DEEP", "t"))
    outputs = module(golden_batch({"sparse": ids(t=[[1, 2], []])}))
    t = table(module, "t_emb")
    torch.testing.assert_close(outputs["d"], torch.stack([t[1] + t[2], torch.zeros(2)]))


MISTAKES = {
    "unknown feature": (group("d", "DEEP", "a bb"), "'bb' is not a feature. Did you mean 'b'?"),
    "twice": (group("d", "DEEP", "a a"), "lists 'a' 2 times"),
    "group twice": (group("d", "DEEP", "a") + group("d", "DEEP", "b"), "2 groups are called 'd'"),
    "no features": (group("d", "DEEP", ""), "has no features"),
    "dot": (group("d.e", "DEEP", "a"), "cannot have a dot"),
    "wide dense": (group("w", "WIDE", "a r"), "takes ids only, but 'r' is dense"),
    "deep steps of numbers": (group("d", "DEEP", "s__p"), "'s__p' is a sequence of numbers"),
    "sequence without steps": (group("q", "SEQUENCE", "a"), "has no sequence feature"),
    "sequence with groups": (
        group("q", "SEQUENCE", "t", 'sequence_groups { feature_names: "t" }'),
        "only a DEEP group",
    ),
    "no encoder": (
        group("d", "DEEP", "a", 'sequence_groups { group_name: "h" feature_names: "t" }'),
        "sequence group 'h' has no encoder",
    ),
    "encoder of nothing": (
        group(
            "d",
            "DEEP",
            "a",
            'sequence_groups { group_name: "hist" feature_names: "t" } '
            'sequence_encoders { pooling_encoder { input: "hit" } }',
        ),
        "input 'hit' is not a sequence group. They are: hist. Did you mean 'hist'?",
    ),
    "unnamed groups": (
        group(
            "d",
            "DEEP",
            "a",
            'sequence_groups { feature_names: "t" } sequence_groups { feature_names: "s__x" }',
        ),
        "each needs a group_name",
    ),
    "unknown step feature": (
        group(
            "d",
            "DEEP",
            "a",
            'sequence_groups { feature_names: "s__xx" } sequence_encoders { pooling_encoder { input: "d" } }',
        ),
        "'s__xx' is not a feature. Did you mean 's__x'?",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_group_is_named(mistake):
    groups, words = MISTAKES[mistake]
    with pytest.raises(ConfigError) as error:
        build(groups)
    assert words in str(error.value)


def test_all_mistakes_of_the_groups_come_at_once():
    with pytest.raises(ConfigError) as error:
        build(group("d", "DEEP", "a zzz") + group("w", "WIDE", "r") + group("q", "SEQUENCE", "b"))
    assert len(error.value.problems) == 3


@pytest.mark.parametrize(
    ("feature", "words"),
    [
        (
            'id_feature { feature_name: "f" expression: "u:f" embedding_dim: 2 zch { zch_size: 9 lfu {} } }',
            "zch",
        ),
        ('raw_feature { feature_name: "f" expression: "user:f" stub_type: true }', "stub_type"),
    ],
)
def test_features_that_cannot_stand_in_a_group_are_refused(feature, words):
    with pytest.raises(ConfigError, match=f"(?s){words}.*'f'|'f'.*{words}"):
        build(group("d", "DEEP", "f"), f"feature_configs {{ {feature} }}")


def test_numeric_embeddings_of_steps_are_refused_for_now():
    features = FEATURES.replace('expression: "item:p"', 'expression: "item:p" embedding_dim: 2 mlp {}')
    with pytest.raises(ConfigError, match="not supported yet: autodis or mlp of feature 's__p'"):
        build(group("q", "SEQUENCE", "s__x s__p"), features)


class FromTensors(nn.Module):
    """An EmbeddingGroup over flat tensors, as serving calls it."""

    def __init__(self, embedding_group: EmbeddingGroup, batch: Batch) -> None:
        super().__init__()
        self.embedding_group = embedding_group
        self.sparse = batch.sparse_features["__BASE__"].keys()
        self.weighted = batch.sparse_features["__BASE__"].weights_or_none() is not None
        self.dense = [(keyed.keys(), keyed.length_per_key()) for keyed in batch.dense_features.values()]
        self.sequence_dense = list(batch.sequence_dense_features)
        self.multi_value = [key for keyed in batch.sequence_mulval_lengths.values() for key in list(keyed.keys())]

    def forward(self, data: dict[str, Tensor]) -> dict[str, Tensor]:
        def column(suffix: str, names: list[str]) -> Tensor:
            return torch.cat([data[f"{name}.{suffix}"] for name in names])

        sparse = KeyedJaggedTensor(
            keys=self.sparse,
            values=column("values", self.sparse),
            lengths=column("lengths", self.sparse),
            weights=column("weights", self.sparse) if self.weighted else None,
        )
        multi_value = {}
        if self.multi_value:
            lengths = column("seq_lengths", self.multi_value)
            values = column("key_lengths", self.multi_value)
            multi_value["__BASE__"] = KeyedJaggedTensor(keys=self.multi_value, values=values, lengths=lengths)
        dense = {}
        for keys, widths in self.dense:
            values = torch.cat([data[f"{key}.values"] for key in keys], dim=1)
            dense["__BASE__"] = KeyedTensor(keys=keys, length_per_key=widths, values=values)
        steps = {
            name: JaggedTensor(data[f"{name}.values"], lengths=data[f"{name}.lengths"]) for name in self.sequence_dense
        }
        return self.embedding_group(
            Batch(
                sparse_features={"__BASE__": sparse},
                dense_features=dense,
                sequence_dense_features=steps,
                sequence_mulval_lengths=multi_value,
            )
        )


def flat_tensors(batch: Batch) -> dict[str, Tensor]:
    lengths = {f"{k}.lengths": v.lengths() for k, v in batch.sparse_features["__BASE__"].to_dict().items()}
    return {k: v for k, v in {**lengths, **batch.to_dict()}.items() if "." in k}


def assert_scripts(module: EmbeddingGroup, batch: Batch) -> None:
    wrapped = FromTensors(module, batch)
    graph = Tracer(leaf_modules=["EmbeddingBagCollection", "EmbeddingCollection"]).trace(wrapped)
    scripted = torch.jit.script(torch.fx.GraphModule(wrapped, graph))
    expected, actual = module(batch), scripted(flat_tensors(batch))
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(actual[key], value, rtol=0, atol=0)


@pytest.mark.parametrize("case", CASES)
def test_traces_and_scripts(case):
    golden = load_golden(GOLDENS / f"{case}.json")
    assert_scripts(golden_module(golden), golden_batch(golden["batch"]))


def test_traces_and_scripts_with_weights_and_encoders():
    features = FEATURES.replace('feature_name: "b"', 'feature_name: "b" weighted: true')
    groups = 'sequence_groups { feature_names: "one" feature_names: "s__x" } '
    encoder = "sequence_encoders { simple_attention {} }"
    module = build(group("d", "DEEP", "a b", groups + encoder), features)
    columns = ids(a=[[1, 2], []], b=[[0, 4], [1]], one=[[1], [2]], s__x=[[1, 3], [1]])
    columns["__BASE__"]["b"]["weights"] = [3.0, 1.0, 0.25]
    assert_scripts(module, golden_batch({"sparse": columns}))


@pytest.mark.parametrize("rows", [10**15, 4 * 10**18])
@pytest.mark.parametrize("feature", ["id_feature", "sequence_id_feature"])
def test_a_table_beyond_memory_is_named_with_its_size(rows, feature):
    kind = "DEEP" if feature == "id_feature" else "SEQUENCE"
    large = (
        f'feature_configs {{ {feature} {{ feature_name: "huge" expression: "user:h" hash_bucket_size: {rows} '
        "embedding_dim: 16 } }"
    )
    with pytest.raises(ConfigError, match=rf"largest is 'huge_emb' of feature 'huge': {rows} rows x 16 = .* GiB"):
        build(group("g", kind, "huge"), FEATURES + large, device=torch.device("cpu"))
