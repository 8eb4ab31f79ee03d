"""The update rules against FBGEMM where it runs on the CPU, and against a slow float64 loop over rows everywhere."""

import copy
import math

import pytest
import torch
from torch import nn

from tzrec_core.engine.lazy_optim import RULES, LazyOptimizer

NUM_ROWS, DIM = 7, 4
SETTINGS = {
    "sgd_optimizer": [{"lr": 0.1}],
    "adagrad_optimizer": [{"lr": 0.1}, {"lr": 0.1, "initial_accumulator_value": 0.5}],
    "rowwise_adagrad_optimizer": [
        {"lr": 0.1, "weight_decay": 0.3, "weight_decay_mode": mode} for mode in ("NONE", "L2", "DECOUPLE")
    ],
    "adam_optimizer": [
        {"lr": 0.1, "beta1": 0.9, "beta2": 0.999, "weight_decay": 0.0},
        {"lr": 0.05, "beta1": 0.7, "beta2": 0.95, "weight_decay": 0.2},
    ],
    "partial_rowwise_adam_optimizer": [
        {"lr": 0.1, "beta1": 0.9, "beta2": 0.999, "weight_decay": 0.0},
        {"lr": 0.05, "beta1": 0.7, "beta2": 0.95, "weight_decay": 0.2},
    ],
}
CASES = [(rule, settings) for rule, several in SETTINGS.items() for settings in several]
# rows of each step's batch; row 6 is never looked up, row 1 twice in one step, the last step looks up none
STEPS = [[0, 1, 1, 3], [1, 5], [0, 2, 3, 4, 5], []]


def table() -> nn.Embedding:
    torch.manual_seed(3)
    return nn.Embedding(NUM_ROWS, DIM, sparse=True)


def weights_of(rows: list[int]) -> torch.Tensor:
    """What the loss multiplies the looked-up values with, so that this is the gradient."""
    return torch.randn(len(rows), DIM, generator=torch.Generator().manual_seed(len(rows)))


def take_steps(embedding: nn.Embedding, optimizer: torch.optim.Optimizer, steps: list[list[int]]) -> None:
    for rows in steps:
        optimizer.zero_grad(set_to_none=True)
        (embedding(torch.tensor(rows, dtype=torch.int64)) * weights_of(rows)).sum().backward()
        optimizer.step()


def reference(rule: str, s: dict, start: list[list[float]], steps: list[list[int]]) -> list[list[float]]:
    """One number at a time, as FBGEMM's CUDA kernels are written."""
    table = [list(row) for row in start]
    first = [[0.0] * DIM for _ in table]
    second = [[s.get("initial_accumulator_value", 0.0)] * DIM for _ in table]
    per_row = [0.0] * len(table)
    decay, eps, lr = s.get("weight_decay", 0.0), 1e-8, s["lr"]
    for step, rows in enumerate(steps, 1):
        grads: dict[int, list[float]] = {}
        for row, grad in zip(rows, weights_of(rows).double().tolist()):
            grads[row] = [a + b for a, b in zip(grads.get(row, [0.0] * DIM), grad)]
        for row, grad in grads.items():
            mode = s.get("weight_decay_mode")
            if rule == "rowwise_adagrad_optimizer":
                decayed = [g + decay * w * (mode == "L2") for g, w in zip(grad, table[row])]
                per_row[row] += sum(g * g for g in decayed) / DIM
                multiplier = lr / (math.sqrt(per_row[row]) + eps)
                correction = {"NONE": 1.0, "L2": 1 - multiplier * decay, "DECOUPLE": 1 - lr * decay}[mode]
                table[row] = [correction * w - multiplier * g for w, g in zip(table[row], grad)]
                continue
            if "adam" in rule:
                per_row[row] = s["beta2"] * per_row[row] + (1 - s["beta2"]) * sum(g * g for g in grad) / DIM
            for d, g in enumerate(grad):
                w = table[row][d]
                if rule == "sgd_optimizer":
                    table[row][d] = w - lr * g
                elif rule == "adagrad_optimizer":
                    second[row][d] += g * g
                    table[row][d] = w - lr * g / (math.sqrt(second[row][d]) + eps)
                else:
                    first[row][d] = s["beta1"] * first[row][d] + (1 - s["beta1"]) * g
                    second[row][d] = s["beta2"] * second[row][d] + (1 - s["beta2"]) * g * g
                    v = per_row[row] if rule.startswith("partial") else second[row][d]
                    up = first[row][d] / (1 - s["beta1"] ** step)
                    down = math.sqrt(v / (1 - s["beta2"] ** step)) + eps
                    table[row][d] = w - lr * (up / down + decay * w)
    return table


@pytest.mark.parametrize(("rule", "settings"), CASES)
def test_each_rule_computes_what_a_loop_over_single_numbers_computes(rule, settings):
    embedding = table()
    expected = reference(rule, settings, embedding.weight.tolist(), STEPS)
    take_steps(embedding, LazyOptimizer([embedding.weight], rule, **settings), STEPS)
    torch.testing.assert_close(embedding.weight.detach(), torch.tensor(expected), rtol=2e-5, atol=2e-6)


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
    assert torch.equal(optimizer.state[embedding.weight]["sum"], torch.full((NUM_ROWS, DIM), 0.5))
    optimizer = LazyOptimizer(
        [embedding.weight], "partial_rowwise_adam_optimizer", **SETTINGS["partial_rowwise_adam_optimizer"][0]
    )
    state = optimizer.state[embedding.weight]
    assert (state["momentum1"].shape, state["momentum2"].shape) == ((NUM_ROWS, DIM), (NUM_ROWS,))


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
    assert optimizer.state[embedding.weight]["momentum2"].dtype is torch.float32
    torch.testing.assert_close(embedding.weight[1], before[1] - 0.1, rtol=1e-3, atol=1e-3)
