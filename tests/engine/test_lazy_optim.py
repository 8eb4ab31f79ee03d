"""The update rules against FBGEMM where it runs on the CPU, and against a slow float64 loop over rows everywhere."""

import copy
import math

import pytest
import torch
from torch import nn

from tzrec_core.engine.lazy_optim import RULES, LazyOptimizer, _sum_by_row

NUM_ROWS, DIM = 7, 4
ADAMS = [
    {"lr": 0.1, "beta1": 0.9, "beta2": 0.999, "weight_decay": 0.0},
    {"lr": 0.05, "beta1": 0.7, "beta2": 0.95, "weight_decay": 0.2},
]
SETTINGS = {
    "sgd_optimizer": [{"lr": 0.1}],
    "lars_sgd_optimizer": [
        {"lr": 100.0, "momentum": 0.9, "weight_decay": 0.0},
        {"lr": 50.0, "momentum": 0.5, "weight_decay": 0.2},
    ],
    "adagrad_optimizer": [{"lr": 0.1}, {"lr": 0.1, "initial_accumulator_value": 0.5}],
    "rowwise_adagrad_optimizer": [
        {"lr": 0.1, "weight_decay": 0.3, "weight_decay_mode": mode} for mode in ("NONE", "L2", "DECOUPLE")
    ],
    "adam_optimizer": ADAMS,
    "partial_rowwise_adam_optimizer": ADAMS,
    "lamb_optimizer": ADAMS,
    "partial_rowwise_lamb_optimizer": ADAMS,
    "adadelta_optimizer": [
        {"lr": 1.0, "rho": 0.95, "eps": 1e-6, "weight_decay": 0.0},
        {"lr": 0.5, "rho": 0.8, "eps": 1e-3, "weight_decay": 0.2},
    ],
    "rmsprop_optimizer": [
        {"lr": 0.01, "alpha": 0.99, "eps": 1e-8, "weight_decay": 0.0},
        {"lr": 0.05, "alpha": 0.8, "eps": 1e-2, "weight_decay": 0.2},
    ],
}
CASES = [(rule, settings) for rule, several in SETTINGS.items() for settings in several]
# rows of each step's batch; row 6 is never looked up, row 1 twice in one step, the last step looks up none
STEPS = [[0, 1, 1, 3], [1, 5], [0, 2, 3, 4, 5], []]


def table(dtype: torch.dtype = torch.float32) -> nn.Embedding:
    torch.manual_seed(3)
    return nn.Embedding(NUM_ROWS, DIM, sparse=True).to(dtype)


def weights_of(rows: list[int]) -> torch.Tensor:
    """What the loss multiplies the looked-up values with, so that this is the gradient."""
    return torch.randn(len(rows), DIM, generator=torch.Generator().manual_seed(len(rows)))


def take_steps(embedding: nn.Embedding, optimizer: torch.optim.Optimizer, steps: list[list[int]]) -> None:
    for rows in steps:
        optimizer.zero_grad(set_to_none=True)
        (embedding(torch.tensor(rows, dtype=torch.int64)) * weights_of(rows)).sum().backward()
        optimizer.step()


def norm(values: list[float]) -> float:
    return math.sqrt(sum(v * v for v in values))


