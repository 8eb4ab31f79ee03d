"""What each field of the optimizers, their schedules and what surrounds a step does; tables fused and lazy."""

import math

import pytest
import torch

from tzrec_core.config import parse_config
from tzrec_core.engine.optim import TrainOptimizer, fuse_sparse_optimizer
from tzrec_core.engine.sharding import shard
from tzrec_core.engine.shards import local_shards
from tzrec_core.engine.world import join_world, leave_world
from tzrec_core.models import TrainWrapper
from tzrec_core.testing.golden import golden_batch

MODEL = """
feature_configs { id_feature { feature_name: "item" expression: "item:item" num_buckets: 9 embedding_dim: 4 } }
model_config {
  feature_groups { group_name: "wide" group_type: WIDE feature_names: "item" }
  feature_groups { group_name: "deep" group_type: DEEP feature_names: "item" }
  wide_and_deep { deep { hidden_units: 4 } }
  losses { binary_cross_entropy {} }
}
"""
BATCH = {
    "sparse": {"__BASE__": {"item": {"lengths": [1] * 6, "values": [1, 2, 3, 1, 2, 3]}}},
    "labels": {"label": {"values": [0.0, 1.0, 0.0, 1.0, 1.0, 0.0]}},
}


@pytest.fixture
def start(model_of):
    """The sharded model, and the TrainOptimizer, of a train_config's settings; `lazy` = tables are not fused."""
    world = join_world()

    def make(*, sparse="sgd_optimizer { lr: 0.1 }", dense="sgd_optimizer { lr: 0.1 momentum: 0 }", more="", lazy=False):
        parts = f"sparse_optimizer {{ {sparse} }} dense_optimizer {{ {dense} }}"
        config = parse_config(f"train_config {{ {parts} {more} }}", partial=True, validate=True)
        model = model_of(MODEL, ready=False)
        if not lazy:
            fuse_sparse_optimizer(config.train_config, model)
        wrapper = TrainWrapper(model, world.device, config.train_config.mixed_precision)
        sharded = shard(wrapper, config, world, is_fused=not lazy).train()
        return sharded, TrainOptimizer(config.train_config, sharded, is_fused=not lazy)

    yield make
    leave_world()


def step(model, optimizer, scale=1.0):
    """A step on the batch with its loss, and so its gradients, times `scale`."""
    optimizer.zero_grad()
    loss, _ = model(golden_batch(BATCH))
    optimizer.backward(loss * scale)
    optimizer.step()


def parameters(model, part):
    """Names and copies of the tables (`sparse`) or of all others (`dense`)."""
    found = {name: local_shards(value)[0][1].detach().clone() for name, value in model.state_dict().items()}
    return {name: value for name, value in found.items() if (".embedding_bags." in name) == (part == "sparse")}


def flat(tensors):
    return torch.cat([tensor.flatten() for tensor in tensors.values()])


# Settings of each optimizer

SPARSE_CLIPPING = ("gradient_clipping: true", ""), ("max_gradient: 0.5", "gradient_clipping: true")
ADAM = ("beta1: 0.5", ""), ("beta2: 0.5", ""), ("weight_decay: 0.5", "")
FUSED_ON_CPU = {
    "sgd": SPARSE_CLIPPING,
    "adagrad": (*SPARSE_CLIPPING, ("initial_accumulator_value: 0.5", "")),
    "rowwise_adagrad": SPARSE_CLIPPING,
}
SETTINGS = {
    "fused": FUSED_ON_CPU,
    "lazy": {
        **FUSED_ON_CPU,
        "rowwise_adagrad": (
            *SPARSE_CLIPPING,
            ("weight_decay: 0.5", "weight_decay_mode: L2"),
            ("weight_decay_mode: DECOUPLE", "weight_decay: 0.5"),
        ),
        "adam": (*SPARSE_CLIPPING, *ADAM),
        "partial_rowwise_adam": (*SPARSE_CLIPPING, *ADAM),
        "lamb": (*SPARSE_CLIPPING, *ADAM),
        "partial_rowwise_lamb": (*SPARSE_CLIPPING, *ADAM),
        "lars_sgd": (*SPARSE_CLIPPING, ("momentum: 0.5", ""), ("weight_decay: 0.5", "")),
        "adadelta": (*SPARSE_CLIPPING, ("rho: 0.5", ""), ("eps: 0.5", ""), ("weight_decay: 0.5", "")),
        "rmsprop": (*SPARSE_CLIPPING, ("alpha: 0.5", ""), ("eps: 0.5", ""), ("weight_decay: 0.5", "")),
    },
    "dense": {
        "sgd": (("momentum: 0.5", ""), ("weight_decay: 0.5", ""), ("dampening: 0.5", ""), ("nesterov: true", "")),
        "adagrad": (("weight_decay: 0.5", ""), ("initial_accumulator_value: 0.5", ""), ("eps: 0.5", "")),
        "adam": (*ADAM, ("eps: 0.5", ""), ("amsgrad: true", "beta2: 0.5")),
        "adamw": (*ADAM, ("eps: 0.5", ""), ("amsgrad: true", "beta2: 0.5")),
        "adadelta": (("rho: 0.5", ""), ("eps: 0.5", ""), ("weight_decay: 0.5", "")),
        "rmsprop": (("alpha: 0.5", ""), ("eps: 0.5", ""), ("weight_decay: 0.5", "")),
    },
}
CASES = [
    pytest.param(way, f"{name}_optimizer", setting, others, id=f"{way}-{name}-{setting.partition(':')[0]}")
    for way, optimizers in SETTINGS.items()
    for name, settings in optimizers.items()
    for setting, others in (("lr: 0.25", ""), *settings)
]


