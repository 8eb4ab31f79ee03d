import json

import torch

from tzrec_core.engine.callbacks.profiler import Profiler


def steps(run, profiler, count):
    profiler.on_train_start(run)
    for _ in range(count):
        torch.addmm(torch.zeros(8), torch.ones(8, 8), torch.ones(8, 8))
        run.step += 1
        profiler.on_step_end(run, None)


def test_five_steps_after_the_first_twelve_are_recorded(make_run, capsys):
    run, profiler = make_run(step=100), Profiler()
    steps(run, profiler, 20)
    profiler.on_train_end(run)
    folder = run.model_dir / "profile"
    assert sorted(file.name for file in folder.iterdir()) == ["step_117.trace.json", "step_117.txt"]
    trace = json.loads((folder / "step_117.trace.json").read_text())["traceEvents"]
    assert sum(event.get("name") == "aten::addmm" for event in trace) == 5
    assert "aten::addmm" in (folder / "step_117.txt").read_text()
    assert "profile written to" in capsys.readouterr().err


def test_a_run_that_ends_while_recording_writes_what_there_is(make_run):
    run, profiler = make_run(), Profiler()
    steps(run, profiler, 14)
    profiler.on_error(run, ValueError())
    trace = json.loads((run.model_dir / "profile/step_14.trace.json").read_text())["traceEvents"]
    assert sum(event.get("name") == "aten::addmm" for event in trace) == 2


def test_a_run_that_is_too_short_says_so(make_run, caplog):
    run, profiler = make_run(), Profiler()
    steps(run, profiler, 3)
    profiler.on_train_end(run)
    assert "nothing was recorded, for recording starts after 12 steps and this run took 3" in caplog.text


def test_other_ranks_record_nothing(make_run, said):
    run, profiler = make_run(rank=1), Profiler()
    steps(run, profiler, 20)
    profiler.on_train_end(run)
    assert not run.model_dir.exists()
    assert said() == []
