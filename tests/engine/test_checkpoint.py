import json
import os
import pickle
import shutil
import subprocess
import warnings

import pytest
import torch
import torch.distributed.checkpoint as dcp

from tzrec_core.data.loader import create_dataloader
from tzrec_core.engine import checkpoint as module
from tzrec_core.engine.checkpoint import (
    checkpoints,
    find_checkpoint,
    load_model,
    load_optimizers,
    read_meta,
    save_checkpoint,
)
from tzrec_core.engine.optim import build_optimizers
from tzrec_core.engine.setup import build
from tzrec_core.errors import CheckpointError
from tzrec_core.models import TrainWrapper

SPARSE = ["sgd", "adagrad", "rowwise_adagrad", "adam", "partial_rowwise_adam"]
DENSE = ["sgd", "adagrad", "adam", "adamw", "adadelta", "rmsprop"]


class Run:
    """A model with optimizers, a batch, and steps to take."""

    def __init__(self, config):
        torch.manual_seed(5)
        setup = build(config)
        self.wrapper = TrainWrapper(setup.model)
        self.optimizers = build_optimizers(config.train_config, setup.model)
        loader = create_dataloader(config.data_config, setup.features, config.train_input_path)
        self.batch = next(iter(loader))

    def step(self, times=1):
        for _ in range(times):
            for optimizer in self.optimizers.values():
                optimizer.zero_grad(set_to_none=True)
            self.wrapper(self.batch)[0].backward()
            for optimizer in self.optimizers.values():
                optimizer.step()
        return self

    def save(self, folder, step, **kwargs):
        return save_checkpoint(folder, self.wrapper, self.optimizers, {"step": step}, **kwargs)

    def load(self, path):
        load_model(path, self.wrapper)
        load_optimizers(path, self.wrapper, self.optimizers)
        return self

    def tensors(self):
        return {name: tensor.clone() for name, tensor in self.wrapper.state_dict().items()}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def optimizers_of(sparse, dense):
    return (
        f"train_config.sparse_optimizer.{sparse}_optimizer={{lr: 0.1}}",
        f"train_config.dense_optimizer.{dense}_optimizer={{lr: 0.1}}",
    )


@pytest.mark.parametrize(
    ("sparse", "dense"),
    [(s, "adam") for s in SPARSE] + [("sgd", d) for d in DENSE],
)
def test_a_loaded_checkpoint_goes_on_bit_for_bit_as_the_run_that_wrote_it(config, tmp_path, sparse, dense):
    changes = optimizers_of(sparse, dense)
    run = Run(config(*changes)).step(2)
    path = run.save(tmp_path, 2)
    at_save = run.tensors()
    run.step(2)
    other = Run(config(*changes)).load(path)
    assert_same(other.tensors(), at_save)
    assert_same(other.step(2).tensors(), run.tensors())


def test_a_parameter_that_no_loss_reaches_has_no_state_to_save_and_none_is_missed(config, tmp_path):
    changes = "model_config.tiny.unused_layer=true"
    path = Run(config(changes)).step().save(tmp_path, 1)
    other = Run(config(changes)).load(path)
    assert other.wrapper.model.unused.weight not in other.optimizers["dense"].state
    other.step()


def test_buffers_such_as_the_running_mean_of_a_batch_norm_are_kept(config, tmp_path):
    path = Run(config()).step(3).save(tmp_path, 3)
    other = Run(config()).load(path)
    assert other.wrapper.model.norm.num_batches_tracked == 3


def test_loading_does_not_leave_gradients_behind(config, tmp_path):
    path = Run(config()).step().save(tmp_path, 1)
    other = Run(config()).load(path)
    assert all(p.grad is None for p in other.wrapper.parameters())


def test_meta_is_what_was_given_with_versions_and_checksums(config, tmp_path):
    path = Run(config()).step().save(tmp_path, 1)
    meta = read_meta(path)
    assert (meta["step"], meta["tzrec-core"], meta["torch"]) == (1, "0.1.0", torch.__version__)
    assert set(meta["files"]) == {
        "model/.metadata",
        "model/__0_0.distcp",
        "optimizer/.metadata",
        "optimizer/__0_0.distcp",
    }


# Which one


def test_the_latest_checkpoint_is_found_by_number_and_not_by_spelling(tmp_path):
    for name in ("model.ckpt-9", "model.ckpt-10", "model.ckpt-2", "model.ckpt-x", ".model.ckpt-11.writing"):
        (tmp_path / name / "model").mkdir(parents=True)
    assert [step for step, _ in checkpoints(tmp_path)] == [2, 9, 10]
    assert find_checkpoint(tmp_path) == tmp_path / "model.ckpt-10"
    assert find_checkpoint(tmp_path, tmp_path / "model.ckpt-2") == tmp_path / "model.ckpt-2"


