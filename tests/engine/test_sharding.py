"""How tables are split over processes, and that a model does not notice."""

import sys
from pathlib import Path

import pytest
import torch
import torchrec.optim
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torchrec.distributed.train_pipeline import TrainPipelineBase, TrainPipelineSparseDist

sys.path.insert(0, str(Path(__file__).parent))
from ranks import run_ranks

from tzrec_core.config import parse_config
from tzrec_core.engine import sharders
from tzrec_core.engine.constraints import TableConstraints, read_constraints, unshardable_tables
from tzrec_core.engine.plan import create_plan
from tzrec_core.engine.plan_table import RankBytes, balance, plan_rows, plan_text, rank_bytes
from tzrec_core.engine.sharders import collections_of, materialise_tables
from tzrec_core.engine.sharding import host_memory, shard
from tzrec_core.engine.shards import local_shards
from tzrec_core.engine.world import in_world, join_world
from tzrec_core.errors import ConfigError
from tzrec_core.features import create_features
from tzrec_core.models import BaseModel, PredictWrapper, TrainWrapper
from tzrec_core.modules import EmbeddingGroup
from tzrec_core.testing.golden import golden_batch

NUM_ROWS = 5
LR = 0.5

FEATURES = {  # name -> type and settings
    "tags": 'id_feature num_buckets: 11 init_fn: "nn.init.xavier_uniform_"',
    "mean": 'id_feature num_buckets: 7 pooling: "mean"',
    "left": 'id_feature num_buckets: 9 embedding_name: "both"',
    "right": 'id_feature num_buckets: 9 embedding_name: "both"',
    "one": "id_feature num_buckets: 1 trainable: false",
    "clicks": 'sequence_id_feature num_buckets: 9 embedding_name: "both" sequence_length: 4',
    "views": "sequence_id_feature num_buckets: 3 sequence_length: 4",
}
DEEP = """
  feature_groups { group_name: "deep" feature_names: ["tags", "mean", "left", "right", "one"] group_type: DEEP }
"""
SEQUENCES = """
  feature_groups { group_name: "wide" feature_names: ["left"] group_type: WIDE }
  feature_groups { group_name: "steps" feature_names: ["right", "clicks"] group_type: SEQUENCE }
  feature_groups { group_name: "loose" feature_names: ["views"] group_type: JAGGED_SEQUENCE }
"""


class Net(BaseModel):
    """The sum of squares of all that the groups give, weighted row by row, and a layer."""

    def __init__(self, config, has_dense=True, tables_on=None):
        features = create_features(config.feature_configs, config.data_config)
        super().__init__(config.model_config, features, ["label"])
        self.embedding_group = EmbeddingGroup(features, config.model_config.feature_groups, device=tables_on)
        self.dense = nn.Linear(1, 1) if has_dense else nn.Identity()

    def predict(self, batch):
        found = self.embedding_group(batch)
        total = sum(value.pow(2).sum() for key, value in found.items() if not key.endswith("sequence_length"))
        return {"y": self.dense(total.reshape(1, 1))}

    def init_loss(self):
        pass

    def init_metric(self):
        pass

    def loss(self, predictions, batch):
        return {"loss": predictions["y"].mean() / 100}


def net_config(*, train="", groups="", **features):
    """A config of these features; `features` adds settings to some of them."""
    text = f'data_config {{ label_fields: "label" batch_size: 8 }} train_config {{ {train} }}'
    for name, line in FEATURES.items():
        kind, _, settings = line.partition(" ")
        text += f"""
            feature_configs {{ {kind} {{ feature_name: "{name}" expression: "user:{name}" embedding_dim: 8
              {settings} {features.get(name, "")} }} }}"""
    return parse_config(f"{text} model_config {{ {DEEP} {groups} }}", partial=True)


