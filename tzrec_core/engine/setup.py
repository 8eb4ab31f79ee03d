"""What training, evaluation and prediction have in common: seed, device, features, model."""

import ctypes
import logging
import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tzrec_core.config import used_plugins
from tzrec_core.data.batch import Batch
from tzrec_core.engine.checkpoint import load_model
from tzrec_core.engine.checkpoint_files import Ranks
from tzrec_core.engine.constraints import unshardable_tables
from tzrec_core.engine.sharding import shard
from tzrec_core.engine.world import World
from tzrec_core.errors import ConfigError
from tzrec_core.features import BaseFeature, create_features
from tzrec_core.models import BaseModel, PredictWrapper, TrainWrapper, create_model
from tzrec_core.modules.embedding_tables import tables_on_meta

_log = logging.getLogger(__name__)

PIPELINE_CONFIG = "pipeline.config"
_CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
# glibc's malloc.h: below the one, memory comes from the heap; above the other, free memory at its end is given back
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_MMAP_THRESHOLD = 32 * 2**20
# Odd, so that every rank has a seed of its own in the 32 bits that torch's CPU generator looks at, and large, so that
# it is not the seed of another rank some steps later.
_BETWEEN_RANKS = 0x9E3779B1


@dataclass
class Setup:
    """A config brought to life.

    Attributes:
        features: all of its features.
        model: on the CPU, without losses and metrics; all but its tables is initialised.
    """

    features: list[BaseFeature]
    model: BaseModel


def build(config: Any, world: World | None = None) -> Setup:
    """Create the features and the model of a config, for `shard`: its embedding tables have no storage yet.

    Args:
        config: the checked config.
        world: the processes that build together, each of which must call this: what one meets is raised on all, and
            rank 0 tells it. None = this one alone.

    Raises:
        ConfigError: the config asks for something that does not exist or fit.
        PluginError: a plugin that the config uses does not work.
    """
    made: list[Setup] = []
    Ranks.of(world).run(lambda: made.append(_build(config)))
    return made[0]


def _build(config: Any) -> Setup:
    features = create_features(config.feature_configs, config.data_config)
    labels = list(config.data_config.label_fields)
    if not labels:
        raise ConfigError("data_config.label_fields is empty; name the label column")
    with tables_on_meta():
        model = create_model(
            config.model_config,
            features,
            labels,
            list(config.data_config.sample_weight_fields),
            sampler_type=config.data_config.WhichOneof("sampler"),
        )
    return Setup(features, model)


def load_sharded(wrapper: TrainWrapper | PredictWrapper, checkpoint: Path, config: Any, world: World) -> nn.Module:
    """Shard a model that will not be trained over the ranks, and fill it from a checkpoint.

    One process keeps its tables whole when they are in host memory, or of a width that fused kernels cannot take.
    Sharded ones have no optimizer states.

    Raises:
        CheckpointError: the checkpoint is damaged or does not fit the config.
    """
    is_fused = world.size > 1 or (world.device.type != "cpu" and not unshardable_tables(wrapper))
    model = shard(wrapper, config, world, is_fused=is_fused)
    load_model(checkpoint, model, world)
    return model


@contextmanager
def torch_settings(train_config: Any, device: torch.device) -> Iterator[None]:
    """Within the block torch rounds and chooses algorithms as a config says; after it all is as the caller had it.

    That is: the TF32 settings, `deterministic`, and the random generators of Python, NumPy, torch and `device`, which
    the block may seed.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before_tf32 = matmul.allow_tf32, cudnn.allow_tf32
    before_deterministic = torch.are_deterministic_algorithms_enabled()
    before_warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    before_workspace = os.environ.get(_CUBLAS_WORKSPACE)
    before_python, before_numpy = random.getstate(), np.random.get_state()
    try:
        matmul.allow_tf32 = train_config.cuda_matmul_allow_tf32
        cudnn.allow_tf32 = train_config.cudnn_allow_tf32
        if train_config.deterministic:
            os.environ.setdefault(_CUBLAS_WORKSPACE, ":4096:8")  # cuBLAS reads it at its first use
            torch.use_deterministic_algorithms(True)
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before_tf32
        torch.use_deterministic_algorithms(before_deterministic, warn_only=before_warn_only)
        if before_workspace is None:
            os.environ.pop(_CUBLAS_WORKSPACE, None)
        random.setstate(before_python)
        np.random.set_state(before_numpy)


def keep_freed_memory() -> None:
    """Let the process reuse the memory of a step in the next one, where it would be given back and fetched again.

    Without it glibc asks the system for each large tensor anew, page by page. Other C libraries are left alone; it
    holds until the process ends.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def num_rows(batch: Batch) -> int:
    """How many rows a batch with labels has."""
    return len(next(iter(batch.labels.values())))


def seed_everything(seed: int | None) -> int:
    """Seed Python, NumPy and torch; draws a seed when none is given. Returns the seed."""
    if seed is None:
        seed = int.from_bytes(os.urandom(4), "little")
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    return seed


def seed_step(seed: int, step: int, device: torch.device, rank: int) -> None:
    """Make what a step draws, such as dropout, depend on seed, step and rank alone: a continued run draws the same.

    Args:
        seed: of the run.
        step: steps taken before this one.
        device: where the step runs; its generator and the CPU's are seeded.
        rank: of this process; each draws its own.
    """
    mixed = (seed * 1_000_003 + step + rank * _BETWEEN_RANKS) % 2**63
    torch.default_generator.manual_seed(mixed)
    if device.type == "cuda":
        torch.cuda.manual_seed(mixed)


def compare_plugins(written: dict[str, str], config: Any) -> None:
    """Say which of the config's plugins have another version now than when a checkpoint was written."""
    for name, version in used_plugins(config).items():
        if name in written and written[name] != version:
            _log.warning("the checkpoint was written with %s %s; now it is %s", name, written[name], version)


def save_pipeline_config(config: Any, model_dir: str | Path) -> None:
    """Write the config, as used, beside the checkpoints; raises ConfigError when it cannot be written there."""
    folder = Path(model_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        scratch = folder / f".{PIPELINE_CONFIG}.writing"
        scratch.write_text(str(config), encoding="utf-8")
        os.replace(scratch, folder / PIPELINE_CONFIG)
    except OSError as error:
        raise ConfigError(f"model_dir = {str(model_dir)!r} cannot be written to: {error.strerror}") from None
