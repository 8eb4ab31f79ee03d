import copy
import json
import logging
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
import torch
from google.protobuf import text_format
from torchrec import KeyedJaggedTensor, KeyedTensor
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.types import ParameterConstraints

sys.path.insert(0, str(Path(__file__).parent))
from ranks import run_ranks

from tzrec_core.config import config_to_kwargs, parse_config
from tzrec_core.data.batch import Batch
from tzrec_core.engine.optim import TrainOptimizer, check_processes, fuse_sparse_optimizer, is_fused
from tzrec_core.engine.world import World, join_world, leave_world
from tzrec_core.errors import ConfigError
from tzrec_core.features import create_features
from tzrec_core.models import TrainWrapper, create_model
from tzrec_core.protos.train_pb2 import TrainConfig

TABLE = "model.embedding_group.emb_impls.__BASE__.ebc.embedding_bags.user_emb.weight"
ITEM = TABLE.replace("user_emb", "item_emb")
FUSED = ["sgd_optimizer { lr: 0.1 %s}", "adagrad_optimizer { lr: 0.1 %s}", "rowwise_adagrad_optimizer { lr: 0.1 %s}"]
SGD = "sgd_optimizer { lr: 0.1 momentum: 0 }"


@pytest.fixture(scope="module", autouse=True)
def _one_process() -> Iterator[None]:
    join_world()
    yield
    leave_world()


def train_config(sparse: str = "sgd_optimizer { lr: 0.1 }", dense: str = SGD, more: str = "") -> TrainConfig:
    text = f"sparse_optimizer {{ {sparse} }} dense_optimizer {{ {dense} }} {more}"
    return text_format.Parse(text, TrainConfig())


def start(
    config: Any, wanted: TrainConfig, *, lazy: bool | None = None, world: World | None = None
) -> tuple[DistributedModelParallel, TrainOptimizer]:
    """The model of a config, with fixed parameters, and its optimizer; `lazy` forces one way or the other."""
    world = world or join_world()
    features = create_features(config.feature_configs, config.data_config)
    wrapper = TrainWrapper(
        create_model(config.model_config, features, ["click"]), torch.device("cpu"), wanted.mixed_precision
    )
    fused = is_fused(wanted, "cpu") if lazy is None else not lazy
    sharders: list[Any] = []
    if fused:
        fuse_sparse_optimizer(wanted, wrapper.model)
        sharders = [EmbeddingBagCollectionSharder()]
    only = ParameterConstraints(compute_kernels=["fused"], sharding_types=["table_wise"])
    planner = EmbeddingShardingPlanner(
        topology=Topology(world_size=world.size, compute_device="cpu"),
        constraints={"user_emb": only, "item_emb": only},
    )
    plan = planner.collective_plan(wrapper, sharders, torch.distributed.group.WORLD)
    model = DistributedModelParallel(
        wrapper, device=world.device, plan=plan, sharders=sharders, init_data_parallel=world.size > 1
    )
    with torch.no_grad():
        for name, value in tensors_of(model).items():
            if value.is_floating_point() and "running" not in name:
                value.copy_(
                    torch.rand(value.shape, generator=torch.Generator().manual_seed(crc32(name.encode()))) - 0.5
                )
    model.train()
    return model, TrainOptimizer(wanted, model, is_fused=fused)


def tensors_of(model: DistributedModelParallel) -> dict[str, torch.Tensor]:
    """All that a rank holds of parameters and buffers, by name."""
    found = {}
    for name, value in model.state_dict().items():
        if not isinstance(value, torch.Tensor) or hasattr(value, "local_shards"):
            for shard in value.local_shards():
                found[name] = shard.tensor
        else:
            found[name] = value
    return found


def snapshot(model: DistributedModelParallel) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in tensors_of(model).items()}


def plain(value: Any) -> torch.Tensor:
    return value.local_shards()[0].tensor if hasattr(value, "local_shards") else value


def batch(seed: int, rows: int = 8) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.cat(
        [torch.randint(0, 20, (rows,), generator=generator), torch.randint(0, 10, (rows,), generator=generator)]
    )
    return Batch(
        dense_features={"__BASE__": KeyedTensor(["price"], [1], torch.rand(rows, 1, generator=generator))},
        sparse_features={
            "__BASE__": KeyedJaggedTensor(["user", "item"], ids, lengths=torch.ones(2 * rows, dtype=torch.int32))
        },
        labels={"click": torch.randint(0, 2, (rows,), generator=generator)},
    )


def part_of(whole: Batch, rows: slice) -> Batch:
    ids = {key: value.values()[rows] for key, value in whole.sparse_features["__BASE__"].to_dict().items()}
    num_rows = len(next(iter(ids.values())))
    return Batch(
        dense_features={"__BASE__": KeyedTensor(["price"], [1], whole.dense_features["__BASE__"].values()[rows])},
        sparse_features={
            "__BASE__": KeyedJaggedTensor(
                list(ids), torch.cat(list(ids.values())), lengths=torch.ones(2 * num_rows, dtype=torch.int32)
            )
        },
        labels={"click": whole.labels["click"][rows]},
    )