def net_batch(rank=0, weighted=False):
    """Other ids on each rank; some rows have none."""
    generator = torch.Generator().manual_seed(rank)
    columns = {}
    for name, size in (
        ("tags", 11), ("mean", 7), ("left", 9), ("right", 9), ("one", 1), ("clicks", 9), ("views", 3)
    ):  # fmt: skip
        lengths = torch.randint(0, 4, (NUM_ROWS,), generator=generator)
        ids = torch.randint(0, size, (int(lengths.sum()),), generator=generator)
        columns[name] = {"values": ids.tolist(), "lengths": lengths.tolist()}
        if weighted and name == "tags":
            columns[name]["weights"] = torch.rand(len(ids), generator=generator).tolist()
    return golden_batch({"sparse": {"__BASE__": columns}})


def net_wrapper(config, kind=TrainWrapper, **kwargs):
    torch.manual_seed(3)
    return kind(Net(config, **kwargs))


def fuse(model, optimizer=torchrec.optim.SGD, lr=LR):
    """Only attributes, as torchrec reads them."""
    trainable, frozen = model.sparse_parameters()
    for table in (*trainable, *frozen):
        table._optimizer_classes = [optimizer if table.requires_grad else torchrec.optim.SGD]
        table._optimizer_kwargs = [{"lr": lr if table.requires_grad else 0.0}]


def differences(sharded, expected):
    """Names of the tensors that are not, shard by shard, what they should be."""
    found = []
    for name, tensor in sharded.items():
        whole = expected[name]
        for offsets, part in local_shards(tensor):
            for dim, (start, size) in enumerate(zip(offsets, part.shape)):
                whole = whole.narrow(dim, start, size)
            if not torch.allclose(part, whole, rtol=1e-5, atol=1e-6):
                found.append(name)
            whole = expected[name]
    return [*found, *(expected.keys() - sharded.keys())]


def train_a_step(parts):
    """One step in this world, and the same on one process that sees the batches of all; returns what differs."""
    world = join_world()
    config = net_config(**parts)
    wrapper, alone = net_wrapper(config), net_wrapper(config)
    weighted = "weighted" in parts.get("tags", "")
    fuse(wrapper.model)
    before = {name: tensor.clone() for name, tensor in wrapper.state_dict().items()}
    model = shard(wrapper, config, world, is_fused=True)
    kept = differences(model.state_dict(), before)

    loss, _ = model(net_batch(world.rank, weighted))
    expected, _ = alone(net_batch(world.rank, weighted))
    loss.backward()
    total = sum(alone(net_batch(rank, weighted))[0] for rank in range(world.size)) / world.size
    total.backward()
    with torch.no_grad():
        trainable, _ = alone.model.sparse_parameters()
        for table in trainable:
            table -= LR * table.grad
    gradients = [
        torch.allclose(p.grad, q.grad, rtol=1e-4)
        for p, q in zip(model.module.model.dense.parameters(), alone.model.dense.parameters())
    ]
    return {
        "values": kept,
        "loss": abs(loss.item() - expected.item()) < 1e-4,
        "tables": differences(model.state_dict(), alone.state_dict()),
        "dense": all(gradients),
        "used": sorted({s.sharding_type for plan in model.plan.plan.values() for s in plan.values()}),
    }


def limited(*sharding_types):
    listed = " ".join(f'sharding_types: "{name}"' for name in sharding_types)
    return f"global_embedding_constraints {{ {listed} }}"


def own(*sharding_types, kernels=()):
    listed = " ".join([f'sharding_types: "{n}"' for n in sharding_types] + [f'compute_kernels: "{k}"' for k in kernels])
    return f"embedding_constraints {{ {listed} }}"


