"""Checkpoints of several processes, and of another number of them than they are loaded in."""

import logging
import shutil
import sys
from pathlib import Path

import psutil
import pytest
import torch
from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

sys.path.insert(0, str(Path(__file__).parent))
from ranks import run_ranks
from sharded_model import TABLES, Wrapper, batch_of, fill, optimizer_tensors, sharded, value_of, wrong

from tzrec_core.engine import checkpoint_files
from tzrec_core.engine.checkpoint import CheckpointSaver, find_checkpoint, load_model, load_optimizer, read_meta
from tzrec_core.engine.shards import first_not_finite, local_shards, sync_buffers
from tzrec_core.engine.world import World, join_world
from tzrec_core.errors import CheckpointError

# `state.<parameter>.<state>` of what sharded_model fuses, with the sizes that its tables give
STATES = {
    f"state.{TABLES[0]}.whole.momentum1": (5, 8),
    f"state.{TABLES[1]}.rows.momentum1": (7,),
    f"state.{TABLES[2]}.columns.momentum1": (6, 8),
}


def alone():
    return World(0, 1, 0, 1, torch.device("cpu"))


def write_plain(folder):
    """A checkpoint of an unsharded model, by one process that knows nothing of sharding."""
    wrapper = Wrapper()
    fill(wrapper.state_dict())
    states = {name: value_of(name, size) for name, size in STATES.items()}
    with CheckpointSaver(folder, alone()) as saver:
        return saver.save(wrapper.state_dict(), states, {"step": 1}, wait=True)


def wrong_in_plain(path):
    """What an unsharded model reads wrong from a checkpoint."""
    wrapper = Wrapper()
    states = {name: torch.zeros(size) for name, size in STATES.items()}
    load_model(path, wrapper)
    load_optimizer(path, states)
    return wrong(wrapper.state_dict()) + wrong(states)


def load_and_save(folder):
    """Load the latest checkpoint; returns what came wrong, and the mean prediction; saves it as the next step."""
    world = join_world()
    dmp = sharded(world)
    path = world.from_main(lambda: find_checkpoint(folder))
    load_model(path, dmp, world)
    load_optimizer(path, optimizer_tensors(dmp), world)
    found = wrong(dmp.state_dict()) + wrong(optimizer_tensors(dmp))
    with CheckpointSaver(folder, world) as saver:
        meta = {"step": read_meta(path)["step"] + 1}
        saver.save(dmp.state_dict(), optimizer_tensors(dmp), meta, wait=False)
    dmp.eval()
    return [found, dmp(batch_of(4)).tolist()]


@pytest.mark.slow
def test_tables_and_optimizer_states_are_equal_elementwise_from_1_to_2_to_3_to_1_processes(tmp_path):
    write_plain(tmp_path)
    wrapper = Wrapper().eval()
    fill(wrapper.state_dict())
    expected = wrapper(batch_of(4)).tolist()
    for size in (1, 2, 3, 1):
        for found, predictions in run_ranks(__file__, "load_and_save", size, str(tmp_path)):
            assert found == []
            assert torch.allclose(torch.tensor(predictions), torch.tensor(expected))
        assert wrong_in_plain(find_checkpoint(tmp_path)) == []
    assert find_checkpoint(tmp_path).name == "model.ckpt-5"


# Two processes: one start, several looks


def two_ranks(folder):
    world = join_world()
    logging.basicConfig(level=logging.WARNING)
    folder = Path(folder)
    return {
        "reshard": load_and_save(folder / "run"),
        "async": save_and_change(folder / "async", world),
        "short": save_without_memory(folder / "short", world),
        "hashed": hashed_once(folder / "run", world),
        "flipped": error_of(lambda: load_damaged(folder, world)),
        "writer": failing_writer(folder / "run", world),
        "leaving": one_leaves_with_an_error(folder / "leaving", world),
        "unshared": error_of(lambda: save_unshared(folder / f"own-{world.rank}", world)),
        "finite": not_finite(world),
        "buffers": averaged_buffers(world),
        "dtensor": dtensor(folder / "dtensor", world),
    }


def error_of(call):
    try:
        call()
    except CheckpointError as error:
        return str(error)
    return None