@pytest.mark.parametrize(("way", "optimizer", "setting", "others"), CASES)
def test_every_setting_of_an_optimizer_changes_its_steps(start, way, optimizer, setting, others):
    part = "dense" if way == "dense" else "sparse"
    lr = "" if setting.startswith("lr") else "lr: 0.1"
    found = []
    for settings in (f"{lr or 'lr: 0.1'} {others}", f"{lr} {others} {setting}"):
        model, chosen = start(**{part: f"{optimizer} {{ {settings} }}"}, lazy=way == "lazy")
        for scale in (200.0, 1.0, 1.0):  # shrinking gradients, which tell moments of all kinds apart
            step(model, chosen, scale)
        found.append(flat(parameters(model, part)))
    assert not torch.equal(*found)


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "adam", "adamw"])
def test_fused_uses_torchs_fused_kernel(start, optimizer):
    _, chosen = start(dense=f"{optimizer}_optimizer {{ lr: 0.1 fused: true }}")
    (part,) = chosen._parts
    assert part.optimizer.param_groups[0]["fused"]


# Schedules

WARMUP = "min_learning_rate: 0.2 warmup_learning_rate: 0.5 warmup_size: 2"
ROOT = math.sqrt(0.5)
# Of an optimizer whose lr is 1: the rates from the first step (or epoch) on.
SCHEDULES = {
    "exponential_decay": (
        f"decay_size: 2 decay_factor: 0.25 staircase: false {WARMUP}",
        [0.5, 0.75, 1.0, 0.5, 0.25, 0.2],
    ),
    "manual_step": (
        "schedule_sizes: [2, 4] learning_rates: [0.5, 0.25] warmup: true",
        [1.0, 0.75, 0.5, 0.5, 0.25, 0.25],
    ),
    "cosine_annealing": (f"T_max: 2 {WARMUP}", [0.5, 0.75, 1.0, 0.6, 0.2, 0.2]),
    "cosine_annealing_warm_restarts": (
        f"T_0: 2 T_mult: 2 {WARMUP}",
        [0.5, 0.75, 1.0, 0.6, 1.0, 0.6 + 0.4 * ROOT, 0.6, 0.6 - 0.4 * ROOT, 1.0],
    ),
}
PARTS = {
    "sparse": {"sparse": "sgd_optimizer { lr: 1.0 } %s"},
    "dense": {"dense": "sgd_optimizer { lr: 1.0 } %s"},
    "dense_0": {
        "dense": 'part_optimizers { regex_pattern: "bias" sgd_optimizer { lr: 1.0 } %s } sgd_optimizer { lr: 0.1 }'
    },
}


@pytest.fixture
def scheduled(start):
    """A TrainOptimizer whose named part has lr 1 and a schedule."""

    def make(part, schedule):
        return start(**{name: text % schedule for name, text in PARTS[part].items()})[1]

    return make


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_sets_the_rate_of_each_step(scheduled, part, name):
    settings, rates = SCHEDULES[name]
    optimizer = scheduled(part, f"{name}_learning_rate {{ {settings} }}")
    for rate in rates:
        assert optimizer.learning_rates()[part] == pytest.approx(rate)
        optimizer.step()
        optimizer.end_epoch()  # which it does not count
    others = {key: value for key, value in optimizer.learning_rates().items() if key != part}
    assert list(others.values()) == pytest.approx([0.1] * len(others))


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_by_epoch_sets_the_rate_of_each_epoch(scheduled, name):
    settings, rates = SCHEDULES[name]
    optimizer = scheduled("dense", f"{name}_learning_rate {{ {settings} by_epoch: true }}")
    for rate in rates:
        for _ in range(3):
            assert optimizer.learning_rates()["dense"] == pytest.approx(rate)
            optimizer.step()
        optimizer.end_epoch()


