"""A sharding plan for people: which rank holds what, and how evenly."""

import math
from collections.abc import Iterator, Mapping, Sequence
from io import StringIO
from typing import Any, NamedTuple

import torchrec.optim
from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn
from torchrec.distributed.types import ParameterSharding, ShardingPlan
from torchrec.modules.embedding_configs import BaseEmbeddingConfig, EmbeddingConfig

from tzrec_core.engine.sharders import collections_of, tables_of

COLUMNS = ("table", "kind", "rows", "dim", "MiB", "sharding", "kernel", "ranks")  # of `row_cells`

_NUM_SHOWN = 40
_MIB = 2**20

# Optimizer state of a table, in elements per row of the table, for those that have one.
_STATE_SIZES = {
    torchrec.optim.Adagrad: lambda dim: dim,
    torchrec.optim.RowWiseAdagrad: lambda dim: 1,
    torchrec.optim.Adam: lambda dim: 2 * dim,
    torchrec.optim.LAMB: lambda dim: 2 * dim,
    torchrec.optim.PartialRowWiseAdam: lambda dim: dim + 1,
    torchrec.optim.PartialRowWiseLAMB: lambda dim: dim + 1,
}


def plan_rows(plan: ShardingPlan, model: nn.Module, world_size: int) -> list[dict[str, Any]]:
    """A plan as a table, largest embedding tables first.

    Args:
        plan: of `create_plan`.
        model: what was planned for, unsharded.
        world_size: number of processes.

    Returns:
        for each embedding table: `table`, `kind` (`pooled`, or `sequence` for those of sequence groups), `rows`,
        `dim`, `mib` (of the whole table, without optimizer state), `sharding`, `kernel`, `ranks` (those that hold a
        part of it, ascending).
    """
    rows = []
    for config, parameter, sharding in _planned(plan, model):
        rows.append(
            {
                "table": config.name,
                "kind": "sequence" if isinstance(config, EmbeddingConfig) else "pooled",
                "rows": config.num_embeddings,
                "dim": config.embedding_dim,
                "mib": table_bytes(config, parameter) / _MIB,
                "sharding": sharding.sharding_type,
                "kernel": sharding.compute_kernel,
                "ranks": sorted(set(sharding.ranks or range(world_size))),
            }
        )
    return sorted(rows, key=lambda row: (-row["mib"], row["table"], row["kind"]))


class RankBytes(NamedTuple):
    """What a process holds of tables and of their optimizers' state, in bytes.

    Attributes:
        device: in the memory of its device.
        host: in host memory beside a GPU, for the kernels fused_uvm and fused_uvm_caching.
    """

    device: int
    host: int


def rank_bytes(plan: ShardingPlan, model: nn.Module, world_size: int) -> list[RankBytes]:
    """How a plan uses memory, by rank; a cache of rows on a GPU is not counted.

    Args:
        plan: of `create_plan`.
        model: what was planned for, unsharded, with the optimizers of its tables attached.
        world_size: number of processes.
    """
    device, host = [0] * world_size, [0] * world_size
    for config, parameter, sharding in _planned(plan, model):
        whole = table_bytes(config, parameter) + state_bytes(config, parameter)
        assert sharding.sharding_spec is not None
        for shard in sharding.sharding_spec.shards:
            share = math.prod(shard.shard_sizes) / (config.num_embeddings * config.embedding_dim)
            (host if "uvm" in sharding.compute_kernel else device)[shard.placement.rank()] += round(whole * share)
    return [RankBytes(*both) for both in zip(device, host)]


def balance(per_rank: Sequence[RankBytes]) -> str:
    """How evenly memory is used: a line, and another when there are tables in host memory."""
    lines = [f"MiB per rank, with optimizer state: {_spread([used.device for used in per_rank])}"]
    if any(used.host for used in per_rank):
        lines.append(f"in host memory: {_spread([used.host for used in per_rank])}")
    return "\n".join(lines)


def _spread(sizes: Sequence[int]) -> str:
    mean = sum(sizes) / len(sizes)
    uneven = max(sizes) / mean if mean else 1.0
    return f"{_mib(min(sizes) / _MIB)} to {_mib(max(sizes) / _MIB)}; the largest is {uneven:.2f} times the mean"


def plan_text(plan: ShardingPlan, model: nn.Module, world_size: int) -> str:
    """A plan for the log of a run: the largest tables, and how evenly memory is used."""
    rows = plan_rows(plan, model, world_size)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column in COLUMNS:
        table.add_column(column, justify="right" if column in ("rows", "dim", "MiB") else "left", no_wrap=True)
    for row in rows[:_NUM_SHOWN]:
        table.add_row(*row_cells(row))
    console = Console(file=StringIO(), width=200, force_terminal=False)
    console.print(table)
    assert isinstance(console.file, StringIO)
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]
    if len(rows) > _NUM_SHOWN:
        lines.append(f"... and {len(rows) - _NUM_SHOWN} smaller ones; `tzrec plan` lists all")
    return "\n".join([*lines, balance(rank_bytes(plan, model, world_size))])


def row_cells(row: Mapping[str, Any]) -> list[str]:
    """A row of `plan_rows` for people."""
    return [
        row["table"],
        row["kind"],
        f"{row['rows']:,}",
        str(row["dim"]),
        _mib(row["mib"]),
        row["sharding"],
        row["kernel"],
        _ranges(row["ranks"]),
    ]


def _mib(size: float) -> str:
    return f"{size:,.1f}" if size >= 0.1 else f"{size:.2g}"


def _ranges(ranks: Sequence[int]) -> str:
    """`0-3, 6` for 0, 1, 2, 3, 6."""
    runs: list[list[int]] = []
    for rank in ranks:
        if runs and rank == runs[-1][-1] + 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _planned(
    plan: ShardingPlan, model: nn.Module
) -> Iterator[tuple[BaseEmbeddingConfig, nn.Parameter, ParameterSharding]]:
    for path, collection in collections_of(model).items():
        module_plan: Any = plan.get_plan_for_module(path)
        for config, parameter in tables_of(collection):
            yield config, parameter, module_plan[config.name]


def table_bytes(config: BaseEmbeddingConfig, parameter: nn.Parameter) -> int:
    """Memory of a table's rows, in bytes."""
    return config.num_embeddings * config.embedding_dim * parameter.element_size()


def state_bytes(config: BaseEmbeddingConfig, parameter: nn.Parameter) -> int:
    """Of the optimizer; in float32 whatever the table has."""
    (optimizer,) = getattr(parameter, "_optimizer_classes", (None,))
    size = _STATE_SIZES.get(optimizer)
    return config.num_embeddings * size(config.embedding_dim) * 4 if size else 0