WEIGHTED = {"tags": "weighted: true"}  # then means are weighted sums
KEEP_MEAN = {"mean": own("table_wise")}
# what a case sets, and what it makes of the tables; "one" is too small to be split by rows
CASES = {
    "table_wise": ({"train": limited("table_wise"), "groups": SEQUENCES}, ["table_wise"]),
    "table_wise, weighted": ({"train": limited("table_wise"), **WEIGHTED}, ["table_wise"]),
    "row_wise": ({"train": limited("row_wise"), **KEEP_MEAN, "groups": SEQUENCES}, ["row_wise", "table_wise"]),
    "row_wise, weighted": ({"train": limited("row_wise"), **WEIGHTED}, ["row_wise", "table_wise"]),
    "column_wise": ({"train": limited("column_wise"), "groups": SEQUENCES}, ["column_wise"]),
    "column_wise, weighted": ({"train": limited("column_wise"), **WEIGHTED}, ["column_wise"]),
    "table_row_wise": ({"train": limited("table_row_wise"), **KEEP_MEAN}, ["table_row_wise", "table_wise"]),
    "table_row_wise, weighted": ({"train": limited("table_row_wise"), **WEIGHTED}, ["table_row_wise", "table_wise"]),
    "table_column_wise": ({"train": limited("table_column_wise")}, ["table_column_wise"]),
    "grid_shard": ({"train": limited("grid_shard"), **KEEP_MEAN}, ["grid_shard", "table_wise"]),
    "grid_shard, weighted": ({"train": limited("grid_shard"), **WEIGHTED}, ["grid_shard", "table_wise"]),
    "a mixture": (
        {
            "train": limited("table_wise"),
            "tags": own("column_wise"),
            "mean": own("column_wise", "table_wise"),
            "left": own("row_wise"),
            "groups": SEQUENCES,
        },
        ["column_wise", "row_wise", "table_wise"],
    ),
    "as the planner likes": ({"groups": SEQUENCES}, None),
}


FEW = ["row_wise, weighted", "a mixture"]
MANY = [case for case in CASES if case not in FEW]


def train_steps(cases):
    return {case: train_a_step(CASES[case][0]) for case in cases}


def few_steps_and_other_things():
    return {**train_steps(FEW), "others": other_things()}


@pytest.fixture(scope="module")
def two_ranks():
    return run_ranks(__file__, "few_steps_and_other_things", 2)


@pytest.fixture(scope="module")
def two_ranks_for_long():
    return run_ranks(__file__, "train_steps", 2, MANY)


def assert_same(outputs, case):
    used = CASES[case][1]
    for found in (output[case] for output in outputs):
        assert used is None or found["used"] == used
        assert {**found, "used": None} == {"values": [], "loss": True, "tables": [], "dense": True, "used": None}


@pytest.mark.parametrize("case", FEW)
def test_a_step_of_two_processes_is_a_step_of_one_that_sees_both_batches(two_ranks, case):
    assert_same(two_ranks, case)


@pytest.mark.slow
@pytest.mark.parametrize("case", MANY)
def test_so_it_is_in_every_way_to_split_a_table(two_ranks_for_long, case):
    assert_same(two_ranks_for_long, case)


META = torch.device("meta")
BY_ROWS = {"train": limited("row_wise"), **KEEP_MEAN, "groups": SEQUENCES}


def other_things():
    world = join_world()
    config = net_config(**BY_ROWS)
    batch = net_batch(world.rank)
    alone = net_wrapper(config)
    expected, (_, predictions, _) = alone(batch)
    found = {}

    wrapper = net_wrapper(config)
    model = shard(wrapper, config, world, is_fused=True)
    found["has_ddp"] = isinstance(model._dmp_wrapped_module, DistributedDataParallel)
    model(batch)[0].backward()
    found["without_optimizer"] = differences(model.state_dict(), alone.state_dict())

    model = shard(net_wrapper(config, PredictWrapper), config, world, is_fused=True).eval()
    with torch.no_grad():
        _, (sharded, _) = model(batch)
    found["predictions"] = torch.allclose(sharded["y"], predictions["y"])

    model = shard(net_wrapper(config), config, world, is_fused=False)
    found["unsharded"] = model(batch)[0].item() == expected.item()

    wrapper = net_wrapper(config, has_dense=False)
    fuse(wrapper.model)
    model = shard(wrapper, config, world, is_fused=True)
    before = {name: [part.clone() for _, part in local_shards(t)] for name, t in model.state_dict().items()}
    model(batch)[0].backward()
    after = {name: [part for _, part in local_shards(t)] for name, t in model.state_dict().items()}
    found["no_dense_learns"] = any(not torch.equal(a, b) for n in before for a, b in zip(before[n], after[n]))

    sharders._BLOCK = 24  # three rows
    model = shard(net_wrapper(config, tables_on=META), config, world, is_fused=True)
    drawn = net_wrapper(config, tables_on=META)
    materialise_tables(drawn)
    found["drawn"] = differences(model.state_dict(), drawn.state_dict())

    plan = create_plan(
        net_wrapper(net_config(groups=SEQUENCES)), 8, 2, "cuda", constraints={}, batch_size=4, hbm_bytes=2**30,
        ddr_bytes=2**33,
    )  # fmt: skip
    found["plan"] = str(plan)
    return found