def run(model: DistributedModelParallel, optimizer: TrainOptimizer, batches: list[Batch], scale: float = 1.0) -> None:
    for one in batches:
        optimizer.zero_grad()
        loss, _ = model(one)
        optimizer.backward(loss * scale)
        optimizer.step()


def gradients(model: DistributedModelParallel) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if getattr(p, "grad", None) is not None}


def approx(**values: float) -> dict:
    return {k: v if isinstance(v, bool | str) else pytest.approx(v) for k, v in values.items()}


def parts(optimizer: TrainOptimizer) -> dict[str, Any]:
    return {part.name: part for part in optimizer._parts}


# --- which optimizer runs where


@pytest.mark.parametrize(
    ("sparse", "on_cpu", "on_cuda"),
    [
        ("sgd_optimizer { lr: 1 gradient_clipping: true }", True, True),
        ("adagrad_optimizer { lr: 1 initial_accumulator_value: 0.5 }", True, True),
        ("rowwise_adagrad_optimizer { lr: 1 }", True, True),
        ("rowwise_adagrad_optimizer { lr: 1 weight_decay: 0.1 }", True, True),
        ("rowwise_adagrad_optimizer { lr: 1 weight_decay: 0.1 weight_decay_mode: L2 }", False, True),
        ("rowwise_adagrad_optimizer { lr: 1 weight_decay: 0.1 weight_decay_mode: DECOUPLE }", False, True),
        ("adam_optimizer { lr: 1 }", False, True),
        ("partial_rowwise_adam_optimizer { lr: 1 }", False, True),
        ("lamb_optimizer { lr: 1 }", False, True),
        ("partial_rowwise_lamb_optimizer { lr: 1 }", False, True),
        ("lars_sgd_optimizer { lr: 1 }", False, False),
        ("adadelta_optimizer { lr: 1 }", False, False),
        ("rmsprop_optimizer { lr: 1 }", False, False),
    ],
)
def test_tables_are_fused_where_fbgemm_does_every_setting_and_else_need_one_process(sparse, on_cpu, on_cuda):
    wanted = train_config(sparse)
    assert (is_fused(wanted, "cpu"), is_fused(wanted, "cuda")) == (on_cpu, on_cuda)
    for device, fused in (("cpu", on_cpu), ("cuda", on_cuda)):
        check_processes(wanted, device, 1)
        if fused:
            check_processes(wanted, device, 2)
        else:
            with pytest.raises(ConfigError, match=r"train_config\.sparse_optimizer\.\w+.* one process only.* has 2"):
                check_processes(wanted, device, 2)


def test_the_refusal_of_more_processes_names_the_setting_and_what_works():
    decay = "rowwise_adagrad_optimizer { lr: 1 weight_decay: 0.1 weight_decay_mode: L2 }"
    with pytest.raises(ConfigError, match="rowwise_adagrad_optimizer with weight_decay_mode L2 runs on one process"):
        check_processes(train_config(decay), "cpu", 4)
    works = "Use sgd_optimizer, adagrad_optimizer or rowwise_adagrad_optimizer without weight_decay, or train on CUDA"
    with pytest.raises(ConfigError, match=works):
        check_processes(train_config("adam_optimizer { lr: 1 }"), "cpu", 4)
    with pytest.raises(ConfigError, match=r"Use sgd_optimizer, .*lamb_optimizer.*, or start one process"):
        check_processes(train_config("rmsprop_optimizer { lr: 1 }"), "cuda", 4)


