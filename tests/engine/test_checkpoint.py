import math
import os
import pickle
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from ranks import run_ranks

from tzrec_core.engine import checkpoint as module
from tzrec_core.engine.checkpoint import (
    CheckpointSaver,
    checkpoints,
    find_checkpoint,
    load_model,
    load_optimizer,
    read_meta,
)
from tzrec_core.engine.checkpoint_files import read_tensors, write_meta
from tzrec_core.engine.world import World, join_world
from tzrec_core.errors import CheckpointError, ConfigError

WORLD = World(0, 1, 0, 1, torch.device("cpu"))


class Net(nn.Module):
    def __init__(self, hidden=8, has_unused=False):
        super().__init__()
        self.table = nn.Embedding(10, 4)
        self.norm = nn.BatchNorm1d(4)
        self.hidden = nn.Linear(4, hidden)
        self.output = nn.Linear(hidden, 1)
        if has_unused:
            self.unused = nn.Linear(2, 2)

    def forward(self, ids):
        return self.output(torch.relu(self.hidden(self.norm(self.table(ids)))))


class Run:
    """A model in place of a TrainWrapper's, with an optimizer, and steps to take."""

    def __init__(self, optimizer=torch.optim.Adam, **net):
        torch.manual_seed(5)
        self.wrapper = nn.Module()
        self.wrapper.model = Net(**net)
        self.optimizer = optimizer(self.wrapper.parameters(), lr=0.1)

    def step(self, times=1):
        for _ in range(times):
            self.optimizer.zero_grad()
            self.wrapper.model(torch.arange(10)).square().sum().backward()
            self.optimizer.step()
        return self

    def states(self):
        names = {id(p): name for name, p in self.wrapper.named_parameters()}
        return {
            f"state.{names[id(p)]}.{key}": value
            for p, states in self.optimizer.state.items()
            for key, value in states.items()
        }

    def save(self, folder, step, *, wait=True, **settings):
        with CheckpointSaver(folder, WORLD, **settings) as saver:
            return saver.save(self.wrapper.state_dict(), self.states(), {"step": step}, wait=wait)

    def load(self, path):
        load_model(path, self.wrapper)
        load_optimizer(path, self.states())
        return self

    def tensors(self):
        return {name: t.clone() for name, t in [*self.wrapper.state_dict().items(), *self.states().items()]}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_loaded_checkpoint_goes_on_bit_for_bit_as_the_run_that_wrote_it(tmp_path):
    run = Run().step(2)
    path = run.save(tmp_path, 2)
    at_save = run.tensors()
    run.step(2)
    other = Run().step().load(path)
    assert_same(other.tensors(), at_save)
    assert_same(other.step(2).tensors(), run.tensors())
    assert other.wrapper.model.norm.num_batches_tracked == 4


def test_meta_is_what_was_given_with_versions_and_checksums(tmp_path):
    given = {"step": 1, "epoch": 2, "in_epoch": 3, "order_key": {"files": ["a"]}, "callbacks": {"x": [1.5, None]}}
    run = Run().step()
    with CheckpointSaver(tmp_path, WORLD) as saver:
        meta = read_meta(saver.save(run.wrapper.state_dict(), run.states(), given, wait=True))
    files = meta.pop("files")
    assert meta == {**given, "tzrec-core": "0.1.0", "torch": torch.__version__}
    assert set(files) == {
        "model/.metadata",
        "model/__0_0.distcp",
        "optimizer/.metadata",
        "optimizer/__0_0.distcp",
    }


def test_equal_tensors_make_equal_files_wherever_they_lie(tmp_path):
    first = Run().step(2).save(tmp_path / "first", 2)
    second = Run().step(2).save(tmp_path / "elsewhere", 2, wait=False)
    for file in sorted(path for path in first.rglob("*") if path.is_file()):
        assert file.read_bytes() == (second / file.relative_to(first)).read_bytes(), file


def test_an_optimizer_without_states_is_saved_and_loaded(tmp_path):
    path = Run(torch.optim.SGD).step().save(tmp_path, 1)
    Run(torch.optim.SGD).load(path)


