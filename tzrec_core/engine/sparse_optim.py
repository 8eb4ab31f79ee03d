"""Optimizers of the embedding tables: inside the backward pass (fused, by FBGEMM) or after it (lazy, ours)."""

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torchrec.optim
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    SplitTableBatchedEmbeddingBagsCodegen,
    WeightDecayMode,
)
from torch import Tensor, nn

from tzrec_core.config import config_to_kwargs
from tzrec_core.engine.lazy_optim import RULES, LazyOptimizer
from tzrec_core.errors import ConfigError
from tzrec_core.models import BaseModel

_log = logging.getLogger(__name__)

# FBGEMM has no Adadelta and no RMSprop, and torchrec cannot read the state of its LARS.
_FUSED = {
    "sgd_optimizer": torchrec.optim.SGD,
    "adagrad_optimizer": torchrec.optim.Adagrad,
    "adam_optimizer": torchrec.optim.Adam,
    "lamb_optimizer": torchrec.optim.LAMB,
    "partial_rowwise_lamb_optimizer": torchrec.optim.PartialRowWiseLAMB,
    "partial_rowwise_adam_optimizer": torchrec.optim.PartialRowWiseAdam,
    "rowwise_adagrad_optimizer": torchrec.optim.RowWiseAdagrad,
}
_FUSED_ON_CPU = ("sgd_optimizer", "adagrad_optimizer", "rowwise_adagrad_optimizer")
_EPS = 1e-8  # as in lazy_optim: the messages of fused optimizers have none
# A gradient clamped to zero: a frozen table does not move, whatever rate a schedule sets.
_FROZEN = {"lr": 0.0, "gradient_clipping": True, "max_gradient": 0.0}


def is_fused(train_config: Any, device_type: str) -> bool:
    """Whether the tables are updated within the backward pass; otherwise by a `LazyOptimizer`, on one process.

    Args:
        train_config: the TrainConfig.
        device_type: `cpu` or `cuda`.

    Raises:
        ConfigError: no sparse optimizer is set.
    """
    name, settings = _chosen(train_config)
    if device_type == "cpu":
        return name in _FUSED_ON_CPU and not _decay_mode(settings)
    return name in _FUSED


def _decay_mode(settings: dict[str, Any]) -> str:
    """`L2` or `DECOUPLE`, or empty when there is no decay; FBGEMM's CPU kernels ignore both."""
    mode = settings.get("weight_decay_mode", "NONE")
    return mode if settings.get("weight_decay") and mode != "NONE" else ""


def check_processes(train_config: Any, device_type: str, world_size: int) -> None:
    """Refuse more than one process for an optimizer that needs the whole tables.

    Args:
        train_config: the TrainConfig.
        device_type: `cpu` or `cuda`.
        world_size: number of processes.

    Raises:
        ConfigError: the sparse optimizer is not fused on this device and there are several processes.
    """
    if world_size == 1 or is_fused(train_config, device_type):
        return
    name, settings = _chosen(train_config)
    mode = _decay_mode(settings)
    with_decay = f" with weight_decay_mode {mode}" if mode else ""
    if device_type == "cpu":
        use = "sgd_optimizer, adagrad_optimizer or rowwise_adagrad_optimizer without weight_decay"
    else:
        use = ", ".join(_FUSED)
    on_cuda = ", or train on CUDA devices" if device_type == "cpu" and name in _FUSED else ""
    raise ConfigError(
        f"train_config.sparse_optimizer.{name}{with_decay} runs on one process only, and this run has {world_size}. "
        f"Use {use}{on_cuda}, or start one process"
    )


def fuse_sparse_optimizer(train_config: Any, model: BaseModel) -> None:
    """Tell torchrec, before it shards a model, which optimizer its tables get; frozen ones get one that stands still.

    Args:
        train_config: the TrainConfig, for which `is_fused` holds.
        model: the model, whose tables may be on the meta device.

    Raises:
        ConfigError: no sparse optimizer is set.
    """
    name, settings = _chosen(train_config)
    _warn_of_idle(train_config)
    kwargs: dict[str, Any] = {"eps": _EPS}
    for key, value in settings.items():
        if key not in ("initial_accumulator_value", "weight_decay_mode", "weight_decay"):
            kwargs[key] = value
    if "weight_decay_mode" not in settings:
        kwargs["weight_decay"] = settings.get("weight_decay", 0.0)
    elif mode := _decay_mode(settings):
        kwargs.update(weight_decay=settings["weight_decay"], weight_decay_mode=WeightDecayMode[mode])
    trainable, frozen = model.sparse_parameters()
    for table in trainable:
        _fuse(table, _FUSED[name], kwargs)
    for table in frozen:
        _fuse(table, torchrec.optim.SGD, _FROZEN)


