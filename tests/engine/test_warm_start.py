import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from ranks import run_ranks
from sharded_model import ROWS, TABLES, Wrapper, fill, part, sharded, value_of, wrong

from tzrec_core.engine.checkpoint import CheckpointSaver
from tzrec_core.engine.shards import local_shards
from tzrec_core.engine.warm_start import warm_start
from tzrec_core.engine.world import World, join_world
from tzrec_core.errors import CheckpointError, ConfigError

WORLD = World(0, 1, 0, 1, torch.device("cpu"))


class Model(nn.Module):
    """Named as a TrainWrapper's tensors are: two tables, a batch norm, a layer, and a metric that must stay behind."""

    def __init__(self, *, rows=6, dim=4, hidden=3, layer="layer"):
        super().__init__()
        self.model = nn.Module()
        self.model.group = nn.Module()
        bags = {"user": nn.EmbeddingBag(rows, dim), "item": nn.EmbeddingBag(5, dim)}
        self.model.group.embedding_bags = nn.ModuleDict(bags)
        self.model.norm = nn.BatchNorm1d(4)
        setattr(self.model, layer, nn.Linear(4, hidden))
        self.model._train_metric_modules = nn.ModuleDict({"auc": nn.BatchNorm1d(2)})


def trained(folder, **settings):
    """A checkpoint of a model whose tensors all hold what sharded_model.fill puts there."""
    model = Model(**settings)
    fill(model.state_dict())
    with CheckpointSaver(folder, WORLD) as saver:
        states = {"state.model.norm.weight.exp_avg": torch.ones(4)}
        return saver.save(model.state_dict(), states, {"step": 70, "epoch": 3}, wait=True)


def start(folder, source, model, param_map=""):
    settings = SimpleNamespace(fine_tune_checkpoint=str(source), fine_tune_ckpt_param_map=str(param_map))
    return warm_start(settings, model, folder, WORLD)


def by_status(report):
    found = {}
    for tensor in report.tensors:
        found.setdefault(tensor.status, {})[tensor.name] = tensor.note
    return found


def test_all_tensors_are_taken_over_but_those_of_metrics(tmp_path):
    model = Model()
    metric = {n: t.clone() for n, t in model.state_dict().items() if "metric" in n}
    report = start(tmp_path / "new", trained(tmp_path / "old"), model)
    assert wrong({n: t for n, t in model.state_dict().items() if n not in metric}) == []
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in metric.items())
    found = by_status(report)
    assert set(found) == {"loaded"}
    assert "model.norm.running_mean" in found["loaded"]
    assert len(found["loaded"]) == 9


def test_a_model_dir_stands_for_its_latest_checkpoint(tmp_path):
    path = trained(tmp_path / "old")
    assert start(tmp_path / "new", tmp_path / "old", Model()).checkpoint == path


def test_what_differs_is_reshaped_reset_or_missing_and_what_is_left_over_is_unused(tmp_path):
    path = trained(tmp_path / "old", hidden=7, layer="theirs")
    model = Model(rows=9, layer="ours")
    model.model.group.embedding_bags["item"] = nn.EmbeddingBag(4, 4)  # fewer rows
    model.model.norm.weight = nn.Parameter(torch.zeros(2, 2))  # as many numbers in another shape
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = start(tmp_path / "new", path, model)
    user, item = (f"model.group.embedding_bags.{name}.weight" for name in ("user", "item"))
    found = by_status(report)
    assert found["reshaped"] == {user: "6x4 -> 9x4"}
    assert found["reset"] == {item: "5x4 -> 4x4", "model.norm.weight": "4 -> 2x2"}
    assert set(found["missing"]) == {"model.ours.weight", "model.ours.bias"}
    assert set(found["unused"]) == {"model.theirs.weight", "model.theirs.bias"}
    assert report.counts() == {"loaded": 4, "reshaped": 1, "reset": 2, "missing": 2, "unused": 2}
    after = model.state_dict()
    assert torch.equal(after[user][:6], value_of(user, (6, 4)))
    assert torch.equal(after[user][6:], before[user][6:])
    for name in [*found["reset"], *found["missing"]]:
        assert torch.equal(after[name], before[name])


def test_a_layer_with_more_rows_is_reset_for_only_a_tables_rows_have_a_place(tmp_path):
    found = by_status(start(tmp_path / "new", trained(tmp_path / "old"), Model(hidden=4)))
    assert found["reset"] == {"model.layer.weight": "3x4 -> 4x4", "model.layer.bias": "3 -> 4"}


def test_the_report_is_printed_and_written(tmp_path, capsys, caplog):
    path = trained(tmp_path / "old")
    start(tmp_path / "new", path, Model(rows=9))
    printed = " ".join(capsys.readouterr().err.split())
    assert "8 loaded, 1 reshaped, 0 reset, 0 missing, 0 unused" in printed
    assert "6x4 -> 9x4" in printed
    written = json.loads((tmp_path / "new/warm_start.json").read_text())
    assert written["checkpoint"] == str(path)
    assert written["counts"]["reshaped"] == 1
    assert {"name": "model.norm.bias", "status": "loaded", "note": ""} in written["tensors"]
    assert "wrong for hashed ids (hash_bucket_size)" in caplog.text