def test_a_parameter_without_a_saved_state_keeps_what_it_has_and_is_named(tmp_path, caplog):
    path = Run(has_unused=True).step().save(tmp_path, 1)
    names = ["state.model.unused.weight.exp_avg", "state.model.unused.weight.step"]
    tensors = {**Run(has_unused=True).step().states(), names[0]: torch.ones(2, 2), names[1]: torch.ones(())}
    assert load_optimizer(path, tensors) == names
    assert torch.equal(tensors[names[0]], torch.ones(2, 2))
    assert "holds no state of 1 parameters, such as state.model.unused.weight" in caplog.text


# Which one


def test_the_latest_checkpoint_is_found_by_number_and_not_by_spelling(tmp_path):
    for name in ("model.ckpt-9", "model.ckpt-10", "model.ckpt-2", "model.ckpt-x", ".model.ckpt-11.writing"):
        (tmp_path / name / "model").mkdir(parents=True)
    assert [step for step, _ in checkpoints(tmp_path)] == [2, 9, 10]
    assert find_checkpoint(tmp_path) == find_checkpoint(tmp_path, "latest") == tmp_path / "model.ckpt-10"
    assert find_checkpoint(tmp_path, "9") == tmp_path / "model.ckpt-9"
    assert find_checkpoint(tmp_path, tmp_path / "model.ckpt-2") == tmp_path / "model.ckpt-2"