@pytest.fixture(scope="module")
def others(two_ranks):
    return [found["others"] for found in two_ranks]


def test_dense_gradients_are_averaged_where_there_are_any(others):
    assert all(found["has_ddp"] and found["no_dense_learns"] for found in others)


def test_tables_without_an_optimizer_stand_still(others):
    assert [found["without_optimizer"] for found in others] == [[], []]


def test_predictions_of_two_processes_are_those_of_one(others):
    assert all(found["predictions"] and found["unsharded"] for found in others)


def test_tables_on_the_meta_device_get_the_same_values_in_shards_as_whole(others):
    assert [found["drawn"] for found in others] == [[], []]


def test_processes_whose_hashes_differ_make_the_same_plan(others):
    assert others[0]["plan"] == others[1]["plan"]


# In one process


def losses_of(config, pipeline_class=None):
    """Losses of four steps, by hand or in a pipeline of torchrec."""
    with in_world() as world:
        wrapper = net_wrapper(config)
        fuse(wrapper.model)
        model = shard(wrapper, config, world, is_fused=True)
        optimizer = torch.optim.SGD(model.module.model.dense.parameters(), lr=0.1)
        batches = [net_batch(number) for number in range(4)]
        found = []
        if pipeline_class is None:
            for batch in batches:
                optimizer.zero_grad()
                loss, _ = model(batch)
                loss.backward()
                optimizer.step()
                found.append(loss.item())
            return found
        pipeline, steps = pipeline_class(model, optimizer, torch.device("cpu")), iter(batches)
        for _ in batches:
            losses, _, _ = pipeline.progress(steps)
            found.append(sum(losses.values()).item())
        with pytest.raises(StopIteration):
            pipeline.progress(steps)
        if pipeline_class is TrainPipelineSparseDist:
            pipelined = {module.forward.name for module in pipeline._pipelined_modules}
            assert pipelined == set(model.plan.plan)
        return found


@pytest.mark.parametrize("pipeline", [TrainPipelineBase, TrainPipelineSparseDist])
def test_torchrecs_pipelines_take_the_steps_of_a_plain_loop(pipeline):
    config = net_config(groups=SEQUENCES)
    losses = losses_of(config)
    assert losses_of(config, pipeline) == pytest.approx(losses)
    assert losses[3] != losses[0]


def test_one_process_keeps_values_and_names_and_gives_up_the_originals():
    config = net_config(groups=SEQUENCES)
    wrapper = net_wrapper(config)
    originals = [table for tables in wrapper.model.sparse_parameters() for table in tables]
    before = {name: tensor.clone() for name, tensor in wrapper.state_dict().items()}
    state = torch.get_rng_state()
    with in_world() as world:
        model = shard(wrapper, config, world, is_fused=True)
        assert differences(model.state_dict(), before) == []
        assert {s.sharding_type for plan in model.plan.plan.values() for s in plan.values()} == {"table_wise"}
    assert [table.numel() for table in originals] == [0] * 7
    assert torch.equal(wrapper.model.dense.weight, before["model.dense.weight"])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("is_fused", [True, False])
