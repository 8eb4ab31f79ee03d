import sys
from pathlib import Path

import torch
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, EmbeddingCollection, EmbeddingConfig, KeyedJaggedTensor
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.types import ShardingEnv

sys.path.insert(0, str(Path(__file__).parent))
from ranks import run_ranks

from tzrec_core.engine.constraints import TableConstraints
from tzrec_core.engine.plan import create_plan
from tzrec_core.engine.sharders import create_sharders
from tzrec_core.engine.uneven_batches import allow_uneven_batches
from tzrec_core.engine.world import join_world

IDS = {"a": [0, 1, 2, 3, 4, 5, 6], "b": [6, 5, 4, 3, 2, 1, 0]}
SHARES = [(0, 4), (4, 7)]  # rows of each of two processes


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ebc = EmbeddingBagCollection(
            tables=[EmbeddingBagConfig(name="a", num_embeddings=8, embedding_dim=8, feature_names=["a"])]
        )
        self.ec = EmbeddingCollection(
            tables=[EmbeddingConfig(name="b", num_embeddings=8, embedding_dim=8, feature_names=["b"])]
        )

    def forward(self, ids: KeyedJaggedTensor) -> torch.Tensor:
        pooled = self.ebc(ids)["a"]
        steps = self.ec(ids)["b"].values()
        return (pooled * torch.arange(8.0)).sum() + (steps * torch.arange(1.0, 9.0)).sum()


def ids_of(first: int, last: int) -> KeyedJaggedTensor:
    values = torch.tensor([*IDS["a"][first:last], *IDS["b"][first:last]])
    return KeyedJaggedTensor.from_lengths_sync(["a", "b"], values, torch.ones(len(values), dtype=torch.int64))


def net() -> Net:
    torch.manual_seed(0)
    return Net()


def train(sharding_type: str) -> dict[str, list]:
    """One SGD step on this process's share; the tables afterwards."""
    world = join_world()
    allow_uneven_batches()
    model = net()
    for parameter in model.parameters():
        parameter._optimizer_classes, parameter._optimizer_kwargs = [torch.optim.SGD], [{"lr": 0.1}]
    plan = create_plan(
        model, 2, 2, "cpu", batch_size=4, ddr_bytes=1 << 30,
        constraints={name: TableConstraints((sharding_type,), ("fused",), "the test") for name in ("a", "b")},
    )  # fmt: skip
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    dmp = DistributedModelParallel(
        model, plan=plan, sharders=create_sharders(), init_data_parallel=False,
        env=ShardingEnv.from_process_group(torch.distributed.group.WORLD),
    )  # fmt: skip
    dmp(ids_of(*SHARES[world.rank])).backward()
    found = {}
    for name, tensor in dmp.state_dict().items():
        whole = torch.zeros_like(before[name]) if world.is_main else None
        tensor.gather(dst=0, out=whole)
        found[name] = None if whole is None else whole.tolist()
    return found


def scenario() -> dict[str, dict]:
    return {kind: train(kind) for kind in ("row_wise", "table_wise", "column_wise")}


def test_a_step_on_batches_of_different_sizes_is_that_of_all_rows_together():
    found = run_ranks(__file__, "scenario", 2)[0]
    expected = net()
    optimizer = torch.optim.SGD(expected.parameters(), lr=0.1)
    (expected(ids_of(0, 7)) / 2).backward()  # torchrec takes the mean over the processes
    optimizer.step()
    for kind, tables in found.items():
        for name, parameter in expected.named_parameters():
            torch.testing.assert_close(torch.tensor(tables[name]), parameter.detach(), msg=f"{kind} {name}")
    assert len(found) == 3
