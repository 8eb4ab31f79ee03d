"""All that follows the loss of a batch: backward, clipping, the steps of tables and dense parameters, rates, EMA."""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchrec.distributed import DistributedModelParallel
from torchrec.optim.optimizers import in_backward_optimizer_filter

from tzrec_core.config import config_to_kwargs
from tzrec_core.engine.dense_optim import Part, dense_parts
from tzrec_core.engine.ema import DenseEMA
from tzrec_core.engine.lazy_optim import LazyOptimizer
from tzrec_core.engine.lr_schedule import chosen_schedule, learning_rate
from tzrec_core.engine.sparse_optim import (
    check_processes,
    fuse_sparse_optimizer,
    fused_kernels,
    initial_accumulator,
    is_fused,
    lazy_optimizer,
    lookups_of,
    on_gradient,
    sparse_lr,
)
from tzrec_core.models import BaseModel

__all__ = ["TrainOptimizer", "check_processes", "fuse_sparse_optimizer", "is_fused"]

_log = logging.getLogger(__name__)


class TrainOptimizer:
    """The optimizers of a run behind the three calls of a training loop: zero_grad, backward, step.

    Tables move with every batch, fused or lazy; dense parameters with every `gradient_accumulation_steps` of them, by
    the sum of their gradients. A run that ends between two steps of the dense parameters keeps the gradients in its
    checkpoint, and goes on from them. Schedules count batches, or calls of `end_epoch`.

    With FP16 the loss is scaled; gradients are divided by the scale before they reach a table, where an element that
    is not finite counts as zero. Such an element among the dense gradients makes the dense parameters wait for the
    next step, and the scale fall.

    Make it after the parameters have their first values: the moving averages start from them.

    Args:
        train_config: the TrainConfig.
        model: a DistributedModelParallel around a TrainWrapper.
        is_fused: whether `fuse_sparse_optimizer` was called before sharding; otherwise the tables are unsharded.

    Attributes:
        before_step: set it to be called in the next `step`, if dense parameters move in it: their gradients are there,
            with the scale taken out and not clipped. Forgotten after that step.

    Raises:
        ConfigError: an optimizer or a pattern of part_optimizers does not fit.
    """

    before_step: Callable[[], None] | None = None

    def __init__(self, train_config: Any, model: DistributedModelParallel, *, is_fused: bool) -> None:
        self._sparse_config = train_config.sparse_optimizer
        self._sparse_lr = sparse_lr(train_config)
        self._every = max(1, train_config.gradient_accumulation_steps)
        self._steps = self._epochs = self._accumulated = 0
        self._kernels = list(fused_kernels(model))
        self._fused = model.fused_optimizer if is_fused else None
        self._scaler = _scaler(train_config, model.device.type)
        self._rates: dict[str, float] = {}  # that the optimizers have
        self._factor: Tensor | None = None  # the loss of the current batch is multiplied by it
        parameters = {n: p for n, p in in_backward_optimizer_filter(model.named_parameters()) if p.requires_grad}
        self._lazy: LazyOptimizer | None = None
        self._table_names: dict[int, str] = {}
        if is_fused:
            lookups: list[Any] = self._kernels
            assert lookups or not model.fused_optimizer.params
            self._start_accumulators(initial_accumulator(train_config))
        else:
            base: BaseModel = model.module.model
            tables, _ = base.sparse_parameters()
            lookups = lookups_of(base, tables)
            ids = {id(table) for table in tables}
            self._table_names = {id(p): name for name, p in parameters.items() if id(p) in ids}
            parameters = {name: p for name, p in parameters.items() if id(p) not in ids}
        if self._scaler:
            for lookup in lookups:  # before the hooks of clipping, which must see the gradient itself
                on_gradient(lookup, self._unscale)
        if not is_fused:
            self._lazy = lazy_optimizer(train_config, base)
        self._dense = parameters
        self._parts = dense_parts(train_config.dense_optimizer, parameters)
        self._all_parts = _Together(self._parts)
        self._clipping = _clipping(train_config)
        ema = train_config.dense_optimizer.ema
        has_ema = train_config.dense_optimizer.HasField("ema")
        self._ema = DenseEMA(parameters, config_to_kwargs(ema)["decay"]) if has_ema else None
        self._set_rates()

    @property
    def ema(self) -> DenseEMA | None:
        """The moving averages of the dense parameters; None when the config asks for none."""
        return self._ema

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of the last batch, but those that are being accumulated; call it before each forward."""
        if not self._accumulated:
            for part in self._parts:
                part.optimizer.zero_grad(set_to_none)
        if self._lazy:
            self._lazy.zero_grad(set_to_none)
        self._count_batches()

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a batch; fused tables take their step meanwhile.

        Args:
            loss: (), or any shape to be summed.
        """
        loss = loss.sum()
        if self._scaler:
            self._factor = self._scaler.scale(torch.ones((), device=loss.device))
            loss = loss * self._factor
        loss.backward()

    def step(self) -> None:
        """Take the step of the batch, and set the rates of the next one."""
        self._steps += 1
        if self._lazy:
            self._lazy.step()
        self._accumulated += 1
        if self._accumulated == self._every:
            self._accumulated = 0
            self._dense_step()
        self.before_step = None
        self._set_rates()

    def end_epoch(self) -> None:
        """Move on the schedules that count epochs."""
        self._epochs += 1
        self._set_rates()

    def learning_rates(self) -> dict[str, float]:
        """The rates of the next step: `sparse`, `dense`, and `dense_<index>` for each entry of part_optimizers."""
        at: dict[str, Any] = {"step": self._steps, "epoch": self._epochs}
        rates = {"sparse": learning_rate(chosen_schedule(self._sparse_config), self._sparse_lr, **at)}
        return rates | {part.name: learning_rate(part.schedule, part.lr, **at) for part in self._parts}

    def tensors(self) -> dict[str, Any]:
        """What a checkpoint must hold beside `scalars`; to load one, call `load_scalars`, fill these, `after_load`.

        Returns:
            `state.<parameter>.<state>`: states of optimizers, of tables with the table's name before the state's, as
            torchrec names them; a ShardedTensor or DTensor where the table is sharded, and only on ranks that hold a
            part of it. `ema.<parameter>`: moving averages. `grad.<parameter>`: gradients accumulated so far.
        """
        found: dict[str, Any] = {}
        if self._fused is not None:
            for name, states in self._fused.state_dict()["state"].items():
                found |= {f"state.{name}.{key}": value for key, value in states.items()}
        if self._lazy:
            for table, states in self._lazy.state.items():
                name = self._table_names[id(table)]
                prefix = f"state.{name}.{name.split('.')[-2]}"
                found |= {f"{prefix}.{key}": value for key, value in states.items() if key != "step"}
        for part in self._parts:
            found |= {f"state.{key}": value for key, value in part.states().items()}
        if self._ema:
            found |= {f"ema.{name}": value for name, value in self._ema.averages.items()}
        return found | {f"grad.{name}": self._dense[name].grad for name in self._accumulating()}

    def scalars(self) -> dict[str, Any]:
        """What a checkpoint must hold beside `tensors`, as JSON values."""
        found: dict[str, Any] = {
            "steps": self._steps,
            "epochs": self._epochs,
            "accumulated": self._accumulated,
            "gradients": self._accumulating(),
        }
        if self._scaler:
            state = self._scaler.state_dict()
            found["scaler"] = {"scale": state["scale"], "_growth_tracker": state["_growth_tracker"]}
        return found

    def load_scalars(self, scalars: dict[str, Any]) -> None:
        """Take over what `scalars` returned; settings come from the config."""
        self._steps, self._epochs = scalars["steps"], scalars["epochs"]
        # with fewer batches to accumulate than then, the next one completes the window, or starts anew if it is alone
        self._accumulated = min(scalars["accumulated"], self._every - 1)
        for name in scalars["gradients"]:
            if self._accumulated and name in self._dense:
                self._dense[name].grad = torch.zeros_like(self._dense[name])
        if self._scaler and "scaler" in scalars:
            self._scaler.load_state_dict({**self._scaler.state_dict(), **scalars["scaler"]})

    def after_load(self) -> None:
        """Let everything follow what was loaded."""
        if self._lazy:
            for states in self._lazy.state.values():
                states["step"].fill_(self._steps)
        self._count_batches()
        self._set_rates()

    def _dense_step(self) -> None:
        if all(parameter.grad is None for parameter in self._dense.values()):
            return
        if self._scaler:
            self._scaler.unscale_(self._all_parts)  # type: ignore[arg-type]
        if self.before_step:
            self.before_step()
        _clip(list(self._dense.values()), self._clipping)
        before = self._all_parts.num_steps
        if self._scaler:
            self._scaler.step(self._all_parts)  # type: ignore[arg-type]
            self._scaler.update()
        else:
            self._all_parts.step()
        if self._ema and self._all_parts.num_steps > before:
            self._ema.update()

    def _set_rates(self) -> None:
        rates = self.learning_rates()
        if rates == self._rates:
            return
        self._rates = rates
        for optimizer in (self._fused, self._lazy):
            for group in optimizer.param_groups if optimizer is not None else ():
                group["lr"] = rates["sparse"]
        if self._fused is not None:
            self._fused.step()  # hands the rate to the kernels; their steps are in the backward pass
        for part in self._parts:
            for group in part.optimizer.param_groups:
                group["lr"] = rates[part.name]

    def _count_batches(self) -> None:
        """Set the count that Adam's bias correction uses: FBGEMM adds one at each forward, in evaluations too."""
        for kernel in self._kernels:
            kernel.iter_cpu.fill_(self._steps)
            if not self._steps:
                kernel.iter.zero_()  # which counts where iter_cpu is 0

    def _start_accumulators(self, value: float) -> None:
        if not value:
            return
        for kernel in self._kernels:
            for states in kernel.split_optimizer_states():
                for state in states:
                    state.fill_(value)

    def _unscale(self, gradient: Tensor) -> Tensor:
        return torch.nan_to_num(gradient / self._factor, nan=0.0, posinf=0.0, neginf=0.0)

    def _accumulating(self) -> list[str]:
        if not self._accumulated:
            return []
        return [name for name, parameter in self._dense.items() if parameter.grad is not None]