def test_the_first_values_of_a_table_on_meta_come_from_the_seed_and_its_name(is_fused):
    config = net_config(groups=SEQUENCES)
    found = []
    for seed in (1, 1, 2):
        with in_world() as world:
            wrapper = TrainWrapper(Net(config, tables_on=META))
            torch.manual_seed(seed)
            model = shard(wrapper, config, world, is_fused=is_fused)
            state = model.state_dict()
        found.append({n: local_shards(t)[0][1] for n, t in state.items() if "embedding_group" in n})
    first, again, other = found
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)
    (tags,) = (t for n, t in first.items() if "tags_emb" in n)
    assert tags.abs().max() <= (6 / (11 + 8)) ** 0.5  # xavier_uniform_ of 11 x 8
    pooled, stepped = (t for n, t in first.items() if n.endswith("both.weight"))
    assert not torch.equal(pooled, stepped)


def constraints_of(config):
    wrapper = net_wrapper(config)
    return wrapper, read_constraints(wrapper, wrapper.model._features, config.train_config)


def plan_of(config, world_size=2, device="cpu", local_world_size=None, **sizes):
    wrapper, constraints = constraints_of(config)
    fuse(wrapper.model, torchrec.optim.Adagrad)
    sizes = sizes or {"ddr_bytes": 2**33, "hbm_bytes": 2**33}
    local = local_world_size or world_size
    plan = create_plan(wrapper, world_size, local, device, constraints=constraints, batch_size=4, **sizes)
    return plan, wrapper


def test_a_features_own_constraints_count_before_the_global_ones():
    _, found = constraints_of(net_config(train=limited("row_wise"), left=own("table_wise"), groups=SEQUENCES))
    assert found["tags_emb"] == TableConstraints(("row_wise",), (), "train_config.global_embedding_constraints")
    origin = "id_feature 'left': embedding_constraints"
    assert found["both"] == found["both_wide"] == TableConstraints(("table_wise",), (), origin)


def test_features_that_share_a_table_must_agree():
    with pytest.raises(ConfigError, match="'left' and 'right' share the embedding table 'both' but differ"):
        constraints_of(net_config(left=own("table_wise"), right=own("row_wise")))
    constraints_of(net_config(left=own("table_wise", "row_wise"), right=own("row_wise", "table_wise")))


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        (
            {"mean": own("grid_shard", "row_wise")},
            "'mean_emb' on cpu. Possible there: table_wise, column_w",
        ),
        ({"mean": own("data_parallel")}, "sharding_types = data_parallel cannot be done for .*'mean_emb'"),
        (
            {"left": own("table_row_wise"), "groups": SEQUENCES},
            "table 'both' on cpu. Possible there: table_wise, row_wise, column_wise$",
        ),
        ({"tags": own(kernels=["fused_uvm"])}, "compute_kernels = fused_uvm cannot .* Possible there: fused$"),
    ],
)
def test_constraints_that_cannot_be_met_are_refused_with_what_can(parts, words):
    with pytest.raises(ConfigError, match=words):
        plan_of(net_config(**parts))


def test_a_gpu_has_more_kernels():
    plan, wrapper = plan_of(net_config(tags=own(kernels=["fused_uvm"]), groups=SEQUENCES), device="cuda")
    kernels = {row["table"]: row["kernel"] for row in plan_rows(plan, wrapper, 2)}
    assert kernels["tags_emb"] == "fused_uvm"
    used = rank_bytes(plan, wrapper, 2)
    assert sum(rank.host for rank in used) == 11 * 8 * 4 * 2
    assert "in host memory" in balance(used)


