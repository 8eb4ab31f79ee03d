"""Runs a step again at which training stopped."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tzrec_core.data.batch import Batch
from tzrec_core.data.parser import DataParser
from tzrec_core.engine.checkpoint import find_checkpoint
from tzrec_core.engine.diagnose import Failure, Finding, config_hash, find_failure, first_bad, read_batch
from tzrec_core.engine.setup import build, load_sharded, seed_step, torch_settings
from tzrec_core.engine.world import in_world
from tzrec_core.errors import ConfigError
from tzrec_core.models import TrainWrapper


@dataclass(frozen=True)
class InputRange:
    """What a feature, label or sample weight of a batch holds.

    Attributes:
        name: as in the config; `<feature>.weights` for the weights of ids.
        num_values: numbers or ids.
        minimum: of the finite ones; None without any.
        maximum: likewise.
        mean: likewise.
        num_nan: values that are NaN.
        num_inf: values that are infinite.
    """

    name: str
    num_values: int
    minimum: float | None
    maximum: float | None
    mean: float | None
    num_nan: int
    num_inf: int


@dataclass(frozen=True)
class ReplayResult:
    """What a step did when it was run again.

    Attributes:
        failure: what was kept of it.
        finding: the first tensor that is not finite now; None = there is none.
        inputs: features, labels and sample weights of the batch.
        is_config_changed: the config is not that of the run.
    """

    failure: Failure
    finding: Finding | None
    inputs: list[InputRange]
    is_config_changed: bool


def replay(config: Any, failure: str | Path | None = None) -> ReplayResult:
    """Run a failed step again in one process, whatever number the run had: its batch, parameters and random draws.

    Args:
        config: the checked config.
        failure: the folder `failed-<step>`; None = the latest of the config's model_dir.

    Raises:
        ConfigError: there is no failed step, or there are several processes.
        DataError: what was kept cannot be read.
        CheckpointError: the parameters cannot be read, or do not fit the config.
    """
    with in_world() as world, torch_settings(config.train_config, world.device):
        if world.size > 1:
            raise ConfigError(f"{world.size} processes were started, but a step is replayed by one")
        failed = find_failure(config.model_dir, failure)
        setup = build(config)
        wrapper = TrainWrapper(setup.model, world.device, config.train_config.mixed_precision)
        model = load_sharded(wrapper, find_checkpoint(failed.folder), config, world)
        model.train()
        data_config = config.data_config
        parser = DataParser(
            setup.features, labels=data_config.label_fields, sample_weights=data_config.sample_weight_fields
        )
        batch = read_batch(failed, parser)
        seed_step(failed.seed, failed.step - 1, world.device, failed.rank)
        finding = first_bad(model, batch.to(world.device))
        is_changed = failed.config_hash != config_hash(str(config))
        return ReplayResult(failed, finding, _input_ranges(batch), is_changed)


def _input_ranges(batch: Batch) -> list[InputRange]:
    flat = batch.to_dict()
    return [
        _range(name.removesuffix(".values"), tensor) for name, tensor in flat.items() if not name.endswith("lengths")
    ]


def _range(name: str, tensor: torch.Tensor) -> InputRange:
    finite = tensor[tensor.isfinite()].double()
    ends = (finite.min().item(), finite.max().item(), finite.mean().item()) if len(finite) else (None, None, None)
    return InputRange(name, tensor.numel(), *ends, int(tensor.isnan().sum()), int(tensor.isinf().sum()))