@pytest.mark.parametrize(
    ("sparse", "class_name", "expected"),
    [
        ("sgd_optimizer { lr: 0.5 gradient_clipping: true max_gradient: 0.25 }", "SGD",
         {"lr": 0.5, "gradient_clipping": True, "max_gradient": 0.25, "weight_decay": 0.0}),
        ("adagrad_optimizer { lr: 0.5 initial_accumulator_value: 2 }", "Adagrad", {"lr": 0.5, "eps": 1e-8}),
        ("rowwise_adagrad_optimizer { lr: 0.5 weight_decay: 0.25 weight_decay_mode: DECOUPLE }", "RowWiseAdagrad",
         {"lr": 0.5, "weight_decay": 0.25, "weight_decay_mode": "DECOUPLE", "eps": 1e-8}),
        ("adam_optimizer { lr: 0.5 beta1: 0.25 beta2: 0.75 weight_decay: 0.125 }", "Adam",
         {"lr": 0.5, "beta1": 0.25, "beta2": 0.75, "weight_decay": 0.125}),
        ("partial_rowwise_adam_optimizer { lr: 0.5 beta1: 0.25 beta2: 0.75 weight_decay: 0.125 }", "PartialRowWiseAdam",
         {"lr": 0.5, "beta1": 0.25, "beta2": 0.75, "weight_decay": 0.125}),
        ("lamb_optimizer { lr: 0.5 beta1: 0.25 beta2: 0.75 weight_decay: 0.125 }", "LAMB",
         {"lr": 0.5, "beta1": 0.25, "beta2": 0.75, "weight_decay": 0.125}),
        ("partial_rowwise_lamb_optimizer { lr: 0.5 beta1: 0.25 beta2: 0.75 weight_decay: 0.125 }", "PartialRowWiseLAMB",
         {"lr": 0.5, "beta1": 0.25, "beta2": 0.75, "weight_decay": 0.125}),
    ],
)  # fmt: skip
def test_every_setting_of_a_fused_optimizer_reaches_a_parameter_of_fbgemm(config, sparse, class_name, expected):
    import inspect

    from fbgemm_gpu.split_table_batched_embeddings_ops_training import SplitTableBatchedEmbeddingBagsCodegen

    made = config()
    features = create_features(made.feature_configs, made.data_config)
    model = create_model(made.model_config, features, ["click"], device="meta")
    fuse_sparse_optimizer(train_config(sparse), model)
    (table, _), _ = model.sparse_parameters()
    (optimizer_class,), (kwargs,) = table._optimizer_classes, table._optimizer_kwargs
    assert optimizer_class.__name__ == class_name
    assert {key: getattr(kwargs[key], "name", kwargs[key]) for key in expected} == expected
    known = inspect.signature(SplitTableBatchedEmbeddingBagsCodegen.__init__).parameters
    assert set(kwargs) - {"lr"} <= set(known)


# --- tables: fused and lazy


@pytest.mark.parametrize("more", ["", "gradient_clipping: true max_gradient: 0.002 "])
@pytest.mark.parametrize("sparse", FUSED)
def test_fused_and_lazy_tables_go_the_same_way_step_by_step(config, sparse, more):
    wanted = train_config(sparse % more)
    (fused, left), (lazy, right) = start(config(), wanted), start(config(), wanted, lazy=True)
    for seed in range(4):
        run(fused, left, [batch(seed)])
        run(lazy, right, [batch(seed)])
        a, b = snapshot(fused), snapshot(lazy)
        assert list(a) == list(b)
        for name in a:
            torch.testing.assert_close(a[name], b[name], msg=name)
    assert set(left.tensors()) == set(right.tensors())
    for name, value in left.tensors().items():
        torch.testing.assert_close(plain(value), right.tensors()[name], msg=name)


def test_clipping_of_tables_is_felt(config):
    moved = []
    for more in ("", "gradient_clipping: true max_gradient: 0.002 "):
        model, optimizer = start(config(), train_config(FUSED[0] % more))
        before = snapshot(model)[TABLE]
        run(model, optimizer, [batch(1)])
        moved.append((snapshot(model)[TABLE] - before).abs().max())
    assert moved[1] < moved[0] / 2


def test_a_fused_adagrad_starts_at_its_initial_accumulator_value(config):
    wanted = train_config("adagrad_optimizer { lr: 0.1 initial_accumulator_value: 0.5 }")
    (fused, left), (lazy, right) = start(config(), wanted), start(config(), wanted, lazy=True)
    assert plain(left.tensors()[f"state.{TABLE}.user_emb.momentum1"]).unique().tolist() == [0.5]
    for model, optimizer in ((fused, left), (lazy, right)):
        run(model, optimizer, [batch(1), batch(2)])
    torch.testing.assert_close(snapshot(fused)[TABLE], snapshot(lazy)[TABLE])


@pytest.mark.parametrize("lazy", [False, True])
def test_a_frozen_table_keeps_its_values_whatever_the_schedule(config, lazy):
    frozen = config("feature_configs[0].id_feature.trainable=false")
    schedule = "manual_step_learning_rate { schedule_sizes: [1] learning_rates: [5.0] }"
    wanted = train_config(f"sgd_optimizer {{ lr: 0.1 }} {schedule}")
    model, optimizer = start(frozen, wanted, lazy=lazy)
    before = snapshot(model)
    run(model, optimizer, [batch(1), batch(2), batch(3)])
    after = snapshot(model)
    assert not torch.equal(after[ITEM], before[ITEM])
    assert torch.equal(after[TABLE], before[TABLE])


def test_weight_decay_without_a_mode_and_a_limit_without_clipping_are_said_to_do_nothing(config, caplog):
    with caplog.at_level(logging.WARNING):
        start(config(), train_config("rowwise_adagrad_optimizer { lr: 0.1 weight_decay: 0.1 max_gradient: 3 }"))
        start(config(), train_config(more="grad_clipping { max_gradient: 2 }"))
    assert "weight_decay is not applied: weight_decay_mode is NONE; set it to L2 or DECOUPLE" in caplog.text
    assert "max_gradient is not applied: gradient_clipping is false" in caplog.text
    assert "grad_clipping does nothing: write clipping_type" in caplog.text


