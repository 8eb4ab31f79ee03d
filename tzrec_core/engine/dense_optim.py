"""Optimizers of everything but the embedding tables: one, and others for the parameters that a pattern names."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tzrec_core.config import config_to_kwargs
from tzrec_core.engine.lr_schedule import chosen_schedule
from tzrec_core.errors import ConfigError, did_you_mean

_CLASSES = {
    "sgd_optimizer": torch.optim.SGD,
    "adagrad_optimizer": torch.optim.Adagrad,
    "adam_optimizer": torch.optim.Adam,
    "adamw_optimizer": torch.optim.AdamW,
    "adadelta_optimizer": torch.optim.Adadelta,
    "rmsprop_optimizer": torch.optim.RMSprop,
}


@dataclass
class Part:
    """Parameters with an optimizer of their own.

    Attributes:
        name: `dense`, or `dense_<index>` of the entry of part_optimizers.
        path: of its config.
        config: a DenseOptimizer or PartOptimizer.
        parameters: by name.
        optimizer: torch's, of these parameters.
        lr: the rate that the schedule starts from.
        schedule: the message of the learning-rate schedule; None = constant.
    """

    name: str
    path: str
    config: Any
    parameters: dict[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    lr: float
    schedule: Any

    def states(self) -> dict[str, Tensor]:
        """What the optimizer keeps, as `<parameter>.<state>`; what torch would make at the first step is made now."""
        missing = [p for p in self.parameters.values() if not self.optimizer.state[p]]
        if missing:
            self._make_states(missing)
        return {
            f"{name}.{key}": value
            for name, parameter in self.parameters.items()
            for key, value in self.optimizer.state[parameter].items()
            if isinstance(value, Tensor)
        }

    def _make_states(self, parameters: Sequence[nn.Parameter]) -> None:
        """Take over the states of a step on zeros with zero gradients, which are those of no step but for its count.

        One thing differs: torch's first SGD step takes the whole gradient as its momentum, this one's next step
        `1 - dampening` of it. That shows in a parameter with dampening whose first gradient comes after a checkpoint.
        """
        zeros = [torch.zeros_like(p) for p in parameters]
        other = _create(self.config, self.path, zeros)
        for zero in zeros:
            zero.grad = torch.zeros_like(zero)
        other.step()
        for parameter, zero in zip(parameters, zeros):
            state = other.state[zero]
            if "step" in state:
                state["step"].zero_()
            self.optimizer.state[parameter] = state


def dense_parts(config: Any, parameters: Mapping[str, nn.Parameter]) -> list[Part]:
    """Give every parameter to the first entry of part_optimizers whose pattern is found in its name, or to the rest.

    Args:
        config: the DenseOptimizer.
        parameters: by their full name, such as `model.mlp.0.weight`; the patterns are searched in it.

    Raises:
        ConfigError: a pattern is no regular expression, or finds nothing that an earlier one has not taken; no
            optimizer is set, or torch refuses a setting.
    """
    rest = dict(parameters)
    parts = []
    for index, entry in enumerate(config.part_optimizers):
        path = f"train_config.dense_optimizer.part_optimizers[{index}]"
        found = _search(entry.regex_pattern, rest, parameters, path)
        parts.append(_part(f"dense_{index}", path, entry, found))
        rest = {name: p for name, p in rest.items() if name not in found}
    path = "train_config.dense_optimizer"
    _chosen(config, path)
    if rest:
        parts.insert(0, _part("dense", path, config, rest))
    return parts


def _part(name: str, path: str, config: Any, parameters: dict[str, nn.Parameter]) -> Part:
    optimizer = _create(config, path, list(parameters.values()))
    return Part(name, path, config, parameters, optimizer, optimizer.defaults["lr"], chosen_schedule(config))


def _search(
    pattern: str, rest: dict[str, nn.Parameter], parameters: Mapping[str, nn.Parameter], path: str
) -> dict[str, nn.Parameter]:
    where = f"{path}.regex_pattern = {pattern!r}"
    try:
        regex = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"{where} is not a regular expression: {error}") from None
    found = {name: p for name, p in rest.items() if regex.search(name)}
    if found:
        return found
    if any(regex.search(name) for name in parameters):
        raise ConfigError(f"{where}: earlier patterns take all parameters that it matches; move it up or remove it")
    names = list(parameters)
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    raise ConfigError(
        f"{where} is found in the name of no trained dense parameter.{did_you_mean(pattern, names)} They are: "
        f"{shown or 'none'}"
    )


def _create(config: Any, path: str, parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
    name, settings = _chosen(config, path)
    if "beta1" in settings:
        settings["betas"] = (settings.pop("beta1"), settings.pop("beta2"))
    if not settings.get("fused"):
        settings.pop("fused", None)  # an explicit False would also turn off torch's fast default on CUDA devices
    try:
        return _CLASSES[name](parameters, **settings)
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f"{path}.{name}: {error}") from None


def _chosen(config: Any, path: str) -> tuple[str, dict[str, Any]]:
    name = config.WhichOneof("optimizer")
    if name is None:
        raise ConfigError(f"{path} has no optimizer; write one, such as adam_optimizer {{ lr: 0.001 }}")
    return name, config_to_kwargs(getattr(config, name))