def test_a_map_says_which_tensor_has_which_name_there(tmp_path):
    path = trained(tmp_path / "old", layer="theirs")
    names = tmp_path / "map.txt"
    names.write_text(
        "# name here, name there\n"
        "\n"
        "model.ours.weight   model.theirs.weight\n"
        "ours.bias theirs.bias  # without model.\n"
        "model.norm.running_var\tmodel.norm.running_mean\n"
    )
    model = Model(layer="ours")
    found = by_status(start(tmp_path / "new", path, model, names))
    assert found["loaded"]["model.ours.weight"] == "from model.theirs.weight"
    assert torch.equal(model.model.ours.weight, value_of("model.theirs.weight", (3, 4)))
    assert torch.equal(model.model.ours.bias, value_of("model.theirs.bias", (3,)))
    mean = value_of("model.norm.running_mean", (4,))  # one source for two
    assert torch.equal(model.model.norm.running_var, mean)
    assert torch.equal(model.model.norm.running_mean, mean)
    assert set(found["unused"]) == {"model.norm.running_var"}


def test_each_wrong_line_of_a_map_is_named(tmp_path):
    names = tmp_path / "map.txt"
    names.write_text(
        "one\nmodel.layer.wait model.layer.weight\nlayer.bias layer.bios\n"
        "layer.bias layer.bias\nlayer.bias layer.bias\n"
    )
    with pytest.raises(ConfigError) as error:
        start(tmp_path / "new", trained(tmp_path / "old"), Model(), names)
    first, second, third, last = error.value.problems
    assert first == f"{names}:1: 'one' is not of the form `<name here> <name in the checkpoint>`"
    assert second.startswith(
        f"{names}:2: the model has no tensor 'model.layer.wait'. Did you mean 'model.layer.weight'"
    )
    assert third.startswith(f"{names}:3: the checkpoint has no tensor 'layer.bios'. Did you mean 'model.layer.bias'")
    assert last == f"{names}:5: 'layer.bias' was given a name before"


def test_a_map_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"fine_tune_ckpt_param_map = '.*nowhere' cannot be read: .*No such file"):
        start(tmp_path / "new", trained(tmp_path / "old"), Model(), tmp_path / "nowhere")


def test_nothing_is_done_without_the_setting_or_when_there_is_a_checkpoint_to_go_on_from(tmp_path, caplog):
    caplog.set_level("INFO")
    assert start(tmp_path / "new", "", Model()) is None
    path = trained(tmp_path / "old")
    trained(tmp_path / "new")
    model = Model()
    before = model.model.layer.weight.clone()
    assert start(tmp_path / "new", path, model) is None
    assert torch.equal(model.model.layer.weight, before)
    assert "fine_tune_checkpoint is not read" in caplog.text


def test_a_source_that_is_no_checkpoint_or_damaged_or_has_nothing_in_common_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match=r"fine_tune_checkpoint = '.*nowhere' is neither a checkpoint"):
        start(tmp_path / "new", tmp_path / "nowhere", Model())
    path = trained(tmp_path / "old")
    other = nn.Module()
    other.net = nn.Linear(2, 2)
    words = (
        r"has no tensor of this model. It has model\.group.*; the model has net\.bias, net\.weight\. If only the names"
    )
    with pytest.raises(CheckpointError, match=words):
        start(tmp_path / "new", path, other)
    file = path / "model/__0_0.distcp"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match=r"model/__0_0\.distcp is damaged"):
        start(tmp_path / "new", path, Model())


# Sharded


def start_grown(folder, source):
    """Warm-start a sharded model, each of whose tables has three more rows; what came wrong, and the notes."""
    world = join_world()
    dmp = sharded(world, {name: rows + 3 for name, rows in ROWS.items()})
    before = [[shard.clone() for _, shard in local_shards(dmp.state_dict()[name])] for name in TABLES]
    settings = SimpleNamespace(fine_tune_checkpoint=source, fine_tune_ckpt_param_map="")
    report = warm_start(settings, dmp, folder, world)
    state = dmp.state_dict()
    came_wrong = wrong({name: tensor for name, tensor in state.items() if name not in TABLES})
    for name, rows, shards in zip(TABLES, ROWS.values(), before):
        for (offsets, shard), first in zip(local_shards(state[name]), shards):
            num_old = max(0, min(shard.size(0), rows - offsets[0]))
            expected = part(value_of(name, (rows, 8)), offsets, shard[:num_old])
            if not (torch.equal(shard[:num_old], expected) and torch.equal(shard[num_old:], first[num_old:])):
                came_wrong.append(name)
    return [came_wrong, by_status(report)["reshaped"]]


def test_sharded_tables_grow_by_rows_in_each_way_of_sharding(tmp_path):
    wrapper = Wrapper()
    fill(wrapper.state_dict())
    with CheckpointSaver(tmp_path / "old", WORLD) as saver:
        saver.save(wrapper.state_dict(), {}, {"step": 1}, wait=True)
    for came_wrong, notes in run_ranks(__file__, "start_grown", 2, str(tmp_path / "new"), str(tmp_path / "old")):
        assert came_wrong == []
        assert notes == dict(zip(TABLES, ["5x8 -> 8x8", "7x8 -> 10x8", "6x8 -> 9x8"]))
