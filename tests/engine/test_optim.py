import logging

import pytest
import torch
from google.protobuf import text_format

from tzrec_core.config import config_to_kwargs, parse_config
from tzrec_core.engine.optim import build_optimizers
from tzrec_core.engine.setup import build
from tzrec_core.errors import ConfigError
from tzrec_core.protos.train_pb2 import TrainConfig


def train_config(sparse: str = "sgd_optimizer { lr: 0.1 }", dense: str = "sgd_optimizer { lr: 0.1 }") -> TrainConfig:
    text = f"sparse_optimizer {{ {sparse} }} dense_optimizer {{ {dense} }}"
    return text_format.Parse(text, TrainConfig())


def approx(**values: float) -> dict:
    return {k: v if isinstance(v, bool | str) else pytest.approx(v) for k, v in values.items()}


@pytest.mark.parametrize(
    ("dense", "expected"),
    [
        (
            "sgd_optimizer { lr: 0.3 momentum: 0.5 weight_decay: 0.1 nesterov: true }",
            approx(lr=0.3, momentum=0.5, weight_decay=0.1, nesterov=True, dampening=0.0),
        ),
        ("sgd_optimizer { lr: 0.3 dampening: 0.25 }", approx(lr=0.3, momentum=0.9, dampening=0.25, nesterov=False)),
        (
            "adagrad_optimizer { lr: 0.3 weight_decay: 0.1 initial_accumulator_value: 0.2 eps: 0.01 }",
            approx(lr=0.3, weight_decay=0.1, initial_accumulator_value=0.2, eps=0.01),
        ),
        (
            "adam_optimizer { lr: 0.3 beta1: 0.8 beta2: 0.9 weight_decay: 0.1 eps: 0.01 amsgrad: true }",
            {**approx(lr=0.3, weight_decay=0.1, eps=0.01, amsgrad=True), "betas": pytest.approx((0.8, 0.9))},
        ),
        (
            "adamw_optimizer { lr: 0.3 beta1: 0.8 beta2: 0.9 weight_decay: 0.1 eps: 0.01 amsgrad: true fused: true }",
            {**approx(lr=0.3, weight_decay=0.1, eps=0.01, fused=True), "betas": pytest.approx((0.8, 0.9))},
        ),
        ("adamw_optimizer { lr: 0.3 }", approx(lr=0.3, weight_decay=0.0, eps=1e-8)),
        (
            "adadelta_optimizer { lr: 0.3 rho: 0.7 eps: 0.01 weight_decay: 0.1 }",
            approx(lr=0.3, rho=0.7, eps=0.01, weight_decay=0.1),
        ),
        (
            "rmsprop_optimizer { lr: 0.3 alpha: 0.7 eps: 0.01 weight_decay: 0.1 }",
            approx(lr=0.3, alpha=0.7, eps=0.01, weight_decay=0.1),
        ),
    ],
)
def test_every_setting_of_a_dense_optimizer_reaches_torch(config, dense, expected):
    wanted = train_config(dense=dense)
    optimizer = build_optimizers(wanted, build(config()).model)["dense"]
    assert type(optimizer).__name__.lower() == wanted.dense_optimizer.WhichOneof("optimizer").split("_")[0]
    (group,) = optimizer.param_groups
    assert {key: group[key] for key in expected} == expected
    settings = config_to_kwargs(getattr(wanted.dense_optimizer, wanted.dense_optimizer.WhichOneof("optimizer")))
    assert set(settings) - {"beta1", "beta2"} <= set(group)


def test_an_unset_fused_leaves_the_choice_of_the_loop_to_torch(config):
    (group,) = build_optimizers(train_config(), build(config()).model)["dense"].param_groups
    assert group["fused"] is None


def test_tables_go_to_the_sparse_optimizer_and_everything_else_to_the_dense_one(config):
    model = build(config()).model
    optimizers = build_optimizers(train_config(), model)
    parts = {part: {id(p) for g in o.param_groups for p in g["params"]} for part, o in optimizers.items()}
    names = {part: sorted(n for n, p in model.named_parameters() if id(p) in ids) for part, ids in parts.items()}
    assert names == {
        "sparse": [
            "embedding_group.emb_impls.__BASE__.ebc.embedding_bags.item_emb.weight",
            "embedding_group.emb_impls.__BASE__.ebc.embedding_bags.user_emb.weight",
        ],
        "dense": ["hidden.bias", "hidden.weight", "norm.bias", "norm.weight", "output.bias", "output.weight"],
    }