def test_a_checkpoint_that_is_not_there_is_an_error_that_says_what_to_do(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no checkpoint .*train first: tzrec train"):
        find_checkpoint(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"holds no checkpoint .*train first"):
        find_checkpoint(tmp_path, "3")
    (tmp_path / "model.ckpt-2/model").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 3; its steps: 2"):
        find_checkpoint(tmp_path, "3")
    with pytest.raises(CheckpointError, match="is not a checkpoint: it has no folder 'model'"):
        find_checkpoint(tmp_path, tmp_path)
    with pytest.raises(CheckpointError, match=r"has no best checkpoint.*train_config\.best_checkpoint"):
        find_checkpoint(tmp_path, "best")


def test_only_the_newest_are_kept(tmp_path):
    run = Run().step()
    for step in (8, 9, 10, 11):
        run.save(tmp_path, step, keep_max=2)
    assert [step for step, _ in checkpoints(tmp_path)] == [10, 11]
    run.save(tmp_path, 12)
    assert [step for step, _ in checkpoints(tmp_path)] == [10, 11, 12]


# The best one


def best_of(folder, values, *, higher_is_better=True, **settings):
    """The steps kept after one save and evaluation per value, and the step of the best."""
    rule = SimpleNamespace(metric="auc", higher_is_better=higher_is_better)
    state = {"model.weight": torch.ones(2)}
    with CheckpointSaver(folder, WORLD, best=rule, **settings) as saver:
        for value in values:
            step = max([0, *(s for s, _ in checkpoints(folder))]) + 1
            saver.save(state, {}, {"step": step}, wait=False)
            saver.evaluated(step, {"loss": 9.0, "auc": value})
    return [step for step, _ in checkpoints(folder)], find_checkpoint(folder, "best").name


@pytest.mark.parametrize(
    ("values", "higher_is_better", "kept", "best"),
    [
        ([0.6, 0.8, 0.7, 0.7], True, [2, 4], 2),
        ([0.6, 0.8, 0.7, 0.5], False, [4], 4),
        ([0.6, 0.6, 0.6], True, [1, 3], 1),
        ([math.nan, 0.5, math.nan, 0.4], True, [2, 4], 2),
        ([0.5, math.inf], True, [2], 2),
    ],
)
def test_the_best_is_kept_besides_the_newest(tmp_path, values, higher_is_better, kept, best):
    found = best_of(tmp_path, values, higher_is_better=higher_is_better, keep_max=1)
    assert found == (kept, f"model.ckpt-{best}")


def test_a_run_that_goes_on_knows_the_best_of_before(tmp_path):
    assert best_of(tmp_path, [0.7, 0.9], keep_max=1) == ([2], "model.ckpt-2")
    assert best_of(tmp_path, [0.8], keep_max=1) == ([2, 3], "model.ckpt-2")
    assert best_of(tmp_path, [0.95], keep_max=1) == ([4], "model.ckpt-4")


def test_by_another_rule_the_best_begins_anew(tmp_path):
    assert best_of(tmp_path, [0.7]) == ([1], "model.ckpt-1")
    assert best_of(tmp_path, [0.9], higher_is_better=False) == ([1, 2], "model.ckpt-2")


def test_a_step_that_is_evaluated_again_has_its_new_value(tmp_path):
    rule = SimpleNamespace(metric="auc", higher_is_better=True)
    with CheckpointSaver(tmp_path, WORLD, best=rule) as saver:
        for step, value in ((1, 0.9), (1, 0.5), (2, 0.6)):
            saver.save({"model.weight": torch.ones(2)}, {}, {"step": step}, wait=True)
            saver.evaluated(step, {"auc": value})
    assert find_checkpoint(tmp_path, "best").name == "model.ckpt-2"


def test_a_metric_that_no_evaluation_has_is_refused_with_those_it_has(tmp_path):
    rule = SimpleNamespace(metric="auk", higher_is_better=True)
    with CheckpointSaver(tmp_path, WORLD, best=rule) as saver:
        saver.save({"model.weight": torch.ones(2)}, {}, {"step": 1}, wait=True)
        with pytest.raises(ConfigError, match=r"metric = 'auk' .* are: auc, loss\. Did you mean 'auc'"):
            saver.evaluated(1, {"auc": 0.5, "loss": 1.0})


def test_a_best_checkpoint_that_was_deleted_is_named_and_another_one_takes_its_place(tmp_path):
    best_of(tmp_path, [0.7, 0.9, 0.8])
    shutil.rmtree(tmp_path / "model.ckpt-2")
    with pytest.raises(CheckpointError, match=r"best\.json names step 2, .* steps that are: 1, 3"):
        find_checkpoint(tmp_path, "best")
    assert best_of(tmp_path, [0.75])[1] == "model.ckpt-4"


@pytest.mark.parametrize("text", ["", "[]", "{", '{"step": 1}'])
def test_a_damaged_best_file_is_named(tmp_path, text):
    (tmp_path / "best.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"best\.json cannot be read"):
        find_checkpoint(tmp_path, "best")


# Whole or not at all


@pytest.mark.parametrize("where", ["first part", "second part", "last rename"])
@pytest.mark.parametrize("wait", [True, False])
def test_an_error_while_saving_leaves_the_earlier_checkpoints_and_no_half_one(tmp_path, monkeypatch, where, wait):
    run = Run().step()
    first = run.save(tmp_path, 1)
    good = run.tensors()
    run.step()

    def crash(*args, **kwargs):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        if where == "last rename":
            patch.setattr(module.os, "replace", crash)
        else:
            real, calls = dcp.save, []
            wanted = 1 if where == "first part" else 2
            patch.setattr(
                dcp, "save", lambda *a, **k: calls.append(1) or (crash() if len(calls) == wanted else real(*a, **k))
            )
        with pytest.raises(CheckpointError, match=r"model\.ckpt-2 cannot be written: no space"):
            run.save(tmp_path, 2, wait=wait)
    assert checkpoints(tmp_path) == [(1, first)]
    assert_same(Run().step().load(find_checkpoint(tmp_path)).tensors(), good)
    run.save(tmp_path, 3)
    assert names_in(tmp_path) == ["model.ckpt-1", "model.ckpt-3"]


def test_saving_a_step_again_replaces_it_and_an_error_on_the_way_does_not_lose_it(tmp_path, monkeypatch):
    run = Run().step()
    path = run.save(tmp_path, 1)
    good = run.tensors()
    run.step()
    with monkeypatch.context() as patch:
        patch.setattr(dcp, "save", lambda *a, **k: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run.save(tmp_path, 1)
    assert_same(Run().step().load(path).tensors(), good)
    assert run.save(tmp_path, 1) == path
    assert_same(Run().step().load(path).tensors(), run.tensors())
    assert names_in(tmp_path) == ["model.ckpt-1"]


def test_a_full_disk_is_an_error_with_words(tmp_path, monkeypatch):
    def write_data(self, plan, planner):
        raise OSError("no space left on device")

    run = Run().step()
    monkeypatch.setattr(dcp.FileSystemWriter, "write_data", write_data)
    with pytest.raises(CheckpointError, match=r"model cannot be written: OSError: no space left"):
        run.save(tmp_path, 1)


def killed_everywhere(folder):
    """Forks that save and kill themselves at one file operation after the other, until one lives to the end.

    Returns, of each way to save, how many died, and what was wrong after one did.
    """
    folder = Path(folder)
    Run().step().save(folder / "before", 1)
    return {"next step": killed_at_each(folder, 2), "same step": killed_at_each(folder, 1)}


def killed_at_each(folder, step):
    before, after = Run().step().tensors(), Run().step(2).tensors()
    problems = []
    for number in range(1, 200):
        run_dir = folder / f"{step}-{number}"
        shutil.copytree(folder / "before", run_dir)
        child = os.fork()
        if child == 0:
            save_and_die(run_dir, step, number)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            return [number - 1, problems]
        latest = find_checkpoint(run_dir)
        found = Run().step().load(latest).tensors()
        if not any(all(torch.equal(t, found[n]) for n, t in tensors.items()) for tensors in (before, after)):
            problems.append([number, latest.name])
        Run().step().save(run_dir, 3, keep_max=1)
        if names_in(run_dir) != ["model.ckpt-3"]:
            problems.append([number, names_in(run_dir)])
    return [number, [*problems, "no end"]]


def save_and_die(folder, step, number):
    seen = []

    def count(event, arguments):
        if event in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir") and ".ckpt-" in str(arguments[0]):
            seen.append(event)
            if len(seen) == number:
                os.kill(os.getpid(), signal.SIGKILL)

    world = join_world()
    run = Run().step(2)
    with CheckpointSaver(folder, world, keep_max=1) as saver:
        sys.addaudithook(count)
        saver.save(run.wrapper.state_dict(), run.states(), {"step": step}, wait=False)
    os._exit(0)


def test_a_run_killed_at_any_file_operation_of_a_save_leaves_a_whole_checkpoint_and_the_next_save_cleans_up(tmp_path):
    (found,) = run_ranks(__file__, "killed_everywhere", 1, str(tmp_path))
    for num_killed, problems in found.values():
        assert num_killed > 15
        assert problems == []


def test_a_checkpoint_between_the_two_renames_that_replace_it_is_found_and_put_back(tmp_path):
    path = Run().step().save(tmp_path, 5)
    path.rename(tmp_path / ".model.ckpt-5.replaced")
    assert find_checkpoint(tmp_path).name == ".model.ckpt-5.replaced"
    assert read_meta(find_checkpoint(tmp_path))["step"] == 5
    Run().step().save(tmp_path, 6)
    assert names_in(tmp_path) == ["model.ckpt-5", "model.ckpt-6"]


def test_tables_that_share_a_storage_are_written_without_a_copy(tmp_path, monkeypatch):
    storage = torch.arange(20.0, dtype=torch.bfloat16)
    tables = {"first": storage[:12].view(3, 4), "second": storage[12:].view(2, 4)}
    addresses = []
    write = dcp.filesystem._write_item

    def note(transforms, stream, tensor, *others):
        addresses.append(tensor.data_ptr())
        return write(transforms, stream, tensor, *others)

    monkeypatch.setattr(dcp.filesystem, "_write_item", note)
    with CheckpointSaver(tmp_path, WORLD) as saver:
        path = saver.save(tables, {}, {"step": 1}, wait=True)
    assert sorted(addresses) == [tables["first"].data_ptr(), tables["second"].data_ptr()]
    loaded = {name: torch.zeros_like(table) for name, table in tables.items()}
    read_tensors(path / "model", loaded)
    assert_same(loaded, tables)


def test_more_than_may_lie_twice_in_host_memory_is_written_while_training_waits(tmp_path, monkeypatch, caplog):
    run = Run().step()
    monkeypatch.setattr(module, "_MAX_COPY", sum(t.nbytes for t in run.tensors().values()) - 1)
    with CheckpointSaver(tmp_path, WORLD) as saver:
        assert saver.save(run.wrapper.state_dict(), run.states(), {"step": 1}, wait=False).is_dir()
    assert "training waits while a checkpoint is written" in caplog.text


# In the background


def test_a_save_in_the_background_holds_what_was_there_when_it_was_called(tmp_path):
    run = Run().step()
    good = run.tensors()
    with CheckpointSaver(tmp_path, WORLD) as saver:
        meta = {"step": 1, "callbacks": {"seen": [1]}}
        path = saver.save(run.wrapper.state_dict(), run.states(), meta, wait=False)
        meta["callbacks"]["seen"].append(2)
        with torch.no_grad():
            for tensor in [*run.wrapper.state_dict().values(), *run.states().values()]:
                tensor.fill_(7)
    assert_same(Run().step().load(path).tensors(), good)
    assert read_meta(path)["callbacks"] == {"seen": [1]}


def test_a_second_save_waits_for_the_first_and_tells_its_error(tmp_path, monkeypatch):
    run = Run().step()
    with CheckpointSaver(tmp_path, WORLD) as saver:
        with monkeypatch.context() as patch:
            patch.setattr(dcp, "save", lambda *a, **k: 1 / 0)
            saver.save(run.wrapper.state_dict(), {}, {"step": 1}, wait=False)
            with pytest.raises(CheckpointError, match=r"was not written: ZeroDivisionError"):
                saver.save(run.wrapper.state_dict(), {}, {"step": 2}, wait=False)
        saver.wait()
        assert saver.save(run.wrapper.state_dict(), {}, {"step": 3}, wait=True).is_dir()


def test_closing_tells_the_error_of_the_background_unless_another_one_is_on_its_way(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(dcp, "save", lambda *a, **k: 1 / 0)
    state = Run().wrapper.state_dict()
    with pytest.raises(CheckpointError, match="was not written"), CheckpointSaver(tmp_path, WORLD) as saver:
        saver.save(state, {}, {"step": 1}, wait=False)
    with pytest.raises(KeyError, match="mine"), CheckpointSaver(tmp_path, WORLD) as saver:
        saver.save(state, {}, {"step": 1}, wait=False)
        raise KeyError("mine")
    assert "was not written" in caplog.text


def test_without_memory_for_a_copy_a_save_waits_and_says_so_once(tmp_path, monkeypatch, caplog):
    run = Run().step()
    needed = sum(t.nbytes for t in run.tensors().values())
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2 * needed - 1))
    with CheckpointSaver(tmp_path, WORLD) as saver:
        for step in (1, 2):
            assert saver.save(run.wrapper.state_dict(), run.states(), {"step": step}, wait=False).is_dir()
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2 * needed))
        monkeypatch.setattr(saver, "_write", lambda *args: None)
        assert not saver.save(run.wrapper.state_dict(), run.states(), {"step": 3}, wait=False).is_dir()
    assert caplog.text.count("training waits while a checkpoint is written") == 1


