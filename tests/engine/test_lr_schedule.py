"""Each schedule against hand numbers, and against torch's own schedulers where torch has it."""

import pytest
import torch
from google.protobuf import text_format

from tzrec_core.engine.lr_schedule import chosen_schedule, learning_rate
from tzrec_core.protos.optimizer_pb2 import DenseOptimizer, SparseOptimizer


def schedule(text: str, holder: type = DenseOptimizer):
    return chosen_schedule(text_format.Parse(text, holder()))


def rates(text: str, lr: float, times: list[int]) -> list[float]:
    return [learning_rate(schedule(text), lr, step=t, epoch=99) for t in times]


def torch_rates(make, num_steps: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.8)
    scheduler = make(optimizer)
    found = []
    for _ in range(num_steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_no_schedule_and_a_constant_one_keep_the_rate():
    assert learning_rate(None, 0.3, step=7, epoch=2) == 0.3
    assert rates("constant_learning_rate {}", 0.3, [0, 5, 1000]) == [0.3, 0.3, 0.3]
    assert schedule("sgd_optimizer { lr: 1 }", SparseOptimizer) is None


def test_exponential_decay_falls_in_jumps_or_little_by_little_down_to_its_minimum():
    settings = "decay_size: 10 decay_factor: 0.5"
    jumps = rates(f"exponential_decay_learning_rate {{ {settings} }}", 0.8, [0, 9, 10, 19, 20, 30])
    assert jumps == pytest.approx([0.8, 0.8, 0.4, 0.4, 0.2, 0.1])
    smooth = rates(f"exponential_decay_learning_rate {{ {settings} staircase: false }}", 0.8, [0, 5, 10])
    assert smooth == pytest.approx([0.8, 0.8 * 0.5**0.5, 0.4])
    floored = rates(f"exponential_decay_learning_rate {{ {settings} min_learning_rate: 0.3 }}", 0.8, [10, 20, 500])
    assert floored == pytest.approx([0.4, 0.3, 0.3])
    every_step = rates("exponential_decay_learning_rate { decay_size: 1 decay_factor: 0.5 }", 0.8, list(range(6)))
    assert every_step == pytest.approx(torch_rates(lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.5), 6))


def test_a_warm_up_rises_in_a_line_and_the_decay_counts_from_its_end():
    text = (
        "exponential_decay_learning_rate { decay_size: 10 decay_factor: 0.5 warmup_learning_rate: 0.2 warmup_size: 4 }"
    )
    assert rates(text, 1.0, [0, 1, 2, 3, 4, 13, 14]) == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 0.5])
    text = "cosine_annealing_learning_rate { T_max: 4 warmup_size: 2 }"
    assert rates(text, 1.0, [0, 1, 2, 4, 6]) == pytest.approx([0.0, 0.5, 1.0, 0.5, 0.0])
    text = "cosine_annealing_warm_restarts_learning_rate { T_0: 2 warmup_learning_rate: 3 warmup_size: 2 }"
    assert rates(text, 1.0, [0, 1, 2, 3, 4, 5]) == pytest.approx([3.0, 2.0, 1.0, 0.5, 1.0, 0.5])


def test_manual_steps_take_each_rate_from_its_size_on():
    text = "manual_step_learning_rate { schedule_sizes: [4, 6] learning_rates: [0.5, 0.1] }"
    assert rates(text, 1.0, [0, 3, 4, 5, 6, 100]) == pytest.approx([1.0, 1.0, 0.5, 0.5, 0.1, 0.1])
    text = "manual_step_learning_rate { schedule_sizes: [4, 6] learning_rates: [0.6, 0.1] warmup: true }"
    assert rates(text, 0.2, [0, 1, 2, 3, 4, 6]) == pytest.approx([0.2, 0.3, 0.4, 0.5, 0.6, 0.1])


def test_cosine_annealing_equals_torchs_on_the_way_down_and_stays_there():
    found = rates("cosine_annealing_learning_rate { T_max: 10 min_learning_rate: 0.1 }", 0.8, list(range(11)))
    expected = torch_rates(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 10, eta_min=0.1), 11)
    assert found == pytest.approx(expected)
    assert (
        rates("cosine_annealing_learning_rate { T_max: 10 min_learning_rate: 0.1 }", 0.8, [11, 99])
        == [pytest.approx(0.1)] * 2
    )


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_cosine_annealing_with_warm_restarts_equals_torchs(factor):
    text = f"cosine_annealing_warm_restarts_learning_rate {{ T_0: 3 T_mult: {factor} min_learning_rate: 0.1 }}"
    expected = torch_rates(
        lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 3, factor, eta_min=0.1), 40
    )
    assert rates(text, 0.8, list(range(40))) == pytest.approx(expected)


@pytest.mark.parametrize(
    "text",
    [
        "exponential_decay_learning_rate { decay_size: 2 by_epoch: true }",
        "manual_step_learning_rate { schedule_sizes: 2 learning_rates: 0.95 by_epoch: true }",
        "cosine_annealing_learning_rate { T_max: 4 min_learning_rate: 0.9 by_epoch: true }",
        "cosine_annealing_warm_restarts_learning_rate { T_0: 4 min_learning_rate: 0.9 by_epoch: true }",
    ],
)
def test_every_schedule_can_count_epochs(text):
    found = [learning_rate(schedule(text), 1.0, step=1000 * epoch + 17, epoch=epoch) for epoch in range(3)]
    assert found[0] == 1.0
    assert found[2] == pytest.approx(0.95)