def test_a_frozen_table_is_in_no_optimizer_and_a_part_without_parameters_has_none(config):
    frozen = "feature_configs[0].id_feature.trainable=false"
    model = build(config(frozen)).model
    optimizers = build_optimizers(train_config(), model)
    held = {id(p) for o in optimizers.values() for g in o.param_groups for p in g["params"]}
    bags = model.embedding_group.emb_impls["__BASE__"].ebc.embedding_bags
    assert id(bags["user_emb"].weight) not in held
    assert id(bags["item_emb"].weight) in held
    both = [frozen, "feature_configs[1].id_feature.trainable=false"]
    assert set(build_optimizers(train_config(), build(config(*both)).model)) == {"dense"}


def test_clipping_clamps_each_gradient_of_a_lookup_before_rows_are_summed_as_fbgemm_does(config):
    training = pytest.importorskip("fbgemm_gpu.split_table_batched_embeddings_ops_training")
    common = pytest.importorskip("fbgemm_gpu.split_table_batched_embeddings_ops_common")
    from fbgemm_gpu.split_embedding_configs import EmbOptimType

    fused = training.SplitTableBatchedEmbeddingBagsCodegen(
        [(20, 4, common.EmbeddingLocation.HOST, training.ComputeDevice.CPU)],
        optimizer=EmbOptimType.EXACT_SGD,
        learning_rate=0.1,
        pooling_mode=common.PoolingMode.SUM,
        gradient_clipping=True,
        max_gradient=0.5,
    )
    model = build(config()).model
    clipped = train_config(sparse="sgd_optimizer { lr: 0.1 gradient_clipping: true max_gradient: 0.5 }")
    optimizer = build_optimizers(clipped, model)["sparse"]
    bag = model.embedding_group.emb_impls["__BASE__"].ebc.embedding_bags["user_emb"]
    fused.split_embedding_weights()[0].copy_(bag.weight.detach())
    ids, offsets = torch.tensor([0, 1, 1, 3]), torch.tensor([0, 2, 4])
    gradient = torch.tensor([[3.0, -0.2, 0.5, 0.1], [2.0, -0.4, -0.6, 0.9]])
    fused(ids, offsets).backward(gradient)
    bag(ids, offsets).backward(gradient)
    before = bag.weight.detach().clone()
    optimizer.step()
    torch.testing.assert_close(bag.weight.detach(), fused.split_embedding_weights()[0])
    assert (before - bag.weight)[1].tolist() == pytest.approx([0.1, -0.06, 0.0, 0.06], abs=1e-6)


def test_a_lookup_in_evaluation_is_not_disturbed_by_clipping(config):
    model = build(config()).model
    build_optimizers(train_config(sparse="sgd_optimizer { lr: 0.1 gradient_clipping: true }"), model)
    bag = model.embedding_group.emb_impls["__BASE__"].ebc.embedding_bags["user_emb"]
    with torch.no_grad():
        assert bag(torch.tensor([1]), torch.tensor([0, 1])).shape == (1, 4)


@pytest.mark.parametrize(
    ("part", "settings", "words"),
    [
        (
            "sparse",
            "lamb_optimizer { lr: 0.1 }",
            r"sparse_optimizer\.lamb_optimizer is not supported yet; use one of .*adam",
        ),
        ("sparse", "sgd_optimizer { lr: -1 }", r"sparse_optimizer\.sgd_optimizer\.lr = -1"),
        ("sparse", "", r"train_config\.sparse_optimizer is empty; write one, such as"),
        ("dense", "", r"train_config\.dense_optimizer is empty; write one, such as"),
        ("dense", "adam_optimizer { lr: -1 }", r"dense_optimizer\.adam_optimizer: Invalid learning rate: -1"),
        (
            "dense",
            "sgd_optimizer { lr: 1 nesterov: true momentum: 0 }",
            r"dense_optimizer\.sgd_optimizer: Nesterov momentum requires a momentum",
        ),
    ],
)
def test_what_cannot_be_built_is_refused_with_its_place(config, part, settings, words):
    with pytest.raises(ConfigError, match=words):
        build_optimizers(train_config(**{part: settings}), build(config()).model)


def test_schedules_and_optimizers_without_a_rule_are_refused_before_anything_is_built(config):
    text = str(config())
    changes = [
        "train_config.sparse_optimizer.lars_sgd_optimizer={lr: 0.1}",
        "train_config.dense_optimizer.cosine_annealing_learning_rate={T_max: 10}",
    ]
    with pytest.raises(ConfigError, match=r"lars_sgd_optimizer: not supported yet(.|\n)*schedules are not supported"):
        parse_config(text, overrides=changes, validate=True)


def test_weight_decay_without_a_mode_is_said_to_do_nothing(config, caplog):
    wanted = train_config(sparse="rowwise_adagrad_optimizer { lr: 0.1 weight_decay: 0.1 }")
    with caplog.at_level(logging.WARNING):
        build_optimizers(wanted, build(config()).model)
    assert "weight_decay is not applied: weight_decay_mode is NONE; set it to L2 or DECOUPLE" in caplog.text
