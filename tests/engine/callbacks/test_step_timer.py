import itertools

import pytest
import torch

from tzrec_core.engine.callbacks import step_timer
from tzrec_core.engine.callbacks.step_timer import MEASURES, StepTimer
from tzrec_core.engine.world import World

ALONE = World(0, 1, 0, 1, torch.device("cpu"))


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves by what is added to `clock[0]`."""
    now = [100.0]
    monkeypatch.setattr(step_timer.time, "perf_counter", lambda: now[0])
    return now


def loader(clock, seconds):
    for number in itertools.count():
        clock[0] += seconds
        yield number


def test_speed_and_the_share_of_waiting_are_those_of_a_window(clock):
    timer = StepTimer(ALONE)
    batches = timer.batches(loader(clock, 1.0))
    clock[0] += 50.0  # before the first batch is asked for, the clock stands
    for _ in range(4):
        next(batches)
        clock[0] += 3.0
        timer.step(20)
    first = timer.values()
    assert first["samples_per_second"] == pytest.approx(80 / 16)
    assert first["data_wait"] == pytest.approx(4 / 16)
    assert first["device_wait"] == 0.0
    assert first["memory_mib"] > 50
    assert list(first) == [name for name in MEASURES if name != "device_memory_mib"]
    next(batches)
    clock[0] += 1.0
    timer.step(20)
    second = timer.values()
    assert (second["samples_per_second"], second["data_wait"]) == (pytest.approx(10.0), pytest.approx(0.5))
    assert timer.overall() == pytest.approx(100 / 18)


def test_pauses_do_not_count(clock):
    timer = StepTimer(ALONE)
    batches = timer.batches(loader(clock, 1.0))
    next(batches)
    timer.step(8)
    with timer.paused():
        clock[0] += 1000.0
    clock[0] += 1.0
    assert timer.values()["samples_per_second"] == pytest.approx(4.0)
    with pytest.raises(ValueError), timer.paused():
        clock[0] += 1000.0
        raise ValueError
    assert timer.overall() == pytest.approx(4.0)


def test_the_speed_is_that_of_all_ranks_and_waits_are_their_mean(clock, monkeypatch):
    monkeypatch.setattr(World, "gather", lambda self, mine: [mine, (10, 8.0, 4.0, 2.0, 2**40, 0)])
    timer = StepTimer(ALONE)
    batches = timer.batches(loader(clock, 1.0))
    next(batches)
    clock[0] += 3.0
    timer.step(30)
    values = timer.values()
    assert values["samples_per_second"] == pytest.approx(40 / 8)  # the slowest rank holds up all
    assert values["data_wait"] == pytest.approx((1 / 4 + 4 / 8) / 2)
    assert values["device_wait"] == pytest.approx((0 + 2 / 8) / 2)
    assert values["memory_mib"] == 2**20


def test_batches_pass_through_and_end(clock):
    assert list(StepTimer(ALONE).batches([1, 2, 3])) == [1, 2, 3]


def test_a_run_without_a_step_has_no_speed():
    assert StepTimer(ALONE).overall() == 0.0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_that_lags_behind_is_waited_for_at_the_end_of_a_window():
    timer = StepTimer(World(0, 1, 0, 1, torch.device("cuda", 0)))
    product = torch.eye(4096, device="cuda")
    torch.cuda.synchronize()
    for _ in timer.batches([None, None]):
        for _ in range(50):
            product = product @ product
        timer.step(1)
    values = timer.values()
    assert values["device_wait"] > 0.5
    assert values["device_memory_mib"] >= 4096**2 * 4 / 2**20
