"""From the train config to optimizers: one for the embedding tables, one for everything else."""

import logging
from typing import Any

import torch
from torch import Tensor, nn

from tzrec_core.config import config_to_kwargs
from tzrec_core.engine.lazy_optim import RULES, LazyOptimizer
from tzrec_core.errors import ConfigError
from tzrec_core.models import BaseModel

_log = logging.getLogger(__name__)

_DENSE = {
    "sgd_optimizer": torch.optim.SGD,
    "adagrad_optimizer": torch.optim.Adagrad,
    "adam_optimizer": torch.optim.Adam,
    "adamw_optimizer": torch.optim.AdamW,
    "adadelta_optimizer": torch.optim.Adadelta,
    "rmsprop_optimizer": torch.optim.RMSprop,
}


def build_optimizers(train_config: Any, model: BaseModel) -> dict[str, torch.optim.Optimizer]:
    """The optimizers of a run, by part: `sparse` for the embedding tables and `dense` for all other parameters.

    Makes the gradients of the tables sparse, so call it before the first backward pass. A part without trainable
    parameters is left out.

    Raises:
        ConfigError: no optimizer is set for a part that needs one, it is not available on one process, or it
            refuses a setting.
    """
    tables, _ = model.sparse_parameters()
    ids = {id(p) for p in tables}
    lookups = [m for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag) and id(m.weight) in ids]
    dense = [p for p in model.parameters() if p.requires_grad and id(p) not in ids]
    optimizers: dict[str, torch.optim.Optimizer] = {}
    if tables:
        optimizers["sparse"] = _sparse(train_config.sparse_optimizer, tables, lookups)
    if dense:
        optimizers["dense"] = _dense(train_config.dense_optimizer, dense)
    return optimizers


def _sparse(
    config: Any, tables: list[nn.Parameter], lookups: list[nn.Embedding | nn.EmbeddingBag]
) -> torch.optim.Optimizer:
    name, settings = _chosen(config, "sparse_optimizer")
    if name not in RULES:
        raise ConfigError(f"train_config.sparse_optimizer.{name} is not supported yet; use one of {', '.join(RULES)}")
    if settings["lr"] < 0:
        raise ConfigError(f"train_config.sparse_optimizer.{name}.lr = {settings['lr']:g} must not be negative")
    if settings.get("weight_decay") and settings.get("weight_decay_mode") == "NONE":
        _log.warning(
            "train_config.sparse_optimizer.%s.weight_decay is not applied: weight_decay_mode is NONE; set it to "
            "L2 or DECOUPLE",
            name,
        )
    max_gradient = settings.pop("max_gradient")
    is_clipping = settings.pop("gradient_clipping")
    for lookup in lookups:
        lookup.sparse = True
        if is_clipping:
            _clip_gradients(lookup, max_gradient)
    return LazyOptimizer(tables, name, **settings)


def _clip_gradients(lookup: nn.Module, max_gradient: float) -> None:
    """Clamp each element of the gradient of what a lookup puts out, before rows are summed, as FBGEMM does."""

    def clamp(grad: Tensor) -> Tensor:
        return grad.clamp(-max_gradient, max_gradient)

    def hook(module: nn.Module, args: Any, output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(clamp)

    lookup.register_forward_hook(hook)


def _dense(config: Any, params: list[nn.Parameter]) -> torch.optim.Optimizer:
    name, settings = _chosen(config, "dense_optimizer")
    if "beta1" in settings:
        settings["betas"] = (settings.pop("beta1"), settings.pop("beta2"))
    if not settings.get("fused"):
        settings.pop("fused", None)  # an explicit False would also turn off torch's fast default on CUDA devices
    try:
        return _DENSE[name](params, **settings)
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f"train_config.dense_optimizer.{name}: {error}") from None


def _chosen(config: Any, part: str) -> tuple[str, dict[str, Any]]:
    name = config.WhichOneof("optimizer")
    if name is None:
        example = f"{part} {{ adam_optimizer {{ lr: 0.001 }} }}"
        raise ConfigError(f"train_config.{part} is empty; write one, such as {example}")
    return name, config_to_kwargs(getattr(config, name))
