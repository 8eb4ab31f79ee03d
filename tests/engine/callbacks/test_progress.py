import io
import re

import pytest
from rich.console import Console

from tzrec_core.engine.callbacks import progress
from tzrec_core.engine.callbacks.callbacks import Callbacks, Member
from tzrec_core.engine.callbacks.progress import Meter, Progress

MEASURED = {"samples_per_second": 12345.6, "data_wait": 0.031, "device_wait": 0.0, "memory_mib": 1234.4}


def lines(console: Console) -> list[str]:
    return console.file.getvalue().splitlines()


def plain() -> Console:
    return Console(file=io.StringIO(), width=60)


def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=100, legacy_windows=False)


# Meter


def test_without_a_terminal_a_line_comes_every_few_steps():
    console = plain()
    with Meter("train", total=5, every=2, console=console) as meter:
        for _ in range(5):
            meter.advance(10, {"loss": 0.25} if meter.is_due else None)
    assert [re.sub(r"[\d,]+ samples/s|\d:\d\d left", "N", line) for line in lines(console)] == [
        "train step 2/5  N  loss 0.25  N",
        "train step 4/5  N  loss 0.25  N",
    ]
    assert (meter.num_steps, meter.num_rows) == (5, 50)


def test_an_unknown_length_shows_no_total():
    console = plain()
    with Meter("predict", total=None, every=1, console=console) as meter:
        meter.advance(10, {})
    assert re.fullmatch(r"predict step 1  [\d,]+ samples/s", lines(console)[0])


def test_a_continued_run_counts_on():
    console = plain()
    with Meter("train", total=12, every=5, console=console) as meter:
        meter.skip_to(8)
        for _ in range(4):
            meter.advance(1, {} if meter.is_due else None)
    assert [line.split("  ")[0] for line in lines(console)] == ["train step 10/12"]


def test_paused_time_does_not_count(monkeypatch):
    now = iter([0.0, 1.0, 101.0, 102.0])
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(now))
    meter = Meter.__new__(Meter)
    meter._live, meter.num_rows, meter._started = False, 30, progress.time.perf_counter()
    with meter.paused():
        pass
    assert meter.rate == pytest.approx(15.0)


def test_a_terminal_gets_a_live_bar_that_a_pause_hides():
    console = terminal()
    with Meter("train", total=4, every=2, console=console) as meter:
        meter.advance(10, {"loss": 0.25})
        with meter.paused():
            assert not meter._progress.live.is_started
            meter.say("eval step 1  auc [0.5]")
        assert meter._progress.live.is_started
    text = console.file.getvalue()
    assert "eval step 1  auc [0.5]" in text
    assert "1/4" in text and "samples/s  loss 0.25" in text
    assert "train step" not in text


# Progress


def follow(run, output, console, values):
    """A step after those of `run`, as the loop reports it."""
    callbacks = Callbacks([Member(Progress(console), "progress")])
    callbacks.on_train_start(run)
    run.step += 1
    callbacks.on_step_end(run, output)
    callbacks.on_log(run, values)
    with callbacks.paused():
        callbacks.on_evaluate(run, {"auc": 0.75, "l2_loss": 0.5})
    run.say("a line [of] mine")
    callbacks.on_train_end(run)


def test_a_line_shows_speed_loss_metrics_learning_rates_waits_and_memory(make_run, make_output):
    run, console = make_run(num_steps=10, step=3), plain()
    follow(run, make_output(run), console, {"loss": 0.25, "auc": 0.5, **MEASURED})
    train, evaluated, said = lines(console)
    assert re.sub(r"\d:\d\d left", "N", train) == (
        "train step 4/10  12,346 samples/s  loss 0.25  auc 0.5  lr sparse 0.02 dense 0.001  data wait 3%  1,234 MiB  N"
    )
    assert evaluated == "eval step 4  auc 0.750000  l2_loss 0.500000"
    assert said == "a line [of] mine"


def test_equal_learning_rates_are_shown_once_and_gpus_add_their_own(make_run, make_output):
    run, console = make_run(), plain()
    run.optimizer.rates = {"sparse": 0.1, "dense": 0.1}
    follow(run, make_output(run), console, {**MEASURED, "device_wait": 0.5, "device_memory_mib": 2000.0})
    assert lines(console)[0] == (
        "train step 1  12,346 samples/s  lr 0.1  data wait 3%  device wait 50%  1,234 MiB  2,000 MiB on device"
    )


def test_a_terminal_gets_a_bar_while_training(make_run, make_output):
    run, console = make_run(num_steps=10, step=3), terminal()
    follow(run, make_output(run), console, {"loss": 0.25, **MEASURED})
    text = console.file.getvalue()
    assert re.search(r"train .*━.*4/10.*samples/s.*loss 0\.25.*lr sparse", text)
    assert "a line [of] mine" in text
    assert "MiB" not in text


def test_an_error_takes_the_bar_away(make_run):
    run, console = make_run(num_steps=10), terminal()
    bar = Progress(console)
    bar.on_error(run, ValueError())  # before the start there is nothing to take away
    bar.on_train_start(run)
    assert bar._meter._progress.live.is_started
    bar.on_error(run, ValueError())
    assert not bar._meter._progress.live.is_started


def test_other_ranks_show_nothing(make_run, make_output):
    run, console = make_run(rank=1), plain()
    follow(run, make_output(run), console, {"loss": 0.25, **MEASURED})
    assert lines(console) == []