def test_one_process_hears_nothing_about_process_groups(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        path = Run().step().save(tmp_path, 1)
        Run().step().load(path)


# What does not fit


def test_a_checkpoint_of_another_config_is_refused_and_the_tensors_are_named(tmp_path):
    path = Run().step().save(tmp_path, 1)
    with pytest.raises(
        CheckpointError, match=r"does not fit the config: .*hidden\.weight is \(8, 4\) there and \(3, 4\) in"
    ):
        Run(hidden=3).load(path)
    with pytest.raises(CheckpointError, match=r"it has no model\.unused\.weight \(nearest: model\.output\.weight\)"):
        Run(has_unused=True).load(path)
    with pytest.raises(
        CheckpointError, match=r"optimizer does not fit the config: it has no state\.model\.\S+\.square_avg"
    ):
        Run(torch.optim.RMSprop).step().load(path)
    with pytest.raises(CheckpointError, match=r"it has no ema\.model\.output\.bias"):
        load_optimizer(path, {"ema.model.output.bias": torch.zeros(1)})


# What is damaged


@pytest.fixture
def saved(tmp_path):
    return Run().step().save(tmp_path, 1)


def flipped(data):
    changed = bytearray(data)
    changed[len(data) // 2] ^= 1
    return bytes(changed)


@pytest.mark.parametrize("part", ["model", "optimizer"])
@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata"])
@pytest.mark.parametrize("damage", ["truncated", "bit", "missing", "empty"])
def test_damaged_files_are_named(saved, part, name, damage):
    file = saved / part / name
    data = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes({"truncated": data[:-9], "bit": flipped(data), "empty": b""}[damage])
    words = "is missing" if damage == "missing" else "is damaged: its sha256"
    with pytest.raises(CheckpointError, match=rf"{part}/{name} {words}.*go on from the one before it"):
        Run().step().load(saved)


@pytest.mark.parametrize("text", ["", "[1]", "{}", '{"step": "x"}', "{"])
def test_a_meta_file_that_says_no_step_is_refused(saved, text):
    (saved / "meta.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"meta\.json cannot be read.*name another checkpoint"):
        read_meta(saved)


def test_any_flipped_bit_of_the_meta_file_is_noticed(saved):
    file = saved / "meta.json"
    data = file.read_bytes()
    for place in range(len(data)):
        for bit in (1, 4, 64):
            file.write_bytes(data[:place] + bytes([data[place] ^ bit]) + data[place + 1 :])
            try:
                meta = read_meta(saved)
            except CheckpointError as error:
                assert "meta.json" in str(error)
            else:  # white space into other white space
                assert data[place : place + 1].isspace()
                assert meta["step"] == 1


def test_a_checkpoint_of_ours_without_its_meta_file_is_damaged_and_not_foreign(saved):
    (saved / "meta.json").unlink()
    with pytest.raises(CheckpointError, match=r"meta\.json is missing; name another checkpoint"):
        read_meta(saved)
    with pytest.raises(CheckpointError, match=r"meta\.json is missing; name another checkpoint"):
        Run().load(saved)


# What TorchEasyRec wrote


@pytest.fixture
def foreign(tmp_path):
    """A folder as TorchEasyRec writes it, with nested states that DCP flattens, and objects that are no tensors."""
    run = Run().step(3)
    states = {}
    for name, value in run.states().items():
        parameter, _, key = name.removeprefix("state.").rpartition(".")
        states.setdefault(parameter, {})[key] = value
    parts = {
        "model": {**run.wrapper.state_dict(), "model.theirs": torch.ones(3)},
        "optimizer": {"state": states, "param_groups": [{"lr": 0.1, "params": list(states)}]},
    }
    path = tmp_path / "model.ckpt-70"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for part, state in parts.items():
            dcp.save(state, storage_writer=dcp.FileSystemWriter(path / part), no_dist=True)
    return path, run


def test_a_torcheasyrec_folder_loads_by_names_with_the_step_of_its_name(foreign, caplog):
    path, run = foreign
    assert read_meta(path) == {"step": 70}
    assert find_checkpoint(path.parent) == path
    assert_same(Run().step().load(path).tensors(), run.tensors())
    assert "model: 1 tensors of it are not used: model.theirs" in caplog.text
    assert "optimizer:" not in caplog.text


def test_what_a_torcheasyrec_folder_lacks_keeps_its_values_and_is_said(foreign, caplog):
    path, _ = foreign
    ours = Run().step()
    ours.wrapper.model.register_buffer("mine", torch.full((2,), 3.0))
    load_model(path, ours.wrapper)
    assert torch.equal(ours.wrapper.model.mine, torch.full((2,), 3.0))
    assert "model: 1 tensors are not in it and keep their values: model.mine" in caplog.text
    states = {"state.model.output.bias.exp_avg": torch.zeros(1), "state.model.output.bias.sum": torch.zeros(1)}
    assert load_optimizer(path, states) == ["state.model.output.bias.sum"]
    assert states["state.model.output.bias.exp_avg"] != 0
    shutil.rmtree(path / "optimizer")
    assert load_optimizer(path, states) == list(states)


def test_a_torcheasyrec_folder_without_a_parameter_of_the_model_is_refused(foreign):
    path, _ = foreign
    with pytest.raises(CheckpointError, match=r"it has no model\.unused\.weight"):
        load_model(path, Run(has_unused=True).wrapper)


@pytest.mark.parametrize("damage", ["truncated", "empty"])
@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata"])
def test_a_damaged_torcheasyrec_folder_fails_with_words(foreign, name, damage):
    path, _ = foreign
    file = path / "model" / name
    file.write_bytes(b"" if damage == "empty" else file.read_bytes()[:200])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_model(path, Run().wrapper)


# What is hostile


class Calls:
    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


def hostile_pickles(canary):
    command = f"touch {canary}"
    yield pickle.dumps(Calls(os.system, command))
    yield pickle.dumps(Calls(subprocess.Popen, ["touch", str(canary)]))
    yield pickle.dumps(Calls(eval, f"open({str(canary)!r}, 'w')"))
    yield pickle.dumps(Calls(torch.load, str(canary)))
    for module_name, name in (
        ("torch.distributed.checkpoint.filesystem", "os.system"),
        ("torch.distributed.checkpoint.metadata", "os.system"),
        ("torch", "os.system"),
        ("torch.distributed.checkpoint.filesystem", "torch.utils.cpp_extension.subprocess.Popen"),
    ):
        yield dotted(module_name, name, ["touch", str(canary)] if name.endswith("Popen") else command)


def dotted(module_name, name, argument):
    """A pickle that calls what a dotted name reaches from a module; such a name may even be a class."""
    text = b"".join(b"\x8c" + bytes([len(x)]) + x.encode() for x in (module_name, name))
    body = pickle.dumps((argument,), protocol=3)[2:-1]
    return b"\x80\x04" + text + b"\x93" + body + b"R."


def test_a_metadata_file_cannot_run_code(saved, tmp_path):
    canary = tmp_path / "canary"
    for number, data in enumerate(hostile_pickles(canary)):
        (saved / "model" / ".metadata").write_bytes(data)
        write_meta(saved, {"step": 1})
        with pytest.raises(
            CheckpointError, match=r"\.metadata cannot be read: it names \S+, which checkpoint metadata never"
        ):
            Run().load(saved)
        assert not canary.exists(), number


def test_the_pickles_of_that_test_are_hostile_indeed(tmp_path):
    pytest.importorskip("torch.utils.cpp_extension")
    canaries = [tmp_path / "first", tmp_path / "last"]
    pickle.loads(next(hostile_pickles(canaries[0])))
    pickle.loads(list(hostile_pickles(canaries[1]))[-1]).wait()
    assert all(canary.exists() for canary in canaries)


def test_a_tensor_that_is_a_pickle_instead_is_refused_unopened(saved, tmp_path):
    canary = tmp_path / "canary"
    run = Run()
    name = "model.output.bias"
    tensors = {**run.wrapper.state_dict(), name: Calls(os.system, f"touch {canary}")}
    shutil.rmtree(saved / "model")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(tensors, storage_writer=dcp.FileSystemWriter(saved / "model"), no_dist=True)
    write_meta(saved, {"step": 1})
    with pytest.raises(CheckpointError, match=rf"{name} is not a tensor"):
        run.load(saved)
    assert not canary.exists()


def test_keys_that_are_numbers_do_not_damage_a_meta_file(tmp_path):
    write_meta(tmp_path, {"step": 1, "seen": {9: 1, 10: 2}})
    assert read_meta(tmp_path)["seen"] == {"9": 1, "10": 2}
