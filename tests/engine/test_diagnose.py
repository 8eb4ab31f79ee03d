import json
import math
import sys
from pathlib import Path

import pytest
import tiny_data
import torch
from torch import nn

from tzrec_core.config import parse_config
from tzrec_core.data import DataParser
from tzrec_core.data.loader import create_dataloader
from tzrec_core.engine.diagnose import Finding, find_failure, first_bad, read_batch, save_failure
from tzrec_core.engine.replay import replay
from tzrec_core.engine.setup import build, save_pipeline_config, seed_step
from tzrec_core.engine.sharders import materialise_tables
from tzrec_core.engine.sharding import shard
from tzrec_core.engine.world import in_world, join_world
from tzrec_core.errors import ConfigError, DataError
from tzrec_core.models import TrainWrapper
from tzrec_core.plugins import Registry, Selection, use_registry

sys.path.insert(0, str(Path(__file__).parent))
from ranks import run_ranks


@pytest.fixture
def world():
    with in_world() as world:
        yield world


def made(config, world):
    """The wrapper, and the first batch of this rank's training rows."""
    torch.manual_seed(1)
    setup = build(config)
    materialise_tables(setup.model)
    loader = create_dataloader(
        config.data_config, setup.features, config.train_input_path, rank=world.rank, world_size=world.size
    )
    return TrainWrapper(setup.model), next(iter(loader))


def spoil(tensor, *places, value=math.nan):
    with torch.no_grad():
        for place in places:
            tensor[place] = value


def test_a_healthy_step_has_no_finding_and_leaves_the_model_as_it_was(config, world):
    wrapper, batch = made(config(), world)
    before = {name: tensor.clone() for name, tensor in wrapper.state_dict().items()}
    assert first_bad(wrapper, batch) is None
    assert all(torch.equal(tensor, before[name]) for name, tensor in wrapper.state_dict().items())
    assert wrapper.training
    assert not any(module._forward_hooks for module in wrapper.modules())


def test_an_input_is_named_with_its_row(config, world):
    wrapper, batch = made(config(), world)
    spoil(batch.dense_features["__BASE__"].values(), (5, 0), (9, 0))
    found = first_bad(wrapper, batch)
    assert found == Finding("input", "price", (16, 1), 2, 0, found.order, row=5)
    assert str(found) == "input price of shape (16, 1) holds 2 NaN values, first in row 5 of the batch"


def test_a_value_of_a_list_is_traced_to_its_row(config, world):
    from torchrec import JaggedTensor

    wrapper, batch = made(config(), world)
    values = torch.tensor([1.0, 2.0, math.inf, 4.0])
    batch.jagged_labels["many"] = JaggedTensor(values, lengths=torch.tensor([0, 2, 0, 2]))
    found = first_bad(wrapper, batch)
    assert (found.name, found.row, found.num_inf) == ("many", 3, 1)


def test_parameters_come_before_what_they_spoil(config, world):
    wrapper, batch = made(config(), world)
    spoil(wrapper.model.output.weight, (0, 1), (0, 2), value=-math.inf)
    found = first_bad(wrapper, batch)
    assert (found.kind, found.name, found.num_inf) == ("parameter", "model.output.weight", 2)
    table = "model.embedding_group.emb_impls.__BASE__.ebc.embedding_bags.user_emb.weight"
    spoil(wrapper.state_dict()[table], (0, 0))
    assert first_bad(wrapper, batch).name == table


def test_statistics_are_no_cause_where_they_are_only_written(config, world):
    wrapper, batch = made(config(), world)
    spoil(wrapper.model.norm.running_var, 3)
    found = first_bad(wrapper, batch)
    assert (found.kind, found.name, found.num_nan) == ("buffer", "model.norm.running_var", 1)
    wrapper.eval()
    found = first_bad(wrapper, batch)
    assert (found.kind, found.name) == ("output", "model.norm")


class Overflow(nn.Module):
    def forward(self, hidden):
        return {"hidden": [hidden, hidden * 1e38 * 1e38]}


def test_the_first_module_that_makes_it_is_named(config, world):
    wrapper, batch = made(config(), world)
    overflow = wrapper.model.overflow = Overflow()
    wrapper.model.dropout.register_forward_hook(lambda module, args, output: overflow(output)["hidden"][1])
    found = first_bad(wrapper, batch)
    assert (found.kind, found.name, found.shape) == ("output", "model.overflow", (16, 8))
    assert found.num_inf > 0
    assert str(found).startswith("output of module model.overflow of shape (16, 8) holds ")


def test_a_loss_that_breaks_by_itself_is_named(config, world):
    wrapper, batch = made(config(), world)
    loss = wrapper.model._loss_modules["binary_cross_entropy"]
    loss.register_forward_hook(lambda module, args, output: output * math.nan)
    assert str(first_bad(wrapper, batch)) == "the loss binary_cross_entropy of shape () holds 1 NaN values"


