"""Models that score one row: probability of a class, or a value."""

from collections.abc import Sequence
from typing import Any

import torch
import torchmetrics
from torch import nn

from tzrec_core.config import model_offer
from tzrec_core.data.batch import Batch
from tzrec_core.errors import ConfigError, DataError
from tzrec_core.features import BaseFeature
from tzrec_core.metrics import AUC, DecayAUC, TrainMetricWrapper
from tzrec_core.models.base import BaseModel, variational_dropouts
from tzrec_core.models.objectives import (
    build_loss,
    build_metric,
    group_ids,
    loss_spec,
    metric_input,
    metric_key,
    metric_spec,
    relative_weights,
)
from tzrec_core.modules.embedding_group import EmbeddingGroup
from tzrec_core.plugins import Output, Task


class RankModel(BaseModel):
    """Base of ranking models.

    A subclass calls `init_input()` in its constructor and `build_input(batch)` in `predict`, and hands its output
    of shape (B, num_class) to `_output_to_prediction`.

    Predictions by loss:
        binary_cross_entropy, binary_focal_loss: `logits`, `probs`, both (B,).
        softmax_cross_entropy: `logits`, `probs`, both (B, C), and `probs1` (B,) when C = 2.
        jrc_loss: `logits`, `probs` (B, 2) and `probs1` (B,).
        l2_loss: `y` (B,).

    Raises:
        ConfigError: a loss or metric that ranking does not support, or a num_class that does not fit a loss.
    """

    embedding_group: EmbeddingGroup

    def __init__(
        self,
        model_config: Any,
        features: Sequence[BaseFeature],
        labels: Sequence[str],
        sample_weights: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model_config, features, labels, sample_weights, **kwargs)
        self._num_class = model_config.num_class
        self._label_name = self._labels[0] if self._labels else ""
        self._sample_weight_name = self._sample_weights[0] if self._sample_weights else ""
        self._group_feature_p_losses: dict[str, torch.Tensor] = {}
        self._metric_inputs: dict[str, str] = {}

    @property
    def _task(self) -> Task:
        try:
            return model_offer(self._base_model_config).spec.task
        except ValueError:
            return Task.RANK

    def init_input(self) -> None:
        """Build the embedding group, and a variational dropout per group when the config asks for it."""
        self.embedding_group = EmbeddingGroup(
            self._features,
            self._feature_groups,
            wide_embedding_dim=getattr(self._model_config, "wide_embedding_dim", None),
            wide_init_fn=getattr(self._model_config, "wide_init_fn", None),
        )
        if self._base_model_config.HasField("variational_dropout"):
            self.group_variational_dropouts = variational_dropouts(
                self._base_model_config.variational_dropout, self.embedding_group, self._feature_groups
            )

    def build_input(self, batch: Batch) -> dict[str, torch.Tensor]:
        """The embedding group's output by its keys, see `EmbeddingGroup`, after variational dropout."""
        grouped = self.embedding_group(batch)
        if self._base_model_config.HasField("variational_dropout"):
            for name, dropout in self.group_variational_dropouts.items():
                grouped[name], loss = dropout(grouped[name])
                if not self.is_inference:
                    self._group_feature_p_losses[f"{name}_feature_p_loss"] = loss
        return grouped

    def _output_to_prediction(self, output: torch.Tensor, suffix: str = "") -> dict[str, torch.Tensor]:
        """Predictions of an output (B, num_class), for every configured loss; float32, also under autocast."""
        predictions: dict[str, torch.Tensor] = {}
        for loss_config in self._base_model_config.losses:
            predictions.update(self._output_to_prediction_impl(output, loss_config, self._num_class, suffix))
        return predictions

    def _output_to_prediction_impl(
        self, output: torch.Tensor, loss_config: Any, num_class: int = 1, suffix: str = ""
    ) -> dict[str, torch.Tensor]:
        output = output.to(torch.float32)  # in bfloat16 most probabilities near 0 and 1 would tie
        kind = loss_spec(loss_config)[0].output
        if kind is Output.BINARY:
            logits = torch.squeeze(output, dim=1)
            return {f"logits{suffix}": logits, f"probs{suffix}": torch.sigmoid(logits)}
        if kind is Output.SOFTMAX:
            probs = torch.softmax(output, dim=1)
            predictions = {f"logits{suffix}": output, f"probs{suffix}": probs}
            if num_class == 2:
                predictions[f"probs1{suffix}"] = probs[:, 1]
            return predictions
        return {f"y{suffix}": torch.squeeze(output, dim=1)}

    def init_loss(self) -> None:
        """Build the configured losses."""
        if not self._base_model_config.losses:
            raise ConfigError("model_config.losses is empty; add one, such as losses { binary_cross_entropy {} }")
        reduction = "none" if self._sample_weight_name else "mean"
        for loss_config in self._base_model_config.losses:
            self._init_loss_impl(loss_config, self._num_class, reduction)

    def _init_loss_impl(self, loss_config: Any, num_class: int = 1, reduction: str = "none", suffix: str = "") -> None:
        key = loss_spec(loss_config)[0].name + suffix
        if key in self._loss_modules:
            raise ConfigError(f"loss {key!r} is configured twice; keep one")
        self._loss_modules[key] = build_loss(loss_config, task=self._task, num_class=num_class, reduction=reduction)

    def loss(self, predictions: dict[str, torch.Tensor], batch: Batch) -> dict[str, torch.Tensor]:
        """Scalar losses by loss name, and `<group>_feature_p_loss` with variational dropout.

        With a sample weight w: mean(loss * w / mean(w)), and 0 when all weights are 0.
        """
        label = batch.labels[self._label_name]
        weight = None
        if self._sample_weight_name:
            weight = relative_weights(batch.sample_weights[self._sample_weight_name].to(torch.float32))
        losses: dict[str, torch.Tensor] = {}
        for loss_config in self._base_model_config.losses:
            losses.update(self._loss_impl(predictions, batch, label, weight, loss_config, self._num_class))
        losses.update(self._group_feature_p_losses)
        self._group_feature_p_losses = {}
        return losses

    def _loss_impl(
        self,
        predictions: dict[str, torch.Tensor],
        batch: Batch,
        label: torch.Tensor,
        loss_weight: torch.Tensor | None,
        loss_config: Any,
        num_class: int = 1,
        suffix: str = "",
    ) -> dict[str, torch.Tensor]:
        spec, settings = loss_spec(loss_config)
        preds = predictions[("y" if spec.output is Output.VALUE else "logits") + suffix]
        target = label.to(torch.int64) if spec.output is Output.SOFTMAX else label.to(preds.dtype)
        ids = group_ids(settings, spec.grouping_field, batch)
        module = self._loss_modules[spec.name + suffix]
        try:
            value = module(preds, target) if ids is None else module(preds, target, ids)
        except IndexError as error:  # how torch says on the CPU that there is no such class
            _check_classes(batch, label, num_class, error)
            raise
        if loss_weight is not None:
            value = torch.mean(value * loss_weight)
        return {spec.name + suffix: value}

    def init_metric(self) -> None:
        """Build the configured metrics, the train metrics, and a mean for each loss under the loss's key."""
        for metric_config in self._base_model_config.metrics:
            self._init_metric_impl(metric_config, self._num_class)
        for metric_config in self._base_model_config.train_metrics:
            self._init_train_metric_impl(metric_config, self._num_class)
        for loss_config in self._base_model_config.losses:
            self._init_loss_metric_impl(loss_config)

    def _init_metric_impl(
        self, metric_config: Any, num_class: int = 1, suffix: str = "", *, losses: Sequence[Any] | None = None
    ) -> None:
        """`losses` are the task's own; None = those of the model."""
        spec, _ = metric_spec(metric_config)
        key = metric_key(metric_config) + suffix
        if key in self._metric_modules:
            raise ConfigError(f"metric {key!r} is configured twice; keep one")
        outputs = self._outputs(losses)
        self._metric_modules[key] = build_metric(metric_config, task=self._task, num_class=num_class, outputs=outputs)
        self._metric_inputs[key] = metric_input(spec, outputs, num_class)

    def _init_train_metric_impl(
        self, metric_config: Any, num_class: int = 1, suffix: str = "", *, losses: Sequence[Any] | None = None
    ) -> None:
        spec, settings = metric_spec(metric_config)
        key = metric_key(metric_config) + suffix
        if key in self._train_metric_modules:
            raise ConfigError(f"train metric {key!r} is configured twice; keep one")
        if not spec.train:
            raise ConfigError(f"{spec.name} cannot be a train metric")
        outputs = self._outputs(losses)
        metric = build_metric(metric_config, task=self._task, num_class=num_class, outputs=outputs)
        if isinstance(metric, AUC):  # an exact one cannot fade
            metric = DecayAUC(thresholds=settings.thresholds)  # type: ignore[attr-defined]
        self._metric_inputs[key] = metric_input(spec, outputs, num_class)
        self._train_metric_modules[key] = TrainMetricWrapper(metric, metric_config.decay_rate, metric_config.decay_step)

    def _init_loss_metric_impl(self, loss_config: Any, suffix: str = "") -> None:
        self._metric_modules[loss_spec(loss_config)[0].name + suffix] = torchmetrics.MeanMetric()

    def _outputs(self, losses: Sequence[Any] | None) -> set[Output]:
        configs = self._base_model_config.losses if losses is None else losses
        return {loss_spec(loss_config)[0].output for loss_config in configs}

    def update_metric(
        self,
        predictions: dict[str, torch.Tensor],
        batch: Batch,
        losses: dict[str, torch.Tensor] | None = None,
    ) -> None:
        """Add a batch to the metrics; `losses` feeds the mean of each loss, over rows."""
        label = batch.labels[self._label_name]
        for metric_config in self._base_model_config.metrics:
            self._update_metric_impl(predictions, batch, label, metric_config, self._num_class)
        self._update_loss_metrics(losses, label.size(0))

    def _update_loss_metrics(self, losses: dict[str, torch.Tensor] | None, num_rows: int) -> None:
        for name, value in (losses or {}).items():
            if name in self._metric_modules:
                self._metric_modules[name].update(value, num_rows)  # type: ignore[operator]

    def update_train_metric(self, predictions: dict[str, torch.Tensor], batch: Batch) -> None:
        """Add a training batch to the decayed train metrics."""
        label = batch.labels[self._label_name]
        for metric_config in self._base_model_config.train_metrics:
            self._update_train_metric_impl(predictions, batch, label, metric_config, self._num_class)

    def _update_metric_impl(
        self,
        predictions: dict[str, torch.Tensor],
        batch: Batch,
        label: torch.Tensor,
        metric_config: Any,
        num_class: int = 1,
        suffix: str = "",
    ) -> None:
        self._feed(self._metric_modules, predictions, batch, label, metric_config, suffix)

    def _update_train_metric_impl(
        self,
        predictions: dict[str, torch.Tensor],
        batch: Batch,
        label: torch.Tensor,
        metric_config: Any,
        num_class: int = 1,
        suffix: str = "",
    ) -> None:
        self._feed(self._train_metric_modules, predictions, batch, label, metric_config, suffix)

    def _feed(
        self,
        modules: nn.ModuleDict,
        predictions: dict[str, torch.Tensor],
        batch: Batch,
        label: torch.Tensor,
        metric_config: Any,
        suffix: str,
    ) -> None:
        spec, settings = metric_spec(metric_config)
        key = metric_key(metric_config) + suffix
        preds = predictions[self._metric_inputs[key] + suffix]
        ids = group_ids(settings, spec.grouping_field, batch)
        modules[key].update(preds, label, *([] if ids is None else [ids]))  # type: ignore[operator]


def _check_classes(batch: Batch, label: torch.Tensor, num_class: int, error: IndexError) -> None:
    wrong = label[(label < 0) | (label >= num_class)]
    if len(wrong):
        name = next(name for name, values in batch.labels.items() if values is label)
        raise DataError(
            f"label {name!r} holds {wrong[0].item()}, but num_class = {num_class} has the classes 0 to {num_class - 1}"
        ) from error
