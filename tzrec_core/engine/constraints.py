"""What a config says about how tables may be split, and what can be done."""

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torchrec.distributed.planner import ParameterConstraints
from torchrec.modules.embedding_configs import BaseEmbeddingConfig

from tzrec_core.config.validate import SHARDING_TYPES
from tzrec_core.engine.sharders import (
    all_tables,
    collections_of,
    possible_compute_kernels,
    possible_sharding_types,
    tables_of,
)
from tzrec_core.errors import ConfigError
from tzrec_core.features import BaseFeature

_log = logging.getLogger(__name__)

_WHOLE_DIM = 256  # tables that are narrower than this are not split by columns unless a user says so
_DIM_STEP = 4  # FBGEMM wants the widths of tables in multiples of this


@dataclass(frozen=True)
class TableConstraints:
    """What the planner may do with a table.

    Attributes:
        sharding_types: ways to split it; empty = any.
        compute_kernels: kernels; empty = any.
        origin: where the config says so.
    """

    sharding_types: tuple[str, ...]
    compute_kernels: tuple[str, ...]
    origin: str


def read_constraints(
    model: nn.Module, features: Iterable[BaseFeature], train_config: Any
) -> dict[str, TableConstraints]:
    """The constraints of a config, by table: its features' own, else the global ones.

    Args:
        model: holds the tables, unsharded.
        features: those of the model.
        train_config: for its `global_embedding_constraints`.

    Raises:
        ConfigError: features that share a table differ.
    """
    problems: list[str] = []
    known = {feature.name: feature for feature in features}
    own: dict[str, tuple[BaseFeature, TableConstraints]] = {}
    for config, _ in all_tables(model):
        for feature in (known[name] for name in config.feature_names):
            if feature.embedding_constraints is None:
                continue
            constraints = _constraints(feature.embedding_constraints, feature.at("embedding_constraints"))
            first, before = own.setdefault(config.name, (feature, constraints))
            if (set(before.sharding_types), set(before.compute_kernels)) != (
                set(constraints.sharding_types),
                set(constraints.compute_kernels),
            ):
                problems.append(
                    f"features {first.name!r} and {feature.name!r} share the embedding table {config.name!r} but "
                    "differ in their embedding_constraints. Make them equal, or write them at one of the two."
                )
    found = {table: constraints for table, (_, constraints) in own.items()}
    if train_config.HasField("global_embedding_constraints"):
        origin = "train_config.global_embedding_constraints"
        others = _constraints(train_config.global_embedding_constraints, origin)
        found = {**{config.name: others for config, _ in all_tables(model)}, **found}
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return found


def _constraints(message: Any, origin: str) -> TableConstraints:
    return TableConstraints(tuple(message.sharding_types), tuple(message.compute_kernels), origin)


def unshardable_tables(model: nn.Module) -> list[str]:
    """The tables, with their widths, that fused kernels cannot take: FBGEMM wants multiples of four."""
    return [
        f"{config.name} ({config.embedding_dim})" for config, _ in all_tables(model) if config.embedding_dim % _DIM_STEP
    ]


def planner_constraints(
    model: nn.Module,
    world_size: int,
    local_world_size: int,
    device_type: str,
    constraints: Mapping[str, TableConstraints],
) -> dict[str, ParameterConstraints]:
    """What torchrec's planner is told about each table.

    It knows tables by their names only, so those of one name in several collections get the same; its sharders leave
    out what a collection cannot do. A table with too few rows to give every process some stays whole: on CPUs FBGEMM
    cannot look up in no rows at all.
    """
    problems = []
    if narrow := unshardable_tables(model):
        problems.append(
            f"the embedding_dim of these tables is not a multiple of {_DIM_STEP}, which the fused kernels of "
            f"{'GPUs and ' if device_type == 'cuda' else ''}several processes need: {', '.join(narrow)}. Change it"
            + ("" if device_type == "cuda" else ", or run in one process")
        )
    types: dict[str, list[tuple[str, ...]]] = {}
    kernels: dict[str, tuple[str, ...]] = {}
    configs: dict[str, BaseEmbeddingConfig] = {}
    short: list[str] = []
    for collection in collections_of(model).values():
        for config, _ in tables_of(collection):
            possible = possible_sharding_types(collection, config)
            wanted = constraints.get(config.name, TableConstraints((), (), ""))
            allowed = tuple(t for t in possible if t in wanted.sharding_types)
            if not wanted.sharding_types:
                allowed = _usual_types(possible, config.embedding_dim, world_size, local_world_size)
            elif not allowed:
                problems.append(_impossible(wanted, "sharding_types", config.name, possible, device_type))
            parts = {"row_wise": world_size, "table_row_wise": local_world_size, "grid_shard": local_world_size}
            filled = tuple(t for t in allowed if _is_enough(config.num_embeddings, parts.get(t, 1)))
            if allowed and not filled:
                short.append(f"{config.name} ({config.num_embeddings})")
            types.setdefault(config.name, []).append(filled or ("table_wise",))
            possible = possible_compute_kernels(device_type)
            kernels[config.name] = tuple(k for k in possible if k in (wanted.compute_kernels or possible))
            if not kernels[config.name]:
                problems.append(_impossible(wanted, "compute_kernels", config.name, possible, device_type))
            configs.setdefault(config.name, config)
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    if short:
        _log.warning(
            "these embedding tables have too few rows to be split by rows and stay whole: %s", ", ".join(short)
        )
    return {
        name: ParameterConstraints(
            sharding_types=_common(types[name]),
            compute_kernels=list(kernels[name]),
            min_partition=_min_partition(config.embedding_dim, world_size),
            pooling_factors=[1.0] * len(config.feature_names),
        )
        for name, config in configs.items()
    }


def _usual_types(possible: tuple[str, ...], dim: int, world_size: int, local_world_size: int) -> tuple[str, ...]:
    """What is worth a thought for a table without constraints."""
    if world_size == 1:
        return ("table_wise",)
    without = {"grid_shard"}
    if dim < _WHOLE_DIM:
        without |= {"column_wise", "table_column_wise"}
    if local_world_size == world_size:
        without.add("table_row_wise")  # on one machine: the same as row_wise
    return tuple(t for t in possible if t not in without)


def _is_enough(num_rows: int, num_parts: int) -> bool:
    """Whether each of the parts gets a row when all but the last have equally many."""
    return math.ceil(num_rows / num_parts) * (num_parts - 1) < num_rows


def _common(types: list[tuple[str, ...]]) -> list[str]:
    """What tables of one name can all do, or, if that is nothing, what any can."""
    common = [t for t in types[0] if all(t in other for other in types)]
    return common or [t for t in SHARDING_TYPES if any(t in other for other in types) and t != "grid_shard"]


def _min_partition(dim: int, world_size: int) -> int | None:
    """The narrowest piece of a table that is split by columns: a piece per process where it is narrow."""
    return None if dim >= _WHOLE_DIM else math.ceil(dim / world_size)


def _impossible(wanted: TableConstraints, field: str, table: str, possible: Sequence[str], device_type: str) -> str:
    asked = ", ".join(getattr(wanted, field))
    return (
        f"{wanted.origin}.{field} = {asked} cannot be done for the embedding table {table!r} on {device_type}. "
        f"Possible there: {', '.join(possible)}"
    )