def test_clipping_clamps_each_gradient_of_a_lookup_before_rows_are_summed(config):
    wanted = train_config("sgd_optimizer { lr: 0.1 gradient_clipping: true max_gradient: 0.5 }")
    model, optimizer = start(config(), wanted, lazy=True)
    bag = model.module.model.embedding_group.emb_impls["__BASE__"].ebc.embedding_bags["user_emb"]
    before = bag.weight.detach().clone()
    optimizer.zero_grad()
    bag(torch.tensor([0, 1, 1, 3]), torch.tensor([0, 2, 4])).backward(
        torch.tensor([[3.0, -0.2, 0.5, 0.1], [2.0, -0.4, -0.6, 0.9]])
    )
    optimizer.step()
    assert (before - bag.weight)[1].tolist() == pytest.approx([0.1, -0.06, 0.0, 0.06], abs=1e-6)
    with torch.no_grad():
        assert bag(torch.tensor([1]), torch.tensor([0, 1])).shape == (1, 4)


def test_evaluations_between_steps_do_not_count_as_batches(config):
    model, optimizer = start(config(), train_config())
    (kernel, *_) = optimizer._kernels
    for steps in range(3):
        with torch.no_grad():
            model(batch(0))
        optimizer.zero_grad()
        assert int(kernel.iter_cpu) == steps
        run(model, optimizer, [batch(1)])


# --- rates


@pytest.mark.parametrize("lazy", [False, True])
def test_a_schedule_sets_the_rate_of_each_step_for_tables_and_dense_parameters(config, lazy):
    schedule = "manual_step_learning_rate { schedule_sizes: [1, 2] learning_rates: [0.5, 0.0625] }"
    wanted = train_config(f"sgd_optimizer {{ lr: 0.1 }} {schedule}", f"{SGD} {schedule}")
    model, optimizer = start(config(), wanted, lazy=lazy)
    for step, rate in enumerate([0.1, 0.5, 0.0625]):
        assert optimizer.learning_rates() == approx(sparse=rate, dense=rate)
        other, other_optimizer = start(
            config(),
            train_config(f"sgd_optimizer {{ lr: {rate} }}", f"sgd_optimizer {{ lr: {rate} momentum: 0 }}"),
            lazy=lazy,
        )
        with torch.no_grad():
            for name, value in tensors_of(other).items():
                value.copy_(snapshot(model)[name])
        run(model, optimizer, [batch(step)])
        run(other, other_optimizer, [batch(step)])
        for name, value in snapshot(other).items():
            torch.testing.assert_close(snapshot(model)[name], value, msg=name)


def test_schedules_by_epoch_wait_for_the_end_of_the_epoch(config):
    schedule = "exponential_decay_learning_rate { decay_size: 1 decay_factor: 0.5 by_epoch: true }"
    model, optimizer = start(config(), train_config(f"sgd_optimizer {{ lr: 0.1 }} {schedule}"))
    run(model, optimizer, [batch(1), batch(2)])
    assert optimizer.learning_rates() == approx(sparse=0.1, dense=0.1)
    optimizer.end_epoch()
    assert optimizer.learning_rates() == approx(sparse=0.05, dense=0.1)


# --- dense optimizers


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
    optimizer = parts(start(config(), wanted)[1])["dense"].optimizer
    name = wanted.dense_optimizer.WhichOneof("optimizer")
    assert type(optimizer).__name__.lower() == name.split("_")[0]
    (group,) = optimizer.param_groups
    assert {key: group[key] for key in expected} == expected
    settings = config_to_kwargs(getattr(wanted.dense_optimizer, name))
    assert set(settings) - {"beta1", "beta2"} <= set(group)


def test_an_unset_fused_leaves_the_choice_of_the_loop_to_torch(config):
    (group,) = parts(start(config(), train_config())[1])["dense"].optimizer.param_groups
    assert group["fused"] is None


PART = 'part_optimizers {{ regex_pattern: "{0}" sgd_optimizer {{ lr: {1} momentum: 0 }} {2} }} '


def test_each_parameter_goes_to_the_first_pattern_found_in_its_name_and_the_rest_to_the_dense_optimizer(config):
    schedule = "manual_step_learning_rate { schedule_sizes: [1] learning_rates: [0.25] }"
    dense = PART.format(r"hidden\\.w|norm", 0.5, schedule) + PART.format("weight$", 0.125, "") + SGD
    model, optimizer = start(config(), train_config(dense=dense))
    names = {name: sorted(part.parameters) for name, part in parts(optimizer).items()}
    assert names == {
        "dense": ["model.hidden.bias", "model.output.bias"],
        "dense_0": ["model.hidden.weight", "model.norm.bias", "model.norm.weight"],
        "dense_1": ["model.output.weight"],
    }
    assert optimizer.learning_rates() == approx(sparse=0.1, dense=0.1, dense_0=0.5, dense_1=0.125)
    before = snapshot(model)
    run(model, optimizer, [batch(1)])
    after, gradient = snapshot(model), gradients(model)
    for name, rate in (("hidden.weight", 0.5), ("output.weight", 0.125), ("hidden.bias", 0.1)):
        name = f"model.{name}"
        torch.testing.assert_close(after[name], before[name] - rate * gradient[name])
    assert optimizer.learning_rates() == approx(sparse=0.1, dense=0.1, dense_0=0.25, dense_1=0.125)