def one_row(rule: str, s: dict, weights: list[float], grads: list[float], state: dict, step: int) -> list[float]:
    """One number at a time, as FBGEMM's CUDA kernels and torch's documentation are written."""
    decay, lr, eps = s.get("weight_decay", 0.0), s["lr"], s.get("eps", 1e-8)
    a, b = state.setdefault("a", [0.0] * DIM), state.setdefault("b", [0.0] * DIM)
    mean_square = sum(g * g for g in grads) / DIM
    if rule == "sgd_optimizer":
        return [w - lr * g for w, g in zip(weights, grads)]
    if rule == "lars_sgd_optimizer":
        rate = lr * 0.001 * norm(weights) / (norm(grads) + decay * norm(weights))
        a[:] = [s["momentum"] * m + rate * (g + decay * w) for m, g, w in zip(a, grads, weights)]
        return [w - m for w, m in zip(weights, a)]
    if rule == "adagrad_optimizer":
        start = s.get("initial_accumulator_value", 0.0)
        a[:] = [m + g * g for m, g in zip(a, grads)]
        return [w - lr * g / (math.sqrt(start + m) + eps) for w, g, m in zip(weights, grads, a)]
    if rule == "rowwise_adagrad_optimizer":
        mode = s["weight_decay_mode"]
        decayed = [g + decay * w * (mode == "L2") for g, w in zip(grads, weights)]
        state["sum"] = state.get("sum", 0.0) + sum(g * g for g in decayed) / DIM
        multiplier = lr / (math.sqrt(state["sum"]) + eps)
        correction = {"NONE": 1.0, "L2": 1 - multiplier * decay, "DECOUPLE": 1 - lr * decay}[mode]
        return [correction * w - multiplier * g for w, g in zip(weights, grads)]
    if rule == "adadelta_optimizer":
        moved = []
        for d, (w, g) in enumerate(zip(weights, grads)):
            g = g + decay * w
            a[d] = s["rho"] * a[d] + (1 - s["rho"]) * g * g
            delta = math.sqrt(b[d] + eps) / math.sqrt(a[d] + eps) * g
            b[d] = s["rho"] * b[d] + (1 - s["rho"]) * delta * delta
            moved.append(w - lr * delta)
        return moved
    if rule == "rmsprop_optimizer":
        decayed = [g + decay * w for g, w in zip(grads, weights)]
        a[:] = [s["alpha"] * v + (1 - s["alpha"]) * g * g for v, g in zip(a, decayed)]
        return [w - lr * g / (math.sqrt(v) + eps) for w, g, v in zip(weights, decayed, a)]
    squares = [mean_square] * DIM if rule.startswith("partial") else [g * g for g in grads]
    a[:] = [s["beta1"] * m + (1 - s["beta1"]) * g for m, g in zip(a, grads)]
    b[:] = [s["beta2"] * v + (1 - s["beta2"]) * q for v, q in zip(b, squares)]
    direction = [
        m / (1 - s["beta1"] ** step) / (math.sqrt(v / (1 - s["beta2"] ** step)) + eps) + decay * w
        for m, v, w in zip(a, b, weights)
    ]
    trust = norm(weights) / norm(direction) if "lamb" in rule else 1.0
    return [w - lr * trust * r for w, r in zip(weights, direction)]


def reference(rule: str, s: dict, start: list[list[float]], steps: list[list[int]]) -> list[list[float]]:
    table = [list(row) for row in start]
    states: list[dict] = [{} for _ in table]
    for step, rows in enumerate(steps, 1):
        grads: dict[int, list[float]] = {}
        for row, grad in zip(rows, weights_of(rows).double().tolist()):
            grads[row] = [a + b for a, b in zip(grads.get(row, [0.0] * DIM), grad)]
        for row, grad in grads.items():
            table[row] = one_row(rule, s, table[row], grad, states[row], step)
    return table


@pytest.mark.parametrize(("rule", "settings"), CASES)
def test_each_rule_computes_what_a_loop_over_single_numbers_computes(rule, settings):
    embedding = table(torch.float64)
    start = embedding.weight.tolist()
    expected = reference(rule, settings, start, STEPS)
    take_steps(embedding, LazyOptimizer([embedding.weight], rule, **settings), STEPS)
    torch.testing.assert_close(embedding.weight.detach(), torch.tensor(expected, dtype=torch.float64))
    moved = (embedding.weight.detach() - torch.tensor(start, dtype=torch.float64)).abs()
    assert moved[:6].max() > 1e-3  # so that the comparison says something


