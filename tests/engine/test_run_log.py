import io
import json
import re

import pytest
from rich.console import Console

from tzrec_core.engine.run_log import Meter, RunLog, json_line


def lines(meter: Meter, console: Console) -> list[str]:
    return console.file.getvalue().splitlines()


def plain() -> Console:
    return Console(file=io.StringIO(), width=60)


def test_numbers_that_json_does_not_have_become_null():
    text = json_line({"a": float("nan"), "b": float("inf"), "c": 0.5, "d": 3, "e": "x", "f": True})
    assert text.endswith("\n")
    assert json.loads(text, parse_constant=pytest.fail) == {"a": None, "b": None, "c": 0.5, "d": 3, "e": "x", "f": True}


def test_a_second_run_in_a_folder_goes_on_in_its_file(tmp_path):
    for step in (1, 2):
        log = RunLog(tmp_path / "run", use_tensorboard=False)
        log.write("train", step, 0, {"loss": 0.5})
        log.close()
    written = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert written == [{"split": "train", "step": step, "epoch": 0, "loss": 0.5} for step in (1, 2)]


def test_lines_are_readable_while_the_run_goes_on(tmp_path):
    log = RunLog(tmp_path, use_tensorboard=False)
    log.write("train", 1, 0, {"loss": 0.5})
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["loss"] == 0.5
    log.close()


def test_without_a_terminal_a_line_comes_every_few_steps():
    console = plain()
    with Meter("train", total=5, every=2, console=console) as meter:
        for _ in range(5):
            meter.advance(10, {"loss": 0.25} if meter.is_due else None)
    found = lines(meter, console)
    assert [re.sub(r"[\d,]+ samples/s|\d:\d\d left", "N", line) for line in found] == [
        "train step 2/5  N  loss 0.25  N",
        "train step 4/5  N  loss 0.25  N",
    ]
    assert (meter.num_steps, meter.num_rows) == (5, 50)


def test_an_unknown_length_shows_no_total():
    console = plain()
    with Meter("predict", total=None, every=1, console=console) as meter:
        meter.advance(10, {})
    assert re.fullmatch(r"predict step 1  [\d,]+ samples/s", lines(meter, console)[0])


def test_a_continued_run_counts_on():
    console = plain()
    with Meter("train", total=12, every=5, console=console) as meter:
        meter.skip_to(8)
        for _ in range(4):
            meter.advance(1, {} if meter.is_due else None)
    assert [line.split("  ")[0] for line in lines(meter, console)] == ["train step 10/12"]


def test_paused_time_does_not_count(monkeypatch):
    from tzrec_core.engine import run_log

    now = iter([0.0, 1.0, 101.0, 2.0 + 100.0])
    monkeypatch.setattr(run_log.time, "perf_counter", lambda: next(now))
    meter = Meter.__new__(Meter)
    meter._live, meter.num_rows, meter._started = False, 30, run_log.time.perf_counter()
    with meter.paused():
        pass
    assert meter.rate == pytest.approx(15.0)


def test_a_terminal_gets_a_live_bar_that_a_pause_hides(monkeypatch):
    console = Console(file=io.StringIO(), force_terminal=True, width=80, legacy_windows=False)
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