def test_patterns_that_take_everything_leave_no_dense_optimizer(config):
    _, optimizer = start(config(), train_config(dense=PART.format("^model", 0.5, "") + SGD))
    assert set(optimizer.learning_rates()) == {"sparse", "dense_0"}


@pytest.mark.parametrize(
    ("dense", "words"),
    [
        (
            PART.format("hiden", 1, "") + SGD,
            r"part_optimizers\[0\]\.regex_pattern = 'hiden' is found in the name of no trained dense parameter"
            r".* They are: model\.hidden\.weight",
        ),
        (PART.format("model.hiden.weight", 1, "") + SGD, r"Did you mean 'model\.hidden\.weight'\?"),
        (PART.format("user_emb", 1, "") + SGD, "'user_emb' is found in the name of no trained dense parameter"),
        (PART.format("(", 1, "") + SGD, r"regex_pattern = '\(' is not a regular expression: missing \)"),
        (
            PART.format("hidden", 1, "") + PART.format("hidden.bias", 1, "") + SGD,
            r"part_optimizers\[1\].*'hidden.bias': earlier patterns take all",
        ),
        ("", r"train_config\.dense_optimizer has no optimizer; write one, such as adam_optimizer"),
        ('part_optimizers { regex_pattern: "hidden" } ' + SGD, r"part_optimizers\[0\] has no optimizer"),
        ("adam_optimizer { lr: -1 }", r"dense_optimizer\.adam_optimizer: Invalid learning rate: -1"),
        (
            "sgd_optimizer { lr: 1 nesterov: true momentum: 0 }",
            r"dense_optimizer\.sgd_optimizer: Nesterov momentum requires a momentum",
        ),
    ],
)
def test_what_cannot_be_built_is_refused_with_its_place(config, dense, words):
    with pytest.raises(ConfigError, match=words):
        start(config(), train_config(dense=dense))


def test_an_empty_sparse_optimizer_is_refused():
    with pytest.raises(ConfigError, match=r"train_config\.sparse_optimizer is empty; write one, such as"):
        is_fused(train_config(""), "cpu")


# --- accumulation and clipping


def test_accumulated_batches_are_summed_and_tables_step_with_each(config):
    whole = batch(1, rows=8)
    halves = [part_of(whole, slice(0, 4)), part_of(whole, slice(4, 8))]
    model, optimizer = start(config(), train_config(more="gradient_accumulation_steps: 2"))
    model.module.model.norm.eval()  # whose statistics would differ between halves and whole
    other, other_optimizer = start(config(), train_config())
    other.module.model.norm.eval()
    before = snapshot(model)
    run(model, optimizer, halves[:1])
    first = snapshot(model)
    assert torch.equal(first["model.hidden.weight"], before["model.hidden.weight"])
    assert not torch.equal(first[TABLE], before[TABLE])
    with torch.no_grad():  # so that the second half sees what the whole batch sees
        for name in (TABLE, ITEM):
            tensors_of(model)[name].copy_(before[name])
    run(model, optimizer, halves[1:])
    run(other, other_optimizer, [whole], scale=2.0)  # a sum of two means is twice the mean of all
    for name in ("model.hidden.weight", "model.output.bias", "model.norm.weight"):
        torch.testing.assert_close(snapshot(model)[name], snapshot(other)[name])


CLIPS = [
    'clipping_type: "norm" max_gradient: 0.01',
    'clipping_type: "norm" max_gradient: 0.01 norm_type: 1',
    'clipping_type: "norm" max_gradient: 0.01 norm_type: inf enable_global_grad_clip: true',
    'clipping_type: "norm" max_gradient: 100',
    'clipping_type: "value" max_gradient: 0.005',
    'clipping_type: "none" max_gradient: 0.001',
]


@pytest.mark.parametrize("clip", CLIPS)
def test_dense_gradients_are_clipped_as_by_hand_and_tables_are_not(config, clip):
    model, optimizer = start(config(), train_config(more=f"grad_clipping {{ {clip} }}"))
    other, other_optimizer = start(config(), train_config())
    before = snapshot(model)
    run(model, optimizer, [batch(1)])
    run(other, other_optimizer, [batch(1)])
    raw = gradients(other)
    settings = text_format.Parse(f"grad_clipping {{ {clip} }}", TrainConfig()).grad_clipping
    flat = torch.cat([gradient.flatten() for gradient in raw.values()]).double()
    if settings.clipping_type == "norm":
        norm = (
            flat.abs().max()
            if settings.norm_type == math.inf
            else (flat.abs() ** settings.norm_type).sum() ** (1 / settings.norm_type)
        )
        factor = min(1.0, settings.max_gradient / float(norm))
        expected = {name: gradient * factor for name, gradient in raw.items()}
        assert (factor < 1) == (settings.max_gradient < 1)
    elif settings.clipping_type == "value":
        expected = {
            name: gradient.clamp(-settings.max_gradient, settings.max_gradient) for name, gradient in raw.items()
        }
    else:
        expected = raw
    after = snapshot(model)
    for name, gradient in expected.items():
        torch.testing.assert_close(after[name], before[name] - 0.1 * gradient, rtol=1e-4, atol=1e-6)
    for name in (TABLE, ITEM):
        assert torch.equal(after[name], snapshot(other)[name])


