"""Models that score one row for several tasks, each with a label of its own."""

# B batch

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from tzrec_core.config import config_to_kwargs, model_name, reference_problems, task_problems
from tzrec_core.data.batch import Batch
from tzrec_core.errors import ConfigError
from tzrec_core.features import BaseFeature
from tzrec_core.models.objectives import relative_weights
from tzrec_core.models.rank import RankModel
from tzrec_core.modules.task_tower import TaskTower

_MAKE_WEIGHTED = {"sample_weight_name", "weight", "task_space_indicator_label"}


class MultiTaskRank(RankModel):
    """Base of models with several tasks, the `task_towers` of the model's settings.

    A subclass calls `init_input()` and, unless its towers are of another kind, `init_towers(width)` in its constructor,
    and hands the outputs (B, num_class of the tower) by tower name to `_multi_task_output_to_prediction`.

    Predictions, losses and metrics have the names that RankModel gives them, ended by `_<tower_name>`. Predictions by
    the losses of a tower:
        binary_cross_entropy, binary_focal_loss: `logits_<tower_name>`, `probs_<tower_name>`, both (B,).
        softmax_cross_entropy: `logits_<tower_name>`, `probs_<tower_name>`, both (B, C), and `probs1_<tower_name>` (B,)
            when C = 2.
        jrc_loss: `logits_<tower_name>`, `probs_<tower_name>` (B, 2) and `probs1_<tower_name>` (B,).
        l2_loss: `y_<tower_name>` (B,).

    Attributes:
        _task_tower_cfgs: the TaskTower messages, or those of a kind with the same fields; a subclass whose settings
            have them elsewhere than in `task_towers` sets it.

    Raises:
        ConfigError: two towers have one name, or one names a label or sample weight that data_config does not have, or
            has a loss, a metric or a num_class that do not fit one another.
    """

    _task_tower: nn.ModuleList

    def __init__(
        self,
        model_config: Any,
        features: Sequence[BaseFeature],
        labels: Sequence[str],
        sample_weights: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model_config, features, labels, sample_weights, **kwargs)
        settings, path = self._model_config, f"model_config.{model_name(model_config)}"
        unknown = reference_problems(settings, path, labels=self._labels, sample_weights=self._sample_weights)
        if problems := [*task_problems(settings, path), *unknown]:
            raise ConfigError(problems)
        self._task_tower_cfgs = list(getattr(settings, "task_towers", ()))

    def init_towers(self, in_features: int) -> None:
        """Build `_task_tower`, the TaskTower of each task in the order of `_task_tower_cfgs`.

        Args:
            in_features: width of the input of every task.
        """
        self._task_tower = nn.ModuleList(
            TaskTower(in_features, tower.num_class, config_to_kwargs(tower.mlp) if tower.HasField("mlp") else None)
            for tower in self._task_tower_cfgs
        )

    def _multi_task_output_to_prediction(self, output: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Predictions of outputs (B, num_class of the tower) by tower name; float32, also under autocast."""
        predictions: dict[str, torch.Tensor] = {}
        for tower in self._task_tower_cfgs:
            for loss_config in tower.losses:
                predictions.update(
                    self._output_to_prediction_impl(
                        output[tower.tower_name], loss_config, tower.num_class, _suffix(tower)
                    )
                )
        return predictions

    def init_loss(self) -> None:
        """Build the losses of each tower."""
        if not self._task_tower_cfgs:
            path = f"model_config.{model_name(self._base_model_config)}"
            raise ConfigError(f"{path} has no task; add one, such as task_towers {{ ... }}, for each label")
        for tower in self._task_tower_cfgs:
            reduction = "none" if _is_weighted(tower) else "mean"
            with _naming(tower):
                if not tower.losses:
                    raise ConfigError("losses is empty; add one, such as losses { binary_cross_entropy {} }")
                for loss_config in tower.losses:
                    self._init_loss_impl(loss_config, tower.num_class, reduction, _suffix(tower))

    def loss(self, predictions: dict[str, torch.Tensor], batch: Batch) -> dict[str, torch.Tensor]:
        """Scalar losses by `<loss>_<tower_name>`, and `<group>_feature_p_loss` with variational dropout.

        A tower that sets `sample_weight_name`, `weight` or `task_space_indicator_label` weighs its rows: w = sample
        weight * (in_task_space_weight where the indicator is > 0, else out_task_space_weight), all 1 when unset. Its
        loss is weight * mean(loss * w / mean(w)), and 0 when all w are 0.
        """
        losses: dict[str, torch.Tensor] = {}
        for tower in self._task_tower_cfgs:
            label = batch.labels[tower.label_name]
            weight = _row_weights(tower, batch) if _is_weighted(tower) else None
            for loss_config in tower.losses:
                losses.update(
                    self._loss_impl(predictions, batch, label, weight, loss_config, tower.num_class, _suffix(tower))
                )
        losses.update(self._group_feature_p_losses)
        self._group_feature_p_losses = {}
        return losses

    def init_metric(self) -> None:
        """Build the metrics and train metrics of each tower, and a mean for each loss under the loss's key."""
        for tower in self._task_tower_cfgs:
            with _naming(tower):
                for metric_config in tower.metrics:
                    self._init_metric_impl(metric_config, tower.num_class, _suffix(tower), losses=tower.losses)
                for metric_config in tower.train_metrics:
                    self._init_train_metric_impl(metric_config, tower.num_class, _suffix(tower), losses=tower.losses)
                for loss_config in tower.losses:
                    self._init_loss_metric_impl(loss_config, _suffix(tower))

    def update_metric(
        self,
        predictions: dict[str, torch.Tensor],
        batch: Batch,
        losses: dict[str, torch.Tensor] | None = None,
    ) -> None:
        """Add a batch to the metrics, over all rows; `losses` feeds the mean of each loss."""
        for tower in self._task_tower_cfgs:
            label = batch.labels[tower.label_name]
            for metric_config in tower.metrics:
                self._update_metric_impl(predictions, batch, label, metric_config, tower.num_class, _suffix(tower))
        self._update_loss_metrics(losses, batch.labels[self._task_tower_cfgs[0].label_name].size(0))

    def update_train_metric(self, predictions: dict[str, torch.Tensor], batch: Batch) -> None:
        """Add a training batch to the decayed train metrics."""
        for tower in self._task_tower_cfgs:
            label = batch.labels[tower.label_name]
            for config in tower.train_metrics:
                self._update_train_metric_impl(predictions, batch, label, config, tower.num_class, _suffix(tower))


def _suffix(tower: Any) -> str:
    return f"_{tower.tower_name}"


def _is_weighted(tower: Any) -> bool:
    return any(field.name in _MAKE_WEIGHTED for field, _ in tower.ListFields())


def _row_weights(tower: Any, batch: Batch) -> torch.Tensor:
    """What each row's loss is multiplied with before the mean, (B,)."""
    name = getattr(tower, "sample_weight_name", "")  # not every kind of tower has one
    label_B = batch.labels[tower.label_name]
    weight_B = batch.sample_weights[name].to(torch.float32) if name else torch.ones_like(label_B, dtype=torch.float32)
    if tower.task_space_indicator_label:
        is_inside_B = batch.labels[tower.task_space_indicator_label] > 0
        weight_B = weight_B * torch.where(is_inside_B, tower.in_task_space_weight, tower.out_task_space_weight)
    return relative_weights(weight_B) * tower.weight


@contextmanager
def _naming(tower: Any) -> Iterator[None]:
    """Says of which tower a mistake is."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError([f"tower {tower.tower_name!r}: {problem}" for problem in error.problems]) from None