def save_and_change(folder, world):
    """Save in the background, change all that was saved, save the same again; the files' checksums of both."""
    dmp = sharded(world)
    with CheckpointSaver(folder, world) as saver:
        fill(dmp.state_dict())
        fill(optimizer_tensors(dmp))
        first = saver.save(dmp.state_dict(), optimizer_tensors(dmp), {"step": 1}, wait=False)
        dmp(batch_of(4)).sum().backward()  # which uses collectives and changes the tables
        with torch.no_grad():
            for tensor in [*dmp.state_dict().values(), *optimizer_tensors(dmp).values()]:
                for _, shard in local_shards(tensor):
                    shard.fill_(-1)
        saver.wait()
        fill(dmp.state_dict())
        fill(optimizer_tensors(dmp))
        second = saver.save(dmp.state_dict(), optimizer_tensors(dmp), {"step": 2}, wait=True)
        saver.save(dmp.state_dict(), optimizer_tensors(dmp), {"step": 3}, wait=False)
        third = saver.save(dmp.state_dict(), optimizer_tensors(dmp), {"step": 4}, wait=False)
    return [read_meta(path)["files"] for path in (first, second, third)]


def save_without_memory(folder, world):
    """Rank 1 alone has no memory for a copy: nobody copies."""
    real = psutil.virtual_memory
    free = 1 if world.rank == 1 else 2**40
    psutil.virtual_memory = lambda: type("Memory", (), {"available": free})()
    try:
        with CheckpointSaver(folder, world) as saver:
            state = {"model.weight": torch.ones(3)}
            paths = [saver.save(state, {}, {"step": step}, wait=False) for step in (1, 2)]
            return [path.is_dir() for path in paths]
    finally:
        psutil.virtual_memory = real


def hashed_once(folder, world):
    """How often each file's checksum was taken while all ranks loaded, over all ranks."""
    taken, real = [], checkpoint_files.sha256
    checkpoint_files.sha256 = lambda file: taken.append(f"{file.parent.name}/{file.name}") or real(file)
    try:
        load_model(find_checkpoint(folder), sharded(world), world)
    finally:
        checkpoint_files.sha256 = real
    return sorted(name for names in world.gather(taken) for name in names)


def load_damaged(folder, world):
    load_model(folder / "damaged/model.ckpt-1", sharded(world), world)


def failing_writer(folder, world):
    """Rank 1 cannot write: both hear of it at the next call, and the checkpoint before is the latest."""
    saver = CheckpointSaver(folder, world)
    before = find_checkpoint(folder).name
    real = torch.save

    def full(*args, **kwargs):
        raise OSError("no space left on device")

    if world.rank == 1:
        torch.save = full
    try:
        dmp = sharded(world)
        saver.save(dmp.state_dict(), {}, {"step": 99}, wait=False)
        said = error_of(saver.wait)
    finally:
        torch.save = real
    saver.close()
    world.barrier()
    return [said, find_checkpoint(folder).name == before]


def one_leaves_with_an_error(folder, world):
    """Rank 1 fails while both write; it waits for the checkpoint, but not for rank 0, which may be anywhere."""
    try:
        with CheckpointSaver(folder, world) as saver:
            path = saver.save(sharded(world).state_dict(), {}, {"step": 1}, wait=False)
            if world.rank == 1:
                raise KeyError
    except KeyError:
        is_written = path.is_dir()
        world.barrier()  # rank 0 is in that of `close`
        return is_written
    return path.is_dir()


def save_unshared(folder, world):
    with CheckpointSaver(folder, world) as saver:
        (folder / ".model.ckpt-1.writing").mkdir(parents=True, exist_ok=True)
        saver.save(sharded(world).state_dict(), {}, {"step": 1}, wait=True)


def not_finite(world):
    dmp = sharded(world)
    tensors = {"counts": torch.arange(3), **dmp.state_dict()}
    found = [first_not_finite(tensors, world)]
    if world.rank == 1:
        tensors["model.norm.running_var"][2] = -torch.inf
    found.append(first_not_finite(tensors, world))
    for _, shard in local_shards(tensors[TABLES[1]]):
        shard[1, 1] = torch.nan
    found.append(first_not_finite(tensors, world))
    return [entry and [entry[0], str(entry[1])] for entry in found]


def averaged_buffers(world):
    dmp = sharded(world)
    model = dmp.module.model
    with torch.no_grad():
        model.norm.running_mean.fill_(1.0 + 2 * world.rank)
        model.norm.num_batches_tracked.fill_(5 + world.rank)
        for kept in (model.norm.weight, model.passing):
            kept.fill_(world.rank)
    sync_buffers(dmp, world)
    return [
        tensor.unique().tolist()
        for tensor in (model.norm.running_mean, model.norm.num_batches_tracked, model.norm.weight, model.passing)
    ]