def test_a_plan_as_a_table():
    plan, wrapper = plan_of(net_config(train=limited("row_wise"), mean=own("column_wise"), groups=SEQUENCES))
    rows = {(row["table"], row["kind"]): row for row in plan_rows(plan, wrapper, 2)}
    assert next(iter(rows)) == ("tags_emb", "pooled")  # the largest
    assert rows["both", "sequence"] == {
        "table": "both", "kind": "sequence", "rows": 9, "dim": 8, "mib": 9 * 8 * 4 / 2**20, "sharding": "row_wise",
        "kernel": "fused", "ranks": [0, 1],
    }  # fmt: skip
    assert (rows["mean_emb", "pooled"]["sharding"], rows["mean_emb", "pooled"]["ranks"]) == ("column_wise", [0, 1])
    one = rows["one_emb", "pooled"]
    assert (one["sharding"], len(one["ranks"])) == ("table_wise", 1)
    used = [0, 0]  # floats of rows and of Adagrad, which a frozen table does not have
    for num_rows, dim in ((11, 8), (9, 8), (9, 8), (9, 4), (3, 8)):
        first = (num_rows + 1) // 2
        used[0] += 2 * first * dim
        used[1] += 2 * (num_rows - first) * dim
    used = [each + 2 * 7 * 4 for each in used]  # half of the columns of "mean"
    used[one["ranks"][0]] += 8
    assert rank_bytes(plan, wrapper, 2) == [RankBytes(4 * floats, 0) for floats in used]
    text = plan_text(plan, wrapper, 2)
    assert "both_wide" in text
    assert "0-1" in text
    assert f"the largest is {max(used) / sum(used) * 2:.2f} times the mean" in text


def test_a_long_plan_is_cut_in_the_log(monkeypatch):
    from tzrec_core.engine import plan_table

    monkeypatch.setattr(plan_table, "_NUM_SHOWN", 2)
    plan, wrapper = plan_of(net_config())
    assert "... and 2 smaller ones; `tzrec plan` lists all" in plan_text(plan, wrapper, 2)


def test_a_table_with_too_few_rows_stays_whole_and_the_log_says_so(caplog):
    plan, wrapper = plan_of(net_config(tags=own("row_wise")), world_size=16)
    assert {row["table"]: row["sharding"] for row in plan_rows(plan, wrapper, 16)}["tags_emb"] == "table_wise"
    assert "too few rows to be split by rows and stay whole: tags_emb (11)" in caplog.text


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_tables_that_do_not_fit_are_named_with_what_they_need(device):
    config = net_config()
    config.feature_configs[0].id_feature.num_buckets = 2_000_000_000
    config.feature_configs[1].id_feature.num_buckets = 500_000_000
    wrapper = net_wrapper(config, tables_on=META)
    fuse(wrapper.model, torchrec.optim.Adagrad)
    memory = {"hbm_bytes": 10 * 2**30} if device == "cuda" else {"ddr_bytes": 80 * 2**30}

    def plan(world_size):
        create_plan(wrapper, world_size, 8, device, constraints={}, batch_size=4, **memory)

    with pytest.raises(ConfigError) as caught:
        plan(8)
    for words in (
        "they need 149.0 GiB", "8 processes have 8.5 GiB each", "10.0 GiB less 15%",
        "tags_emb: 2,000,000,000 x 8, 119.2 GiB; mean_emb: 500,000,000 x 8, 29.8 GiB", "Use more processes",
    ):  # fmt: skip
        assert words in str(caught.value)
    assert ("--ddr" in str(caught.value)) == (device == "cuda")
    with pytest.raises(ConfigError, match=r"a piece of the embedding table 'mean_emb', split table_wise, .* 29.8 GiB"):
        plan(64)  # a mean is not split by rows


def test_widths_that_fused_kernels_cannot_take_are_named():
    config = net_config()
    config.feature_configs[0].id_feature.embedding_dim = 6
    wrapper = net_wrapper(config)
    assert unshardable_tables(wrapper) == ["tags_emb (6)"]
    with pytest.raises(ConfigError, match=r"not a multiple of 4.*tags_emb \(6\). Change it, or run in one process"):
        create_plan(wrapper, 1, 1, "cpu", constraints={}, batch_size=4, ddr_bytes=2**30)


def test_a_column_split_makes_a_piece_for_every_process():
    plan, wrapper = plan_of(net_config(train=limited("column_wise")))
    (path,) = collections_of(wrapper)
    pieces = plan.plan[path]["tags_emb"].sharding_spec.shards
    assert [(piece.shard_sizes, piece.shard_offsets) for piece in pieces] == [([11, 4], [0, 0]), ([11, 4], [0, 4])]


def test_the_memory_of_this_machine_is_known():
    assert host_memory() > 2**28