class _Together:
    """The optimizers of all parts as one, which is all that a GradScaler wants: all of them step, or none does."""

    def __init__(self, parts: list[Part]) -> None:
        self._optimizers = [part.optimizer for part in parts]
        self.num_steps = 0

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self._optimizers for group in optimizer.param_groups]

    def step(self) -> None:
        self.num_steps += 1
        for optimizer in self._optimizers:
            optimizer.step()


def _scaler(train_config: Any, device_type: str) -> torch.amp.GradScaler | None:
    if not train_config.HasField("grad_scaler"):
        return None
    return torch.amp.GradScaler(device_type, **config_to_kwargs(train_config.grad_scaler))


def _clipping(train_config: Any) -> dict[str, Any]:
    """The settings of grad_clipping.

    `enable_global_grad_clip` changes nothing: each process holds all dense parameters, with the same gradients, and
    fused tables never have a gradient to measure.
    """
    settings = config_to_kwargs(train_config.grad_clipping)
    if train_config.HasField("grad_clipping") and not train_config.grad_clipping.HasField("clipping_type"):
        _log.warning('train_config.grad_clipping does nothing: write clipping_type: "norm" or "value" into it')
    return settings


def _clip(parameters: list[torch.nn.Parameter], settings: dict[str, Any]) -> None:
    if settings["clipping_type"] == "norm":
        torch.nn.utils.clip_grad_norm_(parameters, settings["max_gradient"], settings["norm_type"])
    elif settings["clipping_type"] == "value":
        torch.nn.utils.clip_grad_value_(parameters, settings["max_gradient"])
