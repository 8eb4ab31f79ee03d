"""The sharding plan of a run on machines that are not here."""

import re
from dataclasses import dataclass
from typing import Any

from tzrec_core.engine.constraints import read_constraints
from tzrec_core.engine.plan import create_plan
from tzrec_core.engine.plan_table import RankBytes, plan_rows, rank_bytes
from tzrec_core.engine.sparse_optim import check_processes, fuse_sparse_optimizer, is_fused
from tzrec_core.errors import ConfigError, did_you_mean
from tzrec_core.features import create_features
from tzrec_core.models import create_model

_DEVICES = ("cuda", "cpu")
_GPUS_PER_MACHINE = 8
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([KMGTP])(i?)B?|B)?", re.IGNORECASE)


@dataclass
class ClusterPlan:
    """Which process of a cluster would hold which tables.

    Attributes:
        world_size: number of processes.
        local_world_size: processes per machine.
        device: `cuda` or `cpu`.
        tables: a row per embedding table, see `plan_rows`.
        rank_bytes: what each process holds, by rank.
    """

    world_size: int
    local_world_size: int
    device: str
    tables: list[dict[str, Any]]
    rank_bytes: list[RankBytes]


def plan_cluster(
    config: Any,
    world_size: int,
    *,
    local_world_size: int | None = None,
    device: str = "cuda",
    hbm: str | int | None = None,
    ddr: str | int | None = None,
    batch_size: int | None = None,
) -> ClusterPlan:
    """Plan a training run without its machines: needs no GPU, no process group and no memory for the tables.

    Args:
        config: the checked config.
        world_size: number of processes.
        local_world_size: processes per machine; None = 8, or all if there are fewer.
        device: `cuda` or `cpu`.
        hbm: memory of a GPU, in bytes or such as "80GB"; `cuda` needs it.
        ddr: host memory of a machine, likewise; `cpu` needs it, and on `cuda` tables stay in GPU memory without it.
        batch_size: rows per process and step; None = the config's.

    Raises:
        ConfigError: the tables do not fit, or cannot be split as the config asks; an argument makes no sense.
        PluginError: a plugin that the model needs does not work.
    """
    if device not in _DEVICES:
        raise ConfigError(f"--device {device!r} is not one of {', '.join(_DEVICES)}.{did_you_mean(device, _DEVICES)}")
    local_world_size = local_world_size or min(_GPUS_PER_MACHINE, world_size)
    if world_size % local_world_size:
        raise ConfigError(
            f"--world-size {world_size} is not a multiple of --local-world-size {local_world_size}, the processes of a "
            "machine"
        )
    hbm_bytes, ddr_bytes = _bytes("--hbm", hbm), _bytes("--ddr", ddr)
    if device == "cuda" and not hbm_bytes:
        raise ConfigError("--hbm is missing: say how much memory a GPU has, such as --hbm 80GB")
    if device == "cpu" and not ddr_bytes:
        raise ConfigError("--ddr is missing: say how much memory a machine has, such as --ddr 512GB")
    if device == "cpu" and hbm_bytes:
        raise ConfigError("--hbm is the memory of GPUs; with --device cpu say --ddr only")
    train_config = config.train_config
    check_processes(train_config, device, world_size)
    if not is_fused(train_config, device):
        raise ConfigError(
            f"train_config.sparse_optimizer.{train_config.sparse_optimizer.WhichOneof('optimizer')} on one {device} "
            "process keeps all tables whole: there is nothing to plan"
        )
    features = create_features(config.feature_configs, config.data_config)
    model = create_model(
        config.model_config,
        features,
        list(config.data_config.label_fields),
        list(config.data_config.sample_weight_fields),
        device="meta",
    )
    fuse_sparse_optimizer(train_config, model)
    plan = create_plan(
        model,
        world_size,
        local_world_size,
        device,
        constraints=read_constraints(model, features, train_config),
        batch_size=batch_size or config.data_config.batch_size,
        hbm_bytes=hbm_bytes,
        ddr_bytes=ddr_bytes,
    )
    return ClusterPlan(
        world_size,
        local_world_size,
        device,
        plan_rows(plan, model, world_size),
        rank_bytes(plan, model, world_size),
    )


def _bytes(option: str, size: str | int | None) -> int | None:
    """`80GB` is 80 x 10^9, `80GiB` 80 x 2^30; a number without a unit is bytes."""
    if size is None or isinstance(size, int):
        return size
    match = _SIZE.fullmatch(size.strip())
    if match is None:
        raise ConfigError(f"{option} {size!r} is not a size; write one such as 80GB, 80GiB or 512MB")
    number, unit, binary = match.groups()
    power = "KMGTP".index(unit.upper()) + 1 if unit else 0
    return int(float(number) * (1024 if binary else 1000) ** power)
