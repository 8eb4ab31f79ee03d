"""What training, evaluation and prediction have in common: seed, device, features, model."""

import logging
import os
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tzrec_core.config import used_plugins
from tzrec_core.data.batch import Batch
from tzrec_core.errors import ConfigError
from tzrec_core.features import BaseFeature, create_features
from tzrec_core.models import BaseModel, create_model

_log = logging.getLogger(__name__)

PIPELINE_CONFIG = "pipeline.config"


@dataclass
class Setup:
    """A config brought to life.

    Attributes:
        features: all of its features.
        model: on `device`, initialised, without losses and metrics.
        device: the first GPU, or the CPU.
    """

    features: list[BaseFeature]
    model: BaseModel
    device: torch.device


def build(config: Any) -> Setup:
    """Create the features and the model of a config.

    Raises:
        ConfigError: the config asks for something that does not exist or fit.
        PluginError: a plugin that the config uses does not work.
    """
    features = create_features(config.feature_configs, config.data_config)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    train_config = config.train_config
    torch.backends.cuda.matmul.allow_tf32 = train_config.cuda_matmul_allow_tf32
    torch.backends.cudnn.allow_tf32 = train_config.cudnn_allow_tf32
    labels = list(config.data_config.label_fields)
    if not labels:
        raise ConfigError("data_config.label_fields is empty; name the label column")
    model = create_model(
        config.model_config, features, labels, list(config.data_config.sample_weight_fields), device=device
    )
    return Setup(features, model, device)


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


def seed_step(seed: int, step: int, device: torch.device) -> None:
    """Make what a step draws, such as dropout, depend on nothing but seed and step: a continued run draws the same."""
    mixed = (seed * 1_000_003 + step) % 2**63
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
        (folder / PIPELINE_CONFIG).write_text(str(config), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"model_dir = {str(model_dir)!r} cannot be written to: {error.strerror}") from None