def test_the_step_is_made_again_with_its_draws(config, world):
    wrapper, batch = made(config("model_config.tiny.dropout=0.5"), world)
    seen = []
    wrapper.model.dropout.register_forward_hook(lambda module, args, output: seen.append(output.detach() == 0))
    seed_step(7, 3, world.device, 0)
    wrapper(batch)
    seed_step(7, 3, world.device, 0)
    first_bad(wrapper, batch)
    assert torch.equal(*seen)


def failed(config, world):
    """A run whose table has gone bad, kept as a failure of step 4."""
    wrapper, batch = made(config, world)
    save_pipeline_config(config, config.model_dir)
    spoil(wrapper.model.output.bias, 0)
    finding = first_bad(wrapper, batch)
    return save_failure(config.model_dir, 4, batch, 7, finding, world, wrapper), batch


def test_a_failure_holds_batch_model_and_finding(config, world, tmp_path):
    made_config = config()
    failure, batch = failed(made_config, world)
    assert failure.folder == tmp_path / "run/failed-4"
    assert find_failure(tmp_path / "run") == find_failure("elsewhere", failure.folder) == failure
    written = json.loads((failure.folder / "failure.json").read_text())
    assert (written["step"], written["seed"], written["rank"]) == (4, 7, 0)
    assert written["finding"]["name"] == "model.output.bias"
    features = build(made_config).features
    again = read_batch(failure, DataParser(features, labels=["click"]))
    assert again.to_dict().keys() == batch.to_dict().keys()
    assert all(torch.equal(tensor, batch.to_dict()[name]) for name, tensor in again.to_dict().items())


def test_a_failure_is_replayed_from_its_folder_alone(config, world):
    made_config = config()
    failure, batch = failed(made_config, world)
    result = replay(made_config)
    assert result.failure == failure
    assert result.finding == failure.finding
    assert not result.is_config_changed
    ranges = {entry.name: entry for entry in result.inputs}
    price = batch.dense_features["__BASE__"].values()
    assert ranges["price"].minimum == price.min() and ranges["price"].maximum == price.max()
    assert ranges["price"].mean == pytest.approx(price.double().mean().item())
    assert ranges["user"].num_values == ranges["click"].num_values == 16
    assert replay(config("data_config.batch_size=8")).is_config_changed


def test_a_cured_problem_does_not_show_again(config, world, tmp_path):
    made_config = config()
    wrapper, batch = made(made_config, world)
    finding = Finding("loss", "binary_cross_entropy", (), 1, 0, 0)
    save_failure(made_config.model_dir, 2, batch, 7, finding, world, wrapper)
    result = replay(made_config, tmp_path / "run/failed-2")
    assert result.finding is None
    assert result.failure.finding == finding


def test_the_latest_failure_counts_and_a_second_one_replaces_the_first(config, world, tmp_path):
    failure, _ = failed(config(), world)
    (failure.folder / "leftover").touch()
    failure, _ = failed(config(), world)
    assert not (failure.folder / "leftover").exists()


def test_what_is_missing_or_damaged_is_named(config, world, tmp_path):
    with pytest.raises(ConfigError, match=r"run holds no failed step \(failed-<step>\)"):
        find_failure(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"it has no failure\.json"):
        find_failure(tmp_path / "run", tmp_path)
    failure, _ = failed(config(), world)
    (failure.folder / "batch-0.pt").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"batch-0\.pt cannot be read"):
        replay(config())
    (failure.folder / "failure.json").write_text('{"step": 4}')
    with pytest.raises(DataError, match=r"failure\.json cannot be read"):
        replay(config())


def test_a_batch_file_cannot_run_code(config, world):
    failure, _ = failed(config(), world)
    torch.save({"price.values": print}, failure.folder / "batch-0.pt")
    with pytest.raises(DataError, match=r"batch-0\.pt cannot be read"):
        replay(config())


def sharded_scenario(text):
    registry = Registry.find(Selection(only=frozenset(), files=(tiny_data.MANIFEST,)))
    with use_registry(registry):
        world = join_world()
        config = parse_config(text)
        save_pipeline_config(config, config.model_dir)
        wrapper, batch = made(config, world)
        dmp = shard(wrapper, config, world, is_fused=True)
        found = [str(first_bad(dmp, batch))]
        if world.rank == 1:  # only one of them is hit, but both must take part
            spoil(batch.dense_features["__BASE__"].values(), (2, 0))
        finding = first_bad(dmp, batch)
        found.append(str(finding))
        failure = save_failure(config.model_dir, 4, batch, 7, finding, world, dmp)
        return [*found, failure.rank, str(failure.finding)]


def test_several_processes_look_together_and_one_replays(tmp_path):
    text = tiny_data.write_tables(tmp_path)
    outputs = run_ranks(__file__, "sharded_scenario", 2, text)
    assert [output[0] for output in outputs] == ["None", "None"]
    assert outputs[0][1] == "None"
    assert outputs[1][1].startswith("input price")
    for output in outputs:
        assert output[2:] == [1, outputs[1][1]]
    result = replay(parse_config(text))
    assert (result.failure.rank, str(result.finding)) == (1, outputs[1][1])
    assert len(list((tmp_path / "run/failed-4").glob("batch-*.pt"))) == 2
