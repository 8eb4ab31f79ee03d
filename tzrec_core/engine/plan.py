"""Which process holds which part of which embedding table."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import nn
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.distributed.planner.proposers import GreedyProposer, UniformProposer
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import PlannerError, ShardingOption
from torchrec.distributed.types import ModuleSharder, ShardingPlan

from tzrec_core.config.validate import COMPUTE_KERNELS, SHARDING_TYPES
from tzrec_core.engine.constraints import TableConstraints, planner_constraints
from tzrec_core.engine.plan_table import state_bytes, table_bytes
from tzrec_core.engine.sharders import all_tables, create_sharders
from tzrec_core.errors import ConfigError

_MARGIN = 0.15  # of a process's memory, for activations and what else is not counted
_PER_DENSE_PARAMETER = 6  # copies: values, gradients, optimizer state, buckets of DistributedDataParallel
_GIB = 2**30


def create_plan(
    model: nn.Module,
    world_size: int,
    local_world_size: int,
    device_type: str,
    *,
    constraints: Mapping[str, TableConstraints],
    batch_size: int,
    hbm_bytes: int | None = None,
    ddr_bytes: int | None = None,
) -> ShardingPlan:
    """Spread a model's tables over processes, as torchrec's planner thinks is fastest; equal inputs give equal plans.

    Args:
        model: holds the tables, unsharded, on any device, `meta` too, with their optimizers attached.
        world_size: number of processes.
        local_world_size: processes per machine.
        device_type: `cpu` or `cuda`.
        constraints: by table; see `read_constraints`.
        batch_size: rows per process and step.
        hbm_bytes: memory of a GPU; `cuda` needs it.
        ddr_bytes: host memory per machine; without it nothing is kept there on `cuda`, and `cpu` needs it.

    Raises:
        ConfigError: memory does not hold the tables, a constraint asks for what cannot be done, or a table's width is
            no multiple of four.
    """
    sharders = create_sharders()
    limits = planner_constraints(model, world_size, local_world_size, device_type, constraints)
    memory = hbm_bytes if device_type == "cuda" else (ddr_bytes or 0) // local_world_size
    assert memory, f"the memory of {device_type} is not known"
    dense = _dense_bytes(model) * _PER_DENSE_PARAMETER
    available = max(0, int(memory * (1 - _MARGIN)) - dense)
    host = int((ddr_bytes or 0) / local_world_size * (1 - _MARGIN)) if device_type == "cuda" else available
    with quiet_torchrec():
        topology = Topology(
            world_size=world_size,
            compute_device=device_type,
            hbm_cap=available,
            ddr_cap=host,
            local_world_size=local_world_size,
        )
        enumerator = _Enumerator(topology, batch_size, constraints=limits)
        planner = EmbeddingShardingPlanner(
            topology=topology,
            batch_size=batch_size,
            constraints=limits,
            enumerator=enumerator,
            storage_reservation=FixedPercentageStorageReservation(0.0),
            # without torchrec's GridSearchProposer, which tries thousands of plans for a handful of tables
            proposer=[GreedyProposer(), GreedyProposer(use_depth=False), UniformProposer()],
            stats=[],
            debug=False,
        )
        try:
            return planner.plan(model, sharders)
        except PlannerError:
            options = enumerator.enumerate(model, sharders)
    room = (
        f"{world_size} {'process has' if world_size == 1 else 'processes have'} {_gib(available)} GiB each for tables "
        f"({_gib(memory)} GiB less {_MARGIN:.0%} and {_gib(dense)} GiB for the dense part)"
    )
    raise ConfigError(_does_not_fit(model, options, world_size, available, host, device_type, room))


class _Enumerator(EmbeddingEnumerator):
    """torchrec's goes through sets of names, whose order differs from one process to the next."""

    def enumerate(self, module: nn.Module, sharders: list[ModuleSharder[nn.Module]]) -> list[ShardingOption]:
        """Every way to shard every table, in a fixed order."""
        options = super().enumerate(module, sharders)
        places = {path: place for place, path in enumerate(dict.fromkeys(option.path for option in options))}
        return sorted(
            options,
            key=lambda o: (
                places[o.path],
                o.name,
                SHARDING_TYPES.index(o.sharding_type),
                COMPUTE_KERNELS.index(o.compute_kernel),
            ),
        )


@contextmanager
def quiet_torchrec() -> Iterator[None]:
    """What torchrec warns of while it plans and shards is its own affair, or said by us where it matters."""
    loggers = [logging.getLogger(f"torchrec.distributed.{name}") for name in ("planner", "comm")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before):
            logger.setLevel(level)


def _dense_bytes(model: nn.Module) -> int:
    tables = {id(parameter) for _, parameter in all_tables(model)}
    return sum(p.numel() * p.element_size() for p in model.parameters() if id(p) not in tables)


def _does_not_fit(
    model: nn.Module,
    options: list[ShardingOption],
    world_size: int,
    available: int,
    host: int,
    device_type: str,
    room: str,
) -> str:
    """Why there is no plan, in the words of somebody who can change that."""
    sizes: dict[str, int] = {}  # of one name there can be several
    for config, parameter in all_tables(model):
        size = table_bytes(config, parameter) + state_bytes(config, parameter)
        sizes[config.name] = sizes.get(config.name, 0) + size
    advice = _advice(device_type, bool(host))
    total = sum(sizes.values())
    if total <= world_size * (available + (host if device_type == "cuda" else 0)):
        by_table: dict[str, list[ShardingOption]] = {}
        for option in options:
            by_table.setdefault(option.name, []).append(option)
        for name in sorted(by_table, key=lambda name: -sizes[name]):
            if not any(_fits(option, available, host, device_type) for option in by_table[name]):
                ways = ", ".join(dict.fromkeys(option.sharding_type for option in by_table[name]))
                return (
                    f"a piece of the embedding table {name!r}, split {ways}, does not fit: the table has "
                    f"{_gib(sizes[name])} GiB with its optimizer's state; {room}. {advice}"
                )
    largest = sorted(sizes, key=lambda name: -sizes[name])[:3]
    shapes = {config.name: f"{config.num_embeddings:,} x {config.embedding_dim}" for config, _ in all_tables(model)}
    listed = "; ".join(f"{name}: {shapes[name]}, {_gib(sizes[name])} GiB" for name in largest)
    return (
        f"the embedding tables do not fit: with their optimizers' state they need {_gib(total)} GiB, and {room}; ids "
        f"and vectors of a batch need some, too. The largest are {listed}. {advice}"
    )


def _advice(device_type: str, has_host: bool) -> str:
    text = (
        "Use more processes, make tables smaller (hash_bucket_size, num_buckets, embedding_dim) or loosen "
        "embedding_constraints"
    )
    if device_type == "cuda" and not has_host:
        text += ", or let tables live in host memory (--ddr of `tzrec plan`)"
    return text


def _fits(option: ShardingOption, available: int, host: int, device_type: str) -> bool:
    if device_type == "cpu":
        return all(shard.storage.ddr <= available for shard in option.shards if shard.storage is not None)
    return all(
        shard.storage.hbm <= available and shard.storage.ddr <= host
        for shard in option.shards
        if shard.storage is not None
    )


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / _GIB:,.1f}" if num_bytes >= _GIB / 10 else f"{num_bytes / _GIB:.2g}"
