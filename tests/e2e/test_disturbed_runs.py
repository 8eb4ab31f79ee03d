"""Runs that are killed, stopped and started again, in real processes: no row lost, none twice, the same end."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

from tzrec_core.engine.checkpoint import checkpoints

TINY = Path(__file__).parents[1] / "tiny_plugin"
sys.path.insert(0, str(TINY))
import tiny_data  # noqa: E402
from checkpoint_tensors import checkpoint_tensors  # noqa: E402

NUM_ROWS = 301  # which two processes cannot share evenly
STEPS = {1: 38, 2: 20}  # of two epochs in batches of 16, by number of processes


@pytest.fixture
def folder(tmp_path) -> Path:
    """Tables and `c.config`: a shuffled run over two epochs, whose callback writes down the rows of each step."""
    text = tiny_data.write_tables(tmp_path, num_train=NUM_ROWS)
    settings = "num_epochs: 2  save_checkpoints_steps: 4  deterministic: true  log_step_count_steps: 2"
    recorder = f'callbacks {{ [type.googleapis.com/google.protobuf.StringValue] {{ value: "{tmp_path}" }} }}'
    row = 'id_feature { feature_name: "row" expression: "item:row" num_buckets: 400 embedding_dim: 4 }'
    for old, new in (
        ("seed: 7", f"seed: 7  {settings}  {recorder}"),
        ("num_workers: 0", "num_workers: 2  shuffle: true  shuffle_buffer_size: 2"),
        ("model_config {", f"feature_configs {{ {row} }}\nmodel_config {{"),
        ('"price"]', '"price", "row"]'),
        ("sparse_optimizer { adam", "sparse_optimizer { rowwise_adagrad"),
    ):
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "c.config").write_text(text)
    return tmp_path


def command(*arguments: str, launcher: tuple[str, ...] = ()) -> list[str]:
    manifests = ["--plugin", str(TINY / "tiny.py"), "--plugin", str(TINY / "recorder.py")]
    return [sys.executable, *launcher, "-m", "tzrec_core.cli.app", *manifests, *arguments]


def start(folder: Path, *arguments: str, **kwargs) -> subprocess.Popen:
    env = {**os.environ, "TZREC_PLUGINS": "", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command(*arguments, **kwargs), cwd=folder, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def run(folder: Path, *arguments: str, **kwargs) -> subprocess.CompletedProcess:
    process = start(folder, *arguments, **kwargs)
    try:
        out, err = process.communicate(timeout=180)
    finally:
        process.kill()
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def wait_for(file: Path) -> None:
    deadline = time.monotonic() + 120
    while not file.exists():
        assert time.monotonic() < deadline, f"{file} never came"
        time.sleep(0.05)


def seen_rows(folder: Path, num_processes: int) -> list[Counter]:
    """How often each row counted in each epoch: the last record of a step is the one that the model kept."""
    last = {}
    for rank in range(num_processes):
        for line in (folder / f"rows-{rank}.jsonl").read_text().splitlines():
            step, rows = json.loads(line)
            last[rank, step] = rows
    per_epoch = STEPS[num_processes] // 2
    epochs = [Counter(), Counter()]
    for (_, step), rows in last.items():
        epochs[(step - 1) // per_epoch].update(rows)
    return epochs


def last_tensors(model_dir: Path) -> dict[str, torch.Tensor]:
    return checkpoint_tensors(checkpoints(model_dir)[-1][1])


def assert_same_end(folder: Path, num_processes: int, *, same_bits: bool = True) -> None:
    """`run` must have ended as an undisturbed run does, having seen each row once in each epoch."""
    every_row_once = Counter(range(NUM_ROWS))
    assert seen_rows(folder, num_processes) == [every_row_once, every_row_once]
    quiet = run(folder, "train", "c.config", "--nproc", str(num_processes), "--set", f"model_dir={folder}/quiet")
    assert quiet.returncode == 0, quiet.stderr
    one, other = last_tensors(folder / "run"), last_tensors(folder / "quiet")
    assert one.keys() == other.keys()
    differ = [name for name in one if not torch.equal(one[name], other[name])]
    if same_bits:
        assert differ == []
    for name in differ:
        torch.testing.assert_close(one[name], other[name])
    assert checkpoints(folder / "run")[-1][0] == STEPS[num_processes]


def test_a_run_killed_within_an_epoch_goes_on_to_the_end_of_an_undisturbed_one(folder):
    (folder / "SIGKILL-0-7").touch()
    assert run(folder, "train", "c.config").returncode == -signal.SIGKILL
    assert [step for step, _ in checkpoints(folder / "run")] == [4]
    assert run(folder, "train", "c.config").returncode == 0
    assert_same_end(folder, 1)


@pytest.mark.slow
def test_a_run_may_be_killed_at_any_step(folder):
    for step in (1, 4, 19, 20, 38):
        (folder / f"SIGKILL-0-{step}").touch()
        assert run(folder, "train", "c.config").returncode == -signal.SIGKILL
    assert run(folder, "train", "c.config").returncode == 0
    assert_same_end(folder, 1)


@pytest.mark.slow
def test_a_killed_process_of_two_makes_both_go_on_by_themselves(folder):
    (folder / "SIGKILL-1-7").touch()
    ended = run(folder, "train", "c.config", "--nproc", "2")
    assert ended.returncode == 0, ended.stderr
    assert "process 1 of 2 was killed by SIGKILL; starting all of them again (1 of 3)" in ended.stderr
    assert "continuing from" in ended.stderr
    assert_same_end(folder, 2)


@pytest.mark.slow
@pytest.mark.parametrize(("num_processes", "name"), [(1, "SIGTERM"), (1, "SIGINT"), (2, "SIGTERM")])
def test_a_run_that_is_told_to_stop_saves_and_ends_well_and_goes_on_later(folder, num_processes, name):
    arguments = ("train", "c.config", "--nproc", str(num_processes))
    process = start(folder, *arguments, "--set", "train_config.num_epochs=2000")
    wait_for(folder / "run" / "model.ckpt-4")
    process.send_signal(getattr(signal, name))
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    step = checkpoints(folder / "run")[-1][0]
    assert f"stopped at step {step}: {name}" in err
    if step >= STEPS[num_processes]:
        return  # this machine was faster than the signal
    ended = run(folder, *arguments)
    assert ended.returncode == 0, ended.stderr
    # processes average their BatchNorm statistics at each checkpoint, of which there is one more
    assert_same_end(folder, num_processes, same_bits=num_processes == 1)


@pytest.mark.slow
def test_one_process_of_two_that_is_told_to_stop_makes_both_save_and_end(folder):
    (folder / "SIGTERM-1-7").touch()
    ended = run(folder, "train", "c.config", "--nproc", "2")
    assert ended.returncode == 0, ended.stderr
    step = checkpoints(folder / "run")[-1][0]
    assert step < STEPS[2]
    assert f"stopped at step {step}: SIGTERM" in ended.stderr


@pytest.mark.slow
def test_a_second_run_in_a_model_dir_is_refused_and_names_the_first(folder):
    first = start(folder, "train", "c.config", "--set", "train_config.num_epochs=2000")
    wait_for(folder / "run" / "model.ckpt-4")
    second = run(folder, "train", "c.config")
    first.kill()
    first.communicate()
    assert second.returncode == 2
    assert f"is in use by another training run: process {first.pid} on" in second.stderr
    assert run(folder, "train", "c.config", "--set", "train_config.num_steps=8").returncode == 0


@pytest.mark.slow
def test_torchrun_and_nproc_and_one_process_agree(folder):
    torchrun = ("-m", "torch.distributed.run", "--nproc-per-node", "2")
    here = ("--set", f"model_dir={folder}/torchrun")
    assert run(folder, "train", "c.config", *here, launcher=torchrun).returncode == 0
    assert run(folder, "train", "c.config", "--nproc", "2").returncode == 0
    one, other = last_tensors(folder / "run"), last_tensors(folder / "torchrun")
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
    results = [
        json.loads(run(folder, "eval", "c.config", "--json", "--nproc", count).stdout)["metrics"] for count in "12"
    ]
    assert results[0] == pytest.approx(results[1], abs=1e-6)


@pytest.mark.slow
def test_a_mistake_is_said_once_whatever_the_number_of_processes(folder):
    ended = run(folder, "train", "c.config", "--nproc", "2", "--set", "train_input_path=nowhere.parquet")
    assert ended.returncode == 2
    assert ended.stderr.count("error") == 1, ended.stderr
    assert "Traceback" not in ended.stderr and "again" not in ended.stderr