@pytest.mark.parametrize(("rule", "settings"), CASES)
def test_in_float32_each_rule_computes_nearly_the_same(rule, settings):
    embedding = table()
    expected = reference(rule, settings, embedding.weight.tolist(), STEPS)
    take_steps(embedding, LazyOptimizer([embedding.weight], rule, **settings), STEPS)
    torch.testing.assert_close(embedding.weight.detach(), torch.tensor(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("rule", "settings", "make"),
    [("adadelta_optimizer", settings, torch.optim.Adadelta) for settings in SETTINGS["adadelta_optimizer"]]
    + [("rmsprop_optimizer", settings, torch.optim.RMSprop) for settings in SETTINGS["rmsprop_optimizer"]],
)
def test_what_fbgemm_lacks_equals_torchs_optimizer_where_every_row_is_looked_up(rule, settings, make):
    ours, theirs = table(torch.float64), nn.Embedding(NUM_ROWS, DIM, dtype=torch.float64)
    theirs.load_state_dict(ours.state_dict())
    steps = [list(range(NUM_ROWS))] * 3
    take_steps(ours, LazyOptimizer([ours.weight], rule, **settings), steps)
    take_steps(theirs, make([theirs.weight], **settings), steps)
    torch.testing.assert_close(ours.weight, theirs.weight)


@pytest.mark.parametrize("rule", ["lars_sgd_optimizer", "lamb_optimizer", "partial_rowwise_lamb_optimizer"])
def test_a_norm_of_zero_leaves_a_row_where_it_is_and_finite(rule):
    embedding = table()
    with torch.no_grad():
        embedding.weight[0] = 0
    before = embedding.weight.detach().clone()
    optimizer = LazyOptimizer([embedding.weight], rule, **SETTINGS[rule][0])
    (embedding(torch.tensor([0, 1, 0, 1])) * torch.tensor([[0.0], [0.0], [0.0], [0.0]])).sum().backward()
    optimizer.step()
    assert torch.equal(embedding.weight, before)


def test_a_rate_set_in_the_param_groups_is_the_rate_of_the_next_step():
    embedding = table()
    before = embedding.weight.detach().clone()
    optimizer = LazyOptimizer([embedding.weight], "sgd_optimizer", lr=0.1)
    optimizer.param_groups[0]["lr"] = 2.0
    take_steps(embedding, optimizer, [[3]])
    torch.testing.assert_close(before[3] - embedding.weight.detach()[3], 2.0 * weights_of([3])[0])


@pytest.mark.parametrize("num_ids", [0, 1, 5, 3000])
def test_gradients_of_equal_ids_are_summed_as_coalesce_does(num_ids):
    generator = torch.Generator().manual_seed(num_ids)
    ids = torch.randint(0, 50, (1, num_ids), generator=generator)
    gradient = torch.sparse_coo_tensor(ids, torch.randn(num_ids, 3, generator=generator, dtype=torch.float64), (50, 3))
    rows, sums = _sum_by_row(gradient, torch.float64)
    expected = gradient.coalesce()
    assert torch.equal(rows, expected.indices()[0])
    torch.testing.assert_close(sums, expected.values())


def test_every_rule_is_covered_here():
    assert set(SETTINGS) == set(RULES)


@pytest.mark.parametrize("name", ["sgd", "adagrad", "rowwise_adagrad"])
def test_rules_equal_the_fused_ones_of_fbgemm(name):
    training = pytest.importorskip("fbgemm_gpu.split_table_batched_embeddings_ops_training")
    common = pytest.importorskip("fbgemm_gpu.split_table_batched_embeddings_ops_common")
    from fbgemm_gpu.split_embedding_configs import EmbOptimType

    optimizer = {
        "sgd": EmbOptimType.EXACT_SGD,
        "adagrad": EmbOptimType.EXACT_ADAGRAD,
        "rowwise_adagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
    }[name]
    fused = training.SplitTableBatchedEmbeddingBagsCodegen(
        [(NUM_ROWS, DIM, common.EmbeddingLocation.HOST, training.ComputeDevice.CPU)],
        optimizer=optimizer,
        learning_rate=0.1,
        eps=1e-8,
        pooling_mode=common.PoolingMode.SUM,
    )
    embedding = table()
    fused.split_embedding_weights()[0].copy_(embedding.weight.detach())
    for rows in STEPS[:3]:
        out = fused(torch.tensor(rows), torch.arange(len(rows) + 1))
        out.backward(weights_of(rows))
    decay = {"weight_decay": 0.0, "weight_decay_mode": "NONE"} if name == "rowwise_adagrad" else {}
    take_steps(embedding, LazyOptimizer([embedding.weight], f"{name}_optimizer", lr=0.1, **decay), STEPS[:3])
    torch.testing.assert_close(embedding.weight.detach(), fused.split_embedding_weights()[0], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("rule", "settings"), CASES)
def test_rows_that_are_not_looked_up_keep_weights_and_moments_bit_for_bit(rule, settings):
    embedding = table()
    optimizer = LazyOptimizer([embedding.weight], rule, **settings)
    take_steps(embedding, optimizer, STEPS[:1])
    weight = embedding.weight.detach().clone()
    states = {k: v.clone() for k, v in optimizer.state[embedding.weight].items()}
    take_steps(embedding, optimizer, STEPS[1:2])
    untouched = [r for r in range(NUM_ROWS) if r not in STEPS[1]]
    assert torch.equal(embedding.weight[untouched], weight[untouched])
    assert not torch.equal(embedding.weight[STEPS[1]], weight[STEPS[1]])
    for name, before in states.items():
        if name != "step":
            assert torch.equal(optimizer.state[embedding.weight][name][untouched], before[untouched]), name


def test_an_id_that_stands_twice_in_a_batch_gets_one_step_of_the_summed_gradient():
    twice, once = table(), table()
    settings = {"lr": 0.1}
    for embedding, rows, factor in ((twice, [2, 2], 1.0), (once, [2], 2.0)):
        optimizer = LazyOptimizer([embedding.weight], "adagrad_optimizer", **settings)
        (embedding(torch.tensor(rows)).sum() * factor).backward()
        optimizer.step()
    torch.testing.assert_close(twice.weight, once.weight)


def test_a_batch_without_ids_and_a_step_without_gradients_change_nothing():
    embedding = table()
    before = embedding.weight.detach().clone()
    optimizer = LazyOptimizer([embedding.weight], "adam_optimizer", **SETTINGS["adam_optimizer"][1])
    take_steps(embedding, optimizer, [[]])
    optimizer.zero_grad(set_to_none=True)
    optimizer.step()
    assert torch.equal(embedding.weight, before)


def test_the_accumulator_starts_at_its_initial_value_and_per_row_states_have_one_number_per_row():
    embedding = table()
    optimizer = LazyOptimizer([embedding.weight], "adagrad_optimizer", lr=0.1, initial_accumulator_value=0.5)
    assert torch.equal(optimizer.state[embedding.weight]["momentum1"], torch.full((NUM_ROWS, DIM), 0.5))
    optimizer = LazyOptimizer(
        [embedding.weight], "partial_rowwise_adam_optimizer", **SETTINGS["partial_rowwise_adam_optimizer"][0]
    )
    state = optimizer.state[embedding.weight]
    assert (state["momentum1"].shape, state["exp_avg_sq"].shape) == ((NUM_ROWS, DIM), (NUM_ROWS,))


@pytest.mark.parametrize(("rule", "settings"), CASES)
def test_a_state_dict_carries_a_run_over_to_another_optimizer(rule, settings):
    straight = table()
    take_steps(straight, LazyOptimizer([straight.weight], rule, **settings), STEPS)
    first = table()
    optimizer = LazyOptimizer([first.weight], rule, **settings)
    take_steps(first, optimizer, STEPS[:2])
    second = copy.deepcopy(first)
    other = LazyOptimizer([second.weight], rule, **settings)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    take_steps(second, other, STEPS[2:])
    assert torch.equal(second.weight, straight.weight)


def test_half_precision_tables_keep_their_moments_in_float32():
    embedding = nn.Embedding(NUM_ROWS, DIM, sparse=True, dtype=torch.float16)
    before = embedding.weight.detach().clone()
    optimizer = LazyOptimizer([embedding.weight], "adam_optimizer", **SETTINGS["adam_optimizer"][0])
    embedding(torch.tensor([1])).sum().backward()
    optimizer.step()
    assert optimizer.state[embedding.weight]["exp_avg_sq"].dtype is torch.float32
    torch.testing.assert_close(embedding.weight[1], before[1] - 0.1, rtol=1e-3, atol=1e-3)