def test_clipping_acts_on_the_accumulated_gradient(config):
    clip = 'gradient_accumulation_steps: 2 grad_clipping { clipping_type: "value" max_gradient: 1e-4 }'
    model, optimizer = start(config(), train_config(more=clip))
    before = snapshot(model)
    run(model, optimizer, [batch(1), batch(2)])
    moved = (snapshot(model)["model.hidden.weight"] - before["model.hidden.weight"]).abs().max()
    assert float(moved) == pytest.approx(0.1 * 1e-4, rel=1e-2)


def test_before_the_dense_parameters_move_their_gradients_can_be_seen_without_scale_and_unclipped_once(config):
    more = 'grad_scaler { init_scale: 1024 } grad_clipping { clipping_type: "value" max_gradient: 1e-4 }'
    model, optimizer = start(config(), train_config(more=f"{more} gradient_accumulation_steps: 2"))
    other, other_optimizer = start(config(), train_config(more="gradient_accumulation_steps: 2"))
    seen: list[Any] = []

    def look() -> None:
        seen.append((gradients(model), snapshot(model)["model.hidden.weight"]))

    before = snapshot(model)["model.hidden.weight"]
    optimizer.before_step = look
    run(model, optimizer, [batch(1)])
    assert not seen  # the dense parameters did not move
    optimizer.zero_grad()
    optimizer.backward(model(batch(2))[0])
    optimizer.before_step = look
    optimizer.step()
    run(model, optimizer, [batch(3), batch(4)])
    run(other, other_optimizer, [batch(1), batch(2)])
    ((found, weight),) = seen
    assert torch.equal(weight, before)
    for name, gradient in gradients(other).items():
        torch.testing.assert_close(found[name], gradient)


# --- FP16


FP16 = 'mixed_precision: "FP16" grad_scaler { init_scale: 1024 growth_interval: 3 %s }'


@pytest.mark.parametrize(
    "sparse", [*(f % "" for f in FUSED), "adam_optimizer { lr: 0.1 }", "lamb_optimizer { lr: 0.1 }"]
)
def test_a_scaled_loss_moves_tables_and_dense_parameters_as_an_unscaled_one(config, sparse):
    """The scale is a power of two, so in float32 nothing is rounded differently."""
    scaled = train_config(sparse, more="grad_scaler { init_scale: 1024 growth_interval: 1 }")
    (model, optimizer), (other, other_optimizer) = start(config(), scaled), start(config(), train_config(sparse))
    batches = [batch(seed) for seed in range(3)]
    run(model, optimizer, batches)
    run(other, other_optimizer, batches)
    assert optimizer.scalars()["scaler"]["scale"] == 8192
    for name, value in snapshot(other).items():
        assert torch.equal(snapshot(model)[name], value), name


@pytest.mark.parametrize("sparse", ["sgd_optimizer { lr: 0.1 gradient_clipping: true max_gradient: 0.002 }"])
@pytest.mark.parametrize("lazy", [False, True])
def test_tables_clip_the_gradient_itself_and_not_the_scaled_one(config, sparse, lazy):
    scaled = train_config(sparse, more="grad_scaler { init_scale: 1024 }")
    model, optimizer = start(config(), scaled, lazy=lazy)
    other, other_optimizer = start(config(), train_config(sparse), lazy=lazy)
    run(model, optimizer, [batch(1)])
    run(other, other_optimizer, [batch(1)])
    assert torch.equal(snapshot(model)[TABLE], snapshot(other)[TABLE])


@pytest.mark.parametrize("lazy", [False, True])
def test_after_an_infinite_gradient_the_dense_step_is_skipped_the_scale_halves_and_tables_stay_finite(config, lazy):
    ema = "ema { decay: 0.5 }"
    wanted = train_config(
        "sgd_optimizer { lr: 0.1 }",
        f"{PART.format('output', 0.1, '')} adam_optimizer {{ lr: 0.1 }} {ema}",
        more=FP16 % "",
    )
    model, optimizer = start(config(), wanted, lazy=lazy)
    run(model, optimizer, [batch(0)])
    before, averages = snapshot(model), {k: v.clone() for k, v in optimizer.ema.averages.items()}
    run(model, optimizer, [batch(1)], scale=1e9)
    after = snapshot(model)
    dense = [name for name in before if "emb" not in name and "norm" not in name]
    assert dense
    assert all(torch.equal(after[name], before[name]) for name in dense)
    assert all(torch.equal(optimizer.ema.averages[name], averages[name]) for name in averages)
    assert all(torch.isfinite(value).all() for value in after.values())
    assert optimizer.scalars()["scaler"]["scale"] == 512
    run(model, optimizer, [batch(2)])
    assert not torch.equal(snapshot(model)["model.hidden.weight"], before["model.hidden.weight"])
    assert not torch.equal(optimizer.ema.averages["model.hidden.weight"], averages["model.hidden.weight"])


