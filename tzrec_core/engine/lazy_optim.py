"""Optimizers that touch only the rows that were looked up, with the arithmetic of FBGEMM's fused ones.

A step costs what the batch looks up, not what the tables hold; rows that were not looked up keep their weights and
their moments. Follows the optimizers of fbgemm_gpu.split_embedding_configs.EmbOptimType, on CUDA: on the CPU FBGEMM has
no Adam and leaves out weight decay.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


@dataclass(frozen=True)
class Rule:
    """One update rule.

    Attributes:
        state: name of each state tensor and whether it holds one number per row instead of one per weight.
        update: (weights_ND, gradients_ND, states, step, settings) -> new weights; changes the states in place.
            N rows looked up, D embedding dim.
    """

    state: tuple[tuple[str, bool], ...]
    update: Callable[[Tensor, Tensor, dict[str, Tensor], int, dict[str, Any]], Tensor]


def _sgd(weights: Tensor, grads: Tensor, states: dict[str, Tensor], step: int, s: dict[str, Any]) -> Tensor:
    return weights - s["lr"] * grads


def _adagrad(weights: Tensor, grads: Tensor, states: dict[str, Tensor], step: int, s: dict[str, Any]) -> Tensor:
    states["sum"] += grads * grads
    return weights - s["lr"] * grads / (states["sum"].sqrt() + s["eps"])


def _rowwise_adagrad(weights: Tensor, grads: Tensor, states: dict[str, Tensor], step: int, s: dict[str, Any]) -> Tensor:
    if s["weight_decay_mode"] == "L2":
        grads = grads + s["weight_decay"] * weights
    states["sum"] += (grads * grads).mean(dim=1)
    multiplier = s["lr"] / (states["sum"].sqrt() + s["eps"])
    if s["weight_decay_mode"] == "DECOUPLE":
        weights = weights * (1 - s["lr"] * s["weight_decay"])
    return weights - multiplier.unsqueeze(1) * grads


def _adam(weights: Tensor, grads: Tensor, states: dict[str, Tensor], step: int, s: dict[str, Any]) -> Tensor:
    states["momentum1"].mul_(s["beta1"]).add_(grads, alpha=1 - s["beta1"])
    states["momentum2"].mul_(s["beta2"]).addcmul_(grads, grads, value=1 - s["beta2"])
    return _adam_step(weights, states["momentum1"], states["momentum2"], step, s)


def _partial_rowwise_adam(
    weights: Tensor, grads: Tensor, states: dict[str, Tensor], step: int, s: dict[str, Any]
) -> Tensor:
    states["momentum1"].mul_(s["beta1"]).add_(grads, alpha=1 - s["beta1"])
    states["momentum2"].mul_(s["beta2"]).add_((grads * grads).mean(dim=1), alpha=1 - s["beta2"])
    return _adam_step(weights, states["momentum1"], states["momentum2"].unsqueeze(1), step, s)


def _adam_step(weights: Tensor, first: Tensor, second: Tensor, step: int, s: dict[str, Any]) -> Tensor:
    first_hat = first / (1 - s["beta1"] ** step)
    second_hat = second / (1 - s["beta2"] ** step)
    return weights - s["lr"] * (first_hat / (second_hat.sqrt() + s["eps"]) + s["weight_decay"] * weights)


RULES = {
    "sgd_optimizer": Rule((), _sgd),
    "adagrad_optimizer": Rule((("sum", False),), _adagrad),
    "rowwise_adagrad_optimizer": Rule((("sum", True),), _rowwise_adagrad),
    "adam_optimizer": Rule((("momentum1", False), ("momentum2", False)), _adam),
    "partial_rowwise_adam_optimizer": Rule((("momentum1", False), ("momentum2", True)), _partial_rowwise_adam),
}


class LazyOptimizer(Optimizer):
    """Applies a rule to the rows that have a gradient.

    Args:
        params: embedding tables (rows, dim) whose gradients are sparse.
        rule: name of one of `RULES`.
        **settings: the fields of the rule's message, without gradient clipping, which acts on what the tables
            put out and not on their summed gradients; `eps` defaults to 1e-8.
    """

    def __init__(self, params: Iterable[torch.nn.Parameter], rule: str, **settings: Any) -> None:
        self._rule = RULES[rule]
        super().__init__(params, {"eps": 1e-8, **settings})
        for group in self.param_groups:
            for table in group["params"]:
                self.state[table]["step"] = torch.zeros((), dtype=torch.int64)
                for name, per_row in self._rule.state:
                    shape = table.shape[:1] if per_row else table.shape
                    initial = group.get("initial_accumulator_value", 0.0)
                    self.state[table][name] = torch.full(shape, initial, device=table.device)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update the rows looked up since the last `zero_grad`, in float32 whatever the tables hold."""
        for group in self.param_groups:
            for table in group["params"]:
                kept = self.state[table]
                kept["step"] += 1
                if table.grad is None:
                    continue
                grad = table.grad.coalesce()
                rows, grads = grad.indices()[0], grad.values().float()
                # index_select and index_copy_ take a fraction of the time of table[rows]
                states = {name: kept[name].index_select(0, rows) for name, _ in self._rule.state}
                weights = table.index_select(0, rows).float()
                updated = self._rule.update(weights, grads, states, int(kept["step"]), group)
                table.index_copy_(0, rows, updated.to(table.dtype))
                for name, value in states.items():
                    kept[name].index_copy_(0, rows, value)