def test_a_folder_without_checkpoints_says_to_train_first(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no checkpoint .*train first: tzrec train"):
        find_checkpoint(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="is not a checkpoint: it has no folder 'model'"):
        find_checkpoint(tmp_path, tmp_path)


def test_only_the_newest_are_kept(config, tmp_path):
    run = Run(config()).step()
    for step in (8, 9, 10, 11):
        run.save(tmp_path, step, keep_max=2)
    assert [step for step, _ in checkpoints(tmp_path)] == [10, 11]
    run.save(tmp_path, 12)
    assert [step for step, _ in checkpoints(tmp_path)] == [10, 11, 12]


# Whole or not at all


@pytest.mark.parametrize("where", ["first part", "second part", "last rename"])
def test_a_crash_while_saving_leaves_the_earlier_checkpoints_and_no_half_one(config, tmp_path, monkeypatch, where):
    run = Run(config()).step()
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
        with pytest.raises(OSError, match="no space"):
            run.save(tmp_path, 2)
    assert checkpoints(tmp_path) == [(1, first)]
    assert_same(Run(config()).load(find_checkpoint(tmp_path)).tensors(), good)
    run.save(tmp_path, 3)
    assert sorted(p.name for p in tmp_path.glob("*model.ckpt*")) == ["model.ckpt-1", "model.ckpt-3"]


def test_saving_a_step_again_replaces_it_and_a_crash_on_the_way_does_not_lose_it(config, tmp_path, monkeypatch):
    run = Run(config()).step()
    path = run.save(tmp_path, 1)
    good = run.tensors()
    run.step()
    with monkeypatch.context() as patch:
        patch.setattr(dcp, "save", lambda *a, **k: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run.save(tmp_path, 1)
    assert_same(Run(config()).load(path).tensors(), good)
    assert run.save(tmp_path, 1) == path
    assert_same(Run(config()).load(path).tensors(), run.tensors())
    assert [p.name for p in tmp_path.glob("*model.ckpt*")] == ["model.ckpt-1"]


def test_a_full_disk_is_an_error_with_words(config, tmp_path, monkeypatch):
    def write_data(self, plan, planner):
        raise OSError("no space left on device")

    run = Run(config()).step()
    monkeypatch.setattr(dcp.FileSystemWriter, "write_data", write_data)
    with pytest.raises(CheckpointError, match=r"model cannot be written: OSError: no space left"):
        run.save(tmp_path, 1)


def test_one_process_hears_nothing_about_process_groups(config, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        path = Run(config()).step().save(tmp_path, 1)
        Run(config()).load(path)


# What does not fit


def test_a_checkpoint_of_another_config_is_refused_and_the_tensors_are_named(config, tmp_path):
    path = Run(config()).step().save(tmp_path, 1)
    with pytest.raises(
        CheckpointError, match=r"does not fit the config: .*hidden\.weight is \(8, 9\) there and \(3, 9\) in"
    ):
        Run(config("model_config.tiny.hidden=3")).load(path)
    with pytest.raises(CheckpointError, match=r"it has no model\.unused\.weight"):
        Run(config("model_config.tiny.unused_layer=true")).load(path)
    with pytest.raises(
        CheckpointError, match=r"optimizer does not fit the config: it has no dense\.model\.\S+\.square_avg"
    ):
        Run(config(*optimizers_of("adam", "rmsprop"))).load(path)
    with pytest.raises(CheckpointError, match=r"it has no sparse\.model\.\S+\.sum"):
        Run(config(*optimizers_of("adagrad", "adam"))).load(path)


# What is damaged


@pytest.fixture
def saved(config, tmp_path):
    return Run(config()).step().save(tmp_path, 1)


@pytest.mark.parametrize("part", ["model", "optimizer"])
@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata"])
@pytest.mark.parametrize("damage", ["truncated", "bit", "missing", "empty"])
def test_damaged_files_are_named(config, saved, part, name, damage):
    file = saved / part / name
    data = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        flipped = bytearray(data)
        flipped[len(data) // 2] ^= 1
        file.write_bytes({"truncated": data[:-9], "bit": bytes(flipped), "empty": b""}[damage])
    words = "is missing" if damage == "missing" else "is damaged: its sha256"
    with pytest.raises(CheckpointError, match=rf"{part}/{name} {words}.*go on from the one before it"):
        Run(config()).load(saved)


@pytest.mark.parametrize("damage", ["truncated", "empty"])
@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata"])
def test_a_checkpoint_without_checksums_still_fails_with_words(config, saved, name, damage):
    (saved / "meta.json").unlink()
    file = saved / "model" / name
    file.write_bytes(b"" if damage == "empty" else file.read_bytes()[:200])
    with pytest.raises(CheckpointError, match="cannot be read"):
        Run(config()).load(saved)


@pytest.mark.parametrize("text", ["", "[1]", "{}", '{"step": "x"}', "{"])
def test_a_meta_file_that_says_no_step_is_refused(saved, text):
    (saved / "meta.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"meta\.json cannot be read"):
        read_meta(saved)


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


def test_a_metadata_file_cannot_run_code(config, saved, tmp_path):
    canary = tmp_path / "canary"
    for number, data in enumerate(hostile_pickles(canary)):
        (saved / "model" / ".metadata").write_bytes(data)
        (saved / "meta.json").write_text('{"step": 1}')
        with pytest.raises(
            CheckpointError, match=r"\.metadata cannot be read: it names \S+, which checkpoint metadata never"
        ):
            Run(config()).load(saved)
        assert not canary.exists(), number


def test_the_pickles_of_that_test_are_hostile_indeed(tmp_path):
    pytest.importorskip("torch.utils.cpp_extension")
    canaries = [tmp_path / "first", tmp_path / "last"]
    pickle.loads(next(hostile_pickles(canaries[0])))
    pickle.loads(list(hostile_pickles(canaries[1]))[-1]).wait()
    assert all(canary.exists() for canary in canaries)


def test_a_tensor_that_is_a_pickle_instead_is_refused_unopened(config, saved, tmp_path):
    canary = tmp_path / "canary"
    run = Run(config())
    name = "model.output.bias"
    tensors = {**run.wrapper.state_dict(), name: Calls(os.system, f"touch {canary}")}
    shutil.rmtree(saved / "model")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(tensors, storage_writer=dcp.FileSystemWriter(saved / "model"), no_dist=True)
    meta = json.loads((saved / "meta.json").read_text())
    (saved / "meta.json").write_text(json.dumps({**meta, "files": {}}))
    with pytest.raises(CheckpointError, match=rf"{name} is not a tensor"):
        run.load(saved)
    assert not canary.exists()