def _fuse(table: Any, optimizer_class: type[torch.optim.Optimizer], kwargs: dict[str, Any]) -> None:
    """What `_apply_optimizer_in_backward` leaves for torchrec, which also keeps each table alive for ever."""
    table._optimizer_classes = [optimizer_class]
    table._optimizer_kwargs = [dict(kwargs)]


def sparse_lr(train_config: Any) -> float:
    """The rate that the schedule of the tables starts from."""
    return float(_chosen(train_config)[1]["lr"])


def initial_accumulator(train_config: Any) -> float:
    """Where the sum of squared gradients starts, which fused kernels cannot be told."""
    _, settings = _chosen(train_config)
    return float(settings.get("initial_accumulator_value", 0.0))


def lazy_optimizer(train_config: Any, model: BaseModel) -> LazyOptimizer | None:
    """The optimizer of a model's unsharded tables; None when it has none to train.

    Makes their gradients sparse, so call it before the first backward pass.

    Raises:
        ConfigError: no sparse optimizer is set.
    """
    name, settings = _chosen(train_config)
    _warn_of_idle(train_config)
    max_gradient, is_clipping = settings.pop("max_gradient"), settings.pop("gradient_clipping")

    def clamp(gradient: Tensor) -> Tensor:
        return gradient.clamp(-max_gradient, max_gradient)

    tables, _ = model.sparse_parameters()
    for lookup in lookups_of(model, tables):
        lookup.sparse = True
        if is_clipping:  # before rows are summed, as FBGEMM does
            on_gradient(lookup, clamp)
    return LazyOptimizer(tables, name, **settings) if tables else None


def lookups_of(model: nn.Module, tables: Iterable[nn.Parameter]) -> list[nn.Embedding | nn.EmbeddingBag]:
    """The modules of a model that look up in these unsharded tables."""
    ids = {id(table) for table in tables}
    return [m for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag) and id(m.weight) in ids]


def fused_kernels(model: nn.Module) -> Iterator[SplitTableBatchedEmbeddingBagsCodegen]:
    """The FBGEMM modules of a sharded model, which `modules()` of torchrec's sharded collections hides."""
    for module in model.modules():
        for lookup in getattr(module, "_lookups", ()):
            for inner in lookup.modules():
                if isinstance(inner, SplitTableBatchedEmbeddingBagsCodegen):
                    yield inner


def on_gradient(lookup: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
    """Change the gradient of what a lookup puts out before its table, or its fused optimizer, gets it."""

    def hook(module: nn.Module, args: Any, output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(change)

    lookup.register_forward_hook(hook)


def _warn_of_idle(train_config: Any) -> None:
    name, settings = _chosen(train_config)
    path = f"train_config.sparse_optimizer.{name}"
    if settings.get("weight_decay") and settings.get("weight_decay_mode") == "NONE":
        _log.warning("%s.weight_decay is not applied: weight_decay_mode is NONE; set it to L2 or DECOUPLE", path)
    if getattr(train_config.sparse_optimizer, name).HasField("max_gradient") and not settings["gradient_clipping"]:
        _log.warning("%s.max_gradient is not applied: gradient_clipping is false; set it to true", path)


def _chosen(train_config: Any) -> tuple[str, dict[str, Any]]:
    config = train_config.sparse_optimizer
    name = config.WhichOneof("optimizer")
    if name is None:
        raise ConfigError(
            "train_config.sparse_optimizer is empty; write one, such as sparse_optimizer { adam_optimizer "
            "{ lr: 0.001 } }"
        )
    assert name in RULES
    return name, config_to_kwargs(getattr(config, name))