@pytest.mark.parametrize("part", PARTS)
def test_a_constant_learning_rate_stays(scheduled, part):
    optimizer = scheduled(part, "constant_learning_rate {}")
    for _ in range(2):
        assert optimizer.learning_rates()[part] == 1.0
        optimizer.step()


# Parts of the dense parameters


@pytest.mark.parametrize("name", ["sgd", "adagrad", "adam", "adamw", "adadelta", "rmsprop"])
def test_a_part_has_the_optimizer_of_its_entry_and_the_rest_that_of_all(start, name):
    chosen = f"{name}_optimizer {{ lr: 0.25 }}"
    moved = []
    for dense in (chosen, f'part_optimizers {{ regex_pattern: "bias$" {chosen} }} sgd_optimizer {{ lr: 0 }}'):
        model, optimizer = start(dense=dense)
        before = parameters(model, "dense")
        step(model, optimizer)
        moved.append({key: value - before[key] for key, value in parameters(model, "dense").items()})
    for key, expected in moved[0].items():
        assert expected.any()
        assert torch.equal(moved[1][key], expected if key.endswith("bias") else torch.zeros_like(expected)), key


# Around a step


def test_ema_is_a_running_average_of_the_dense_parameters(start):
    model, optimizer = start(dense="sgd_optimizer { lr: 0.1 } ema { decay: 0.25 }")
    expected = parameters(model, "dense")
    for _ in range(3):
        step(model, optimizer)
        expected = {name: 0.25 * expected[name] + 0.75 * value for name, value in parameters(model, "dense").items()}
    for name, value in expected.items():
        torch.testing.assert_close(optimizer.tensors()[f"ema.{name}"], value)
    assert set(optimizer.ema.averages) == set(expected)


@pytest.mark.parametrize("more", ["", "enable_global_grad_clip: true"], ids=["each", "global"])  # no part is split
@pytest.mark.parametrize(
    ("clipping", "norm"),
    [('clipping_type: "norm" norm_type: 1', 1), ('clipping_type: "norm"', 2), ('clipping_type: "value"', math.inf)],
    ids=["norm1", "norm2", "value"],
)
def test_clipping_limits_the_gradients_of_the_dense_parameters(start, clipping, norm, more):
    clipping = f"grad_clipping {{ {clipping} max_gradient: 0.25 {more} }}"
    model, optimizer = start(dense="sgd_optimizer { lr: 1 momentum: 0 }", more=clipping)
    before = parameters(model, "dense")
    step(model, optimizer, 200.0)
    moved = flat(before) - flat(parameters(model, "dense"))
    assert float(torch.linalg.vector_norm(moved, norm)) == pytest.approx(0.25, rel=1e-4)


def test_gradients_are_summed_over_so_many_batches_before_the_dense_parameters_move(start):
    tables = "sgd_optimizer { lr: 0 }"
    model, optimizer = start(sparse=tables, more="gradient_accumulation_steps: 3")
    first = flat(parameters(model, "dense"))
    for _ in range(2):
        step(model, optimizer)
        assert torch.equal(flat(parameters(model, "dense")), first)
    step(model, optimizer)
    other, optimizer = start(sparse=tables)
    step(other, optimizer, 3.0)
    torch.testing.assert_close(flat(parameters(model, "dense")), flat(parameters(other, "dense")))


def test_the_scale_of_the_loss_grows_after_good_steps_and_falls_at_an_infinite_gradient(start):
    scaler = "grad_scaler { init_scale: 8 growth_factor: 4 backoff_factor: 0.125 growth_interval: 2 }"
    model, optimizer = start(more=f'mixed_precision: "FP16" {scaler}')
    scales = [optimizer.scalars()["scaler"]["scale"]]
    for scale in (1.0, 1.0, math.inf, 1.0):
        step(model, optimizer, scale)
        scales.append(optimizer.scalars()["scaler"]["scale"])
    assert scales == [8, 8, 32, 4, 4]
    assert torch.isfinite(flat(parameters(model, "dense"))).all()
