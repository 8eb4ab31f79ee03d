"""The engine's benchmark at toy size: that it runs, and that its two sides do the same work."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def sides() -> ModuleType:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import engine_sides
    finally:
        sys.path.remove(str(BENCHMARKS))
    return engine_sides


@pytest.fixture
def bench(monkeypatch, tmp_path) -> ModuleType:
    """The script as a module, called with a toy's arguments, on all cores of the tests."""
    spec = importlib.util.spec_from_file_location("engine_benchmark", BENCHMARKS / "engine.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module.os, "sched_setaffinity", lambda *args: None, raising=False)
    monkeypatch.setattr(sys, "argv", ["engine.py", "--toy", "--only", "step", "--out", str(tmp_path / "table.md")])
    return module


@pytest.mark.parametrize("net", ["deepfm", "dlrm"])
def test_engine_and_hand_written_loop_train_to_the_same_loss(sides, net):
    settings = {"net": net, "num_ids": 50, "batch_size": 256, "num_batches": 4}
    with sides.use_registry(sides.Registry.find(sides.Selection(files=(sides.DLRM_PLUGIN,)))):
        with sides.sides("hand", **settings) as served, sides.sides("engine", **settings) as ours:
            hand, engine = served["plain loop"], ours["engine"]
            sides._fill(hand.tensors, engine.tensors)
            losses = [(engine.step(), hand.step()) for _ in range(24)]
        sides.leave_world()
    for ours, theirs in losses:
        assert ours == pytest.approx(theirs, abs=1e-3)
    assert losses[-1][0] < losses[0][0] - 0.02


def test_processes_take_turns_and_start_from_equal_parameters(bench, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "STEP_TARGET", 0.0)
    monkeypatch.setattr(bench, "NETS", {"deepfm": "DeepFM"})
    bench.main()
    text = (tmp_path / "table.md").read_text()
    row = next(line for line in text.splitlines() if line.startswith("| engine step / torchrec loop, DeepFM"))
    assert "| >= 0.0 |" in row and row.endswith("| yes |")
    assert float(row.partition("losses differ by ")[2].split()[0]) < 1e-5
    assert "engine.py --toy --only step" in text and "torchrec 1" in text


def test_a_missed_target_ends_with_an_error_and_the_top_of_the_profile(bench, tmp_path, monkeypatch):
    row = bench.Row("engine step", ">= 0.97", "0.500", "2 ms / 1 ms", False)
    monkeypatch.setattr(bench, "SECTIONS", {"step": lambda size: iter([row])})
    monkeypatch.setattr(bench, "call", lambda function, environment, **arguments: ["40% aten::mm"])
    with pytest.raises(SystemExit, match="missed: engine step"):
        bench.main()
    text = (tmp_path / "table.md").read_text()
    assert "| engine step | >= 0.97 | 0.500 | 2 ms / 1 ms | **no** |" in text
    assert "40% aten::mm" in text
