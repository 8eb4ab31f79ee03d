"""From a model on one process to its part on each of several."""

import logging
import os
from pathlib import Path
from typing import Any

import torch
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.types import ShardingPlan

from tzrec_core.engine.constraints import TableConstraints, read_constraints
from tzrec_core.engine.plan import create_plan, quiet_torchrec
from tzrec_core.engine.plan_table import plan_text
from tzrec_core.engine.sharders import create_sharders, materialise_tables
from tzrec_core.engine.uneven_batches import allow_uneven_batches
from tzrec_core.engine.world import World
from tzrec_core.models import PredictWrapper, TrainWrapper

_log = logging.getLogger(__name__)

_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def shard(
    wrapper: TrainWrapper | PredictWrapper, config: Any, world: World, *, is_fused: bool
) -> DistributedModelParallel:
    """Spread a model over the processes of the run; every rank must call it, with equal models.

    Parameters keep their values and names, whatever the plan. What a process does not hold any more is freed; the
    dense part is on the world's device afterwards and, in training, averages its gradients over the processes.

    Args:
        wrapper: holds the model, on the CPU or the world's device, with the optimizers of its tables attached if it is
            to train. Its tables, and no other parameters, may be on the meta device: then their first values are drawn
            here, piece by piece. An `init_fn` that looks at a table's shape sees that of a piece.
        config: for its train_config and data_config.
        world: the processes.
        is_fused: shard the tables, with optimizers inside the backward pass; without an optimizer of their own they do
            not change. False = every process has all of them, as they are.

    Raises:
        ConfigError: see `read_constraints` and `create_plan`.
    """
    allow_uneven_batches()
    has_dense = _has_trainable_dense(wrapper)
    plan = world.from_main(lambda: _plan(wrapper, config, world)) if is_fused else ShardingPlan({})
    if not is_fused and isinstance(wrapper, TrainWrapper) and (limited := _constraints(wrapper, config)):
        _log.warning(
            "embedding_constraints of %s have no effect: with this sparse_optimizer one process keeps its tables whole",
            ", ".join(limited),
        )
    if not is_fused:
        materialise_tables(wrapper)
    if is_fused and world.size > 1 and world.is_main:
        _log.info("%s", plan_text(plan, wrapper, world.size))
    with quiet_torchrec():
        model = DistributedModelParallel(
            wrapper,
            device=world.device,
            plan=plan,
            sharders=create_sharders() if is_fused else [],
            init_data_parallel=False,
        )
        model.to(world.device)
        if is_fused and world.size > 1 and isinstance(wrapper, TrainWrapper) and has_dense:
            model.init_data_parallel()
    return model


def _has_trainable_dense(wrapper: TrainWrapper | PredictWrapper) -> bool:
    """Without such a parameter DistributedDataParallel refuses to be made."""
    trainable, frozen = wrapper.model.sparse_parameters()
    tables = {id(parameter) for parameter in (*trainable, *frozen)}
    return any(p.requires_grad and id(p) not in tables for p in wrapper.parameters())


def _constraints(wrapper: TrainWrapper | PredictWrapper, config: Any) -> dict[str, TableConstraints]:
    model = wrapper.model
    return read_constraints(wrapper, model.get_features_in_feature_groups(model._feature_groups), config.train_config)


def _plan(wrapper: TrainWrapper | PredictWrapper, config: Any, world: World) -> ShardingPlan:
    hbm = torch.cuda.get_device_properties(world.device).total_memory if world.device.type == "cuda" else None
    return create_plan(
        wrapper,
        world.size,
        world.local_size,
        world.device.type,
        constraints=_constraints(wrapper, config),
        batch_size=config.data_config.batch_size,
        hbm_bytes=hbm,
        ddr_bytes=host_memory(),
    )


def host_memory() -> int:
    """Bytes of memory of this machine, or of the container that this process runs in."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in map(Path, _CGROUP_LIMITS):
        if limit.exists() and (text := limit.read_text().strip()).isdigit():
            total = min(total, int(text))
    return total