def test_an_element_that_overflows_counts_as_zero_for_a_table_and_the_others_count(config):
    scaled = train_config(more="grad_scaler { init_scale: 1024 }")
    model, optimizer = start(config(), scaled, lazy=True)
    bag = model.module.model.embedding_group.emb_impls["__BASE__"].ebc.embedding_bags["user_emb"]
    before = bag.weight.detach().clone()
    optimizer.zero_grad()
    looked_up = bag(torch.tensor([2, 5]), torch.tensor([0, 1, 2]))
    optimizer.backward((looked_up * torch.tensor([[1.0, 1e37, -1e37, 2.0], [3.0, 3.0, 3.0, 3.0]])).sum())
    optimizer.step()
    moved = before - bag.weight.detach()
    assert moved[2].tolist() == pytest.approx([0.1, 0.0, 0.0, 0.2], abs=1e-6)
    assert moved[5].tolist() == pytest.approx([0.3] * 4, abs=1e-6)


def test_fp16_autocast_trains_close_to_float32(config):
    half, optimizer = start(config(), train_config(more=FP16 % ""))
    full, full_optimizer = start(config(), train_config())
    batches = [batch(seed) for seed in range(4)]
    run(half, optimizer, batches)
    run(full, full_optimizer, batches)
    for name, value in snapshot(full).items():
        if value.is_floating_point():
            torch.testing.assert_close(snapshot(half)[name], value, rtol=2e-2, atol=2e-3, msg=name)


# --- the moving average


def test_the_average_follows_each_step_of_the_dense_optimizer(config):
    wanted = train_config(dense=f"{SGD} ema {{ decay: 0.75 }}", more="gradient_accumulation_steps: 2")
    model, optimizer = start(config(), wanted)
    name = "model.hidden.weight"
    expected = snapshot(model)[name]
    assert torch.equal(optimizer.ema.averages[name], expected)
    for seed in range(4):
        run(model, optimizer, [batch(seed)])
        if seed % 2:
            expected = 0.75 * expected + 0.25 * snapshot(model)[name]
        torch.testing.assert_close(optimizer.ema.averages[name], expected)
    assert not any("emb" in key or "running" in key for key in optimizer.ema.averages)
    with optimizer.ema.applied():
        assert torch.equal(snapshot(model)[name], optimizer.ema.averages[name])


def test_without_ema_there_is_none(config):
    assert start(config(), train_config())[1].ema is None


# --- what a checkpoint holds


def test_the_names_of_states_are_those_of_torchrec_and_torch(config):
    dense = f"{PART.format('output', 0.1, '')} adam_optimizer {{ lr: 0.1 }} ema {{}}"
    _, optimizer = start(config(), train_config("adam_optimizer { lr: 0.1 }", dense))
    names = set(optimizer.tensors())
    assert {f"state.{TABLE}.user_emb.momentum1", f"state.{TABLE}.user_emb.exp_avg_sq"} <= names
    assert {f"state.model.hidden.weight.{key}" for key in ("exp_avg", "exp_avg_sq", "step")} <= names
    assert "ema.model.hidden.weight" in names
    assert not any(name.startswith("state.model.output") for name in names)  # plain SGD has no state


@pytest.mark.parametrize(
    "dense",
    [
        "sgd_optimizer { lr: 0.1 }",
        "adagrad_optimizer { lr: 0.1 initial_accumulator_value: 0.2 }",
        "adam_optimizer { lr: 0.1 amsgrad: true }",
        "adamw_optimizer { lr: 0.1 weight_decay: 0.2 }",
        "adadelta_optimizer { lr: 0.1 }",
        "rmsprop_optimizer { lr: 0.1 }",
    ],
)
def test_asking_for_the_states_before_the_first_step_changes_no_parameter_and_no_step(config, dense):
    (asked, left), (plain_one, right) = (
        start(config(), train_config(dense=dense)),
        start(config(), train_config(dense=dense)),
    )
    before = snapshot(asked)
    assert any(name.startswith("state.model.hidden") for name in left.tensors())
    assert all(torch.equal(value, before[name]) for name, value in snapshot(asked).items())
    run(asked, left, [batch(1), batch(2)])
    run(plain_one, right, [batch(1), batch(2)])
    for name, value in snapshot(plain_one).items():
        assert torch.equal(snapshot(asked)[name], value), name