def dtensor(folder, world):
    mesh = init_device_mesh("cpu", (world.size,))
    tensors = {"model.even": torch.zeros(6, 2), "model.odd": torch.zeros(5, 3)}
    tensors = {name: distribute_tensor(tensor, mesh, [Shard(0)]) for name, tensor in tensors.items()}
    fill(tensors)
    with CheckpointSaver(folder, world) as saver:
        path = saver.save(tensors, {}, {"step": 1}, wait=False)
        fill({name: tensor * 0 for name, tensor in tensors.items()})
    plain = torch.nn.Module()
    plain.model = torch.nn.Module()
    plain.model.even, plain.model.odd = torch.nn.Parameter(torch.zeros(6, 2)), torch.nn.Parameter(torch.zeros(5, 3))
    load_model(path, plain, world)
    with torch.no_grad():
        for tensor in tensors.values():
            tensor.zero_()
    sharded_again = torch.nn.Module()
    sharded_again.state_dict = lambda: tensors
    load_model(path, sharded_again, world)
    return wrong(plain.state_dict()) + wrong(tensors)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two_ranks")
    path = write_plain(folder / "run")
    shutil.copytree(path, folder / "damaged/model.ckpt-1")
    file = folder / "damaged/model.ckpt-1/model/__0_0.distcp"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    ranks = run_ranks(__file__, "two_ranks", 2, str(folder))
    return folder, {name: [rank[name] for rank in ranks] for name in ranks[0]}


def test_what_one_process_wrote_two_load_and_what_two_write_one_loads(outcomes):
    folder, found = outcomes
    assert [came_wrong for came_wrong, _ in found["reshard"]] == [[], []]
    assert wrong_in_plain(folder / "run/model.ckpt-2") == []
    assert set(read_meta(folder / "run/model.ckpt-2")["files"]) == {
        f"{part}/{name}" for part in ("model", "optimizer") for name in (".metadata", "__0_0.distcp", "__1_0.distcp")
    }


def test_the_loaded_shards_are_what_the_sharded_model_computes_with(outcomes):
    _, found = outcomes
    wrapper = Wrapper().eval()
    fill(wrapper.state_dict())
    for _, predictions in found["reshard"]:
        assert torch.allclose(torch.tensor(predictions), wrapper(batch_of(4)))


def test_a_save_in_the_background_writes_the_same_bytes_though_training_goes_on(outcomes):
    folder, found = outcomes
    for first, second, third in found["async"]:
        assert first == second == third
    assert wrong_in_plain(folder / "async/model.ckpt-1") == []


def test_when_memory_is_short_on_one_rank_all_wait_and_one_says_so(outcomes):
    _, found = outcomes
    assert found["short"] == [[True, True], [True, True]]


def test_each_file_is_hashed_once_by_one_rank(outcomes):
    _, found = outcomes
    assert found["hashed"][0] == ["model/.metadata", "model/__0_0.distcp", "model/__1_0.distcp"]


def test_a_damaged_file_is_named_on_all_ranks(outcomes):
    _, found = outcomes
    for error in found["flipped"]:
        assert "damaged/model.ckpt-1/model/__0_0.distcp is damaged" in error


def test_a_rank_that_cannot_write_is_heard_of_on_all_ranks_and_the_checkpoint_before_stays(outcomes):
    folder, found = outcomes
    for error, is_latest in found["writer"]:
        assert "model cannot be written" in error
        assert "no space left" in error
        assert is_latest
    assert not (folder / "run/model.ckpt-99").exists()


def test_a_rank_that_fails_does_not_take_the_checkpoint_with_it(outcomes):
    _, found = outcomes
    assert found["leaving"] == [True, True]


def test_ranks_without_a_common_model_dir_are_told_to_share_one(outcomes):
    _, found = outcomes
    for error in found["unshared"]:
        assert "model_dir must be one folder that all machines share" in error


def test_all_ranks_name_the_same_first_tensor_that_is_not_finite(outcomes):
    _, found = outcomes
    expected = [None, ["model.norm.running_var", "-inf"]]
    for before, after, both in found["finite"]:
        assert [before, after] == expected
        assert both[1] in ("nan", "-inf")
    assert found["finite"][0] == found["finite"][1]


def test_buffers_become_the_average_over_the_ranks_and_counts_become_rank_0s(outcomes):
    _, found = outcomes
    assert found["buffers"] == [[[2.0], [5], [0.0], [0.0]], [[2.0], [5], [1.0], [1.0]]]


def test_dtensors_are_saved_and_loaded(outcomes):
    _, found = outcomes
    assert found["dtensor"] == [[], []]
