"""A model with a table of each way to shard, and numbers that say where in which tensor they belong."""

import torch
import torchrec
from torch import nn
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.sharding_plan import column_wise, construct_module_sharding_plan, row_wise, table_wise
from torchrec.distributed.types import ShardingPlan, ShardingType
from torchrec.optim import RowWiseAdagrad
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward

from tzrec_core.engine.shards import local_shards

ROWS = {"whole": 5, "rows": 7, "columns": 6}
DIM = 8
TABLES = [f"model.tables.embedding_bags.{name}.weight" for name in ROWS]


class Sharder(EmbeddingBagCollectionSharder):
    """torchrec's, with row-wise sharding on CPUs too."""

    def sharding_types(self, compute_device_type):
        return [ShardingType.TABLE_WISE.value, ShardingType.ROW_WISE.value, ShardingType.COLUMN_WISE.value]


class Net(nn.Module):
    def __init__(self, rows):
        super().__init__()
        self.tables = torchrec.EmbeddingBagCollection(
            tables=[
                torchrec.EmbeddingBagConfig(name=name, embedding_dim=DIM, num_embeddings=n, feature_names=[name])
                for name, n in rows.items()
            ]
        )
        self.norm = nn.BatchNorm1d(DIM * len(rows))
        self.linear = nn.Linear(DIM * len(rows), 1)
        self.register_buffer("passing", torch.zeros(2), persistent=False)

    def forward(self, ids):
        embedded = self.tables(ids)  # in an order that depends on the sharding
        return self.linear(self.norm(torch.cat([embedded[name] for name in ROWS], dim=1)))


class Wrapper(nn.Module):
    """In place of a TrainWrapper: its only child is `model`."""

    def __init__(self, rows=None):
        super().__init__()
        self.model = Net(rows or ROWS)

    def forward(self, ids):
        return self.model(ids)


def sharded(world, rows=None):
    """The model as DistributedModelParallel, with optimizers fused into its tables."""
    wrapper = Wrapper(rows)
    tables = wrapper.model.tables
    for name, bag in tables.embedding_bags.items():
        optimizer = RowWiseAdagrad if name == "rows" else torch.optim.Adagrad
        apply_optimizer_in_backward(optimizer, bag.parameters(), {"lr": 0.1})
    every = list(range(world.size))
    ways = {
        "whole": table_wise(rank=world.size - 1),
        "rows": row_wise(),
        "columns": column_wise(ranks=every[:2]) if world.size > 1 else table_wise(rank=0),
    }
    plan = construct_module_sharding_plan(
        tables, ways, sharder=Sharder(), local_size=world.size, world_size=world.size, device_type="cpu"
    )
    return DistributedModelParallel(
        wrapper,
        device=torch.device("cpu"),
        plan=ShardingPlan({"model.tables": plan}),
        sharders=[Sharder()],
        init_data_parallel=world.size > 1,
    )


def optimizer_tensors(dmp):
    state = dmp.fused_optimizer.state_dict()["state"]
    return {f"state.{name}.{key}": value for name, states in state.items() for key, value in states.items()}


def batch_of(rows):
    """Row i looks up id i of each table, from the start again where a table has fewer."""
    ids = torch.cat([torch.arange(rows) % n for n in ROWS.values()])
    return torchrec.KeyedJaggedTensor(list(ROWS), ids, lengths=torch.ones_like(ids))


def value_of(name, size):
    """What a tensor of that name holds: another number at each place of each tensor, exact in float32."""
    offset = sum(map(ord, name)) % 97
    return torch.arange(max(1, torch.Size(size).numel()), dtype=torch.float32).reshape(size) / 8 + offset


def fill(tensors):
    with torch.no_grad():
        for name, tensor in tensors.items():
            whole = value_of(name, tensor.size())
            for offsets, shard in local_shards(tensor):
                shard.copy_(part(whole, offsets, shard))


def part(whole, offsets, shard):
    for dim, (start, length) in enumerate(zip(offsets, shard.shape)):
        whole = whole.narrow(dim, start, length)
    return whole


def wrong(tensors):
    """The names of those tensors that do not hold what `fill` puts there."""
    found = []
    for name, tensor in tensors.items():
        whole = value_of(name, tensor.size())
        if not all(torch.equal(shard.float(), part(whole, o, shard)) for o, shard in local_shards(tensor)):
            found.append(name)
    return found