SCHEDULE = "cosine_annealing_learning_rate { T_max: 6 }"
RUNS = [
    (f"rowwise_adagrad_optimizer {{ lr: 0.1 }} {SCHEDULE}", f"adam_optimizer {{ lr: 0.1 }} {SCHEDULE}", ""),
    ("adam_optimizer { lr: 0.1 }", "sgd_optimizer { lr: 0.1 } ema { decay: 0.5 }", "gradient_accumulation_steps: 2"),
    ("lamb_optimizer { lr: 0.1 }", f"{PART.format('output', 0.1, SCHEDULE)} adagrad_optimizer {{ lr: 0.1 }}", ""),
    ("adagrad_optimizer { lr: 0.1 }", "rmsprop_optimizer { lr: 0.1 }", FP16 % "" + " gradient_accumulation_steps: 3"),
]  # fmt: skip


@pytest.mark.parametrize(("sparse", "dense", "more"), RUNS)
def test_a_run_goes_on_from_its_tensors_and_scalars_as_if_it_had_not_stopped(config, sparse, dense, more):
    wanted = train_config(sparse, dense, more)
    straight, optimizer = start(config(), wanted)
    run(straight, optimizer, [batch(seed) for seed in range(3)])
    optimizer.end_epoch()
    values = snapshot(straight)
    saved = {name: plain(value).detach().clone() for name, value in optimizer.tensors().items()}
    scalars = json.loads(json.dumps(optimizer.scalars()))
    rest = [batch(seed) for seed in range(3, 7)]
    run(straight, optimizer, rest)

    other, other_optimizer = start(config(), wanted)
    with torch.no_grad():
        for name, value in tensors_of(other).items():
            value.copy_(values[name])
    other_optimizer.load_scalars(scalars)
    into = other_optimizer.tensors()
    assert set(into) == set(saved)
    with torch.no_grad():
        for name, value in into.items():
            plain(value).copy_(saved[name])
    other_optimizer.after_load()
    assert other_optimizer.scalars() == scalars
    run(other, other_optimizer, rest)
    assert other_optimizer.learning_rates() == optimizer.learning_rates()
    for name, value in snapshot(straight).items():
        assert torch.equal(snapshot(other)[name], value), name
    for name, value in optimizer.tensors().items():
        assert torch.equal(plain(other_optimizer.tensors()[name]), plain(value)), name


def test_settings_come_from_the_config_and_not_from_the_scalars(config):
    _, optimizer = start(config(), train_config(more=FP16 % ""))
    scalars = copy.deepcopy(optimizer.scalars())
    scalars["scaler"]["scale"] = 4.0
    scalars["steps"], scalars["accumulated"] = 5, 2
    _, other = start(config(), train_config(more=FP16 % "growth_factor: 4" + " gradient_accumulation_steps: 2"))
    other.load_scalars(scalars)
    assert other.scalars()["scaler"]["scale"] == 4.0
    assert other._scaler.get_growth_factor() == 4.0
    assert other.scalars()["accumulated"] == 1


# --- several processes


def two_ranks(folder: str) -> dict[str, Any]:
    """One half of each batch on each rank; returns what rank 0 has of the dense parameters, and all tables' norms."""
    import tiny_data

    from tzrec_core.plugins import Registry, Selection, use_registry

    world = join_world()
    with use_registry(Registry.find(Selection(only=frozenset(), files=(tiny_data.MANIFEST,)))):
        made = parse_config(tiny_data.write_tables(Path(folder) / str(world.rank)), validate=True)
        found = {}
        for name, wanted in SCENARIOS.items():
            model, optimizer = start(made, wanted, world=world)
            for seed in range(4):
                whole = batch(seed)
                half = 8 // world.size
                model.eval()  # batch norm sees halves
                run(model, optimizer, [part_of(whole, slice(half * world.rank, half * (world.rank + 1)))])
            values = snapshot(model)
            found[name] = {key: value.double().sum().item() for key, value in values.items()}
            found[name]["rates"] = optimizer.learning_rates()["sparse"]
            found[name] |= {key: plain(value).double().sum().item() for key, value in optimizer.tensors().items()}
        return found


SCENARIOS = {
    "clipped": train_config(
        FUSED[2] % "", "adam_optimizer { lr: 0.01 }",
        'gradient_accumulation_steps: 2 grad_clipping { clipping_type: "norm" max_gradient: 0.01 }',
    ),
    "scaled": train_config(FUSED[0] % "gradient_clipping: true max_gradient: 0.005 ", f"{SGD} ema {{ decay: 0.5 }}",
                           "grad_scaler { init_scale: 64 }"),
}  # fmt: skip


def test_two_processes_on_halves_of_a_batch_take_the_steps_of_one_on_the_whole(tmp_path):
    alone = run_ranks(__file__, "two_ranks", 1, str(tmp_path / "one"))[0]
    both = run_ranks(__file__, "two_ranks", 2, str(tmp_path / "two"))
    for name in SCENARIOS:
        assert set(alone[name]) == set(both[0][name]) | set(both[1][name])
        for rank in both:
            assert rank[name] == {key: pytest.approx(alone[name][key], rel=1e-4, abs=1e-5) for key in rank[name]}
