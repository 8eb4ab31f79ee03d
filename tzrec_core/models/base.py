"""What every model is: predictions, losses and metrics over one batch."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from tzrec_core.config import model_name
from tzrec_core.data.batch import Batch
from tzrec_core.errors import ConfigError
from tzrec_core.features import BaseFeature
from tzrec_core.metrics import TrainMetricWrapper
from tzrec_core.modules.base import BaseModule
from tzrec_core.modules.embedding_group import EmbeddingGroup
from tzrec_core.modules.variational_dropout import VariationalDropout
from tzrec_core.protos.model_pb2 import FeatureGroupType


class BaseModel(BaseModule):
    """Base of all models; subclasses compute predictions and say which losses and metrics they have.

    Args:
        model_config: the assembled ModelConfig; the plugin's own message becomes `self._model_config`.
        features: features of the whole config.
        labels: names of the labels, in the order of `data_config.label_fields`.
        sample_weights: names of the sample weights.
        **kwargs: `sampler_type`, for models that read it.
    """

    def __init__(
        self,
        model_config: Any,
        features: Sequence[BaseFeature],
        labels: Sequence[str],
        sample_weights: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        self._base_model_config = model_config
        name = model_name(model_config)
        self._model_config = getattr(model_config, name) if name else None
        self._features = list(features)
        self._feature_groups = list(model_config.feature_groups)
        self._labels = list(labels)
        self._sample_weights = list(sample_weights or [])
        self._metric_modules = nn.ModuleDict()
        self._train_metric_modules = nn.ModuleDict()
        self._loss_modules = nn.ModuleDict()

    def predict(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Compute the predictions of a batch; the keys are those of the model's task."""
        raise NotImplementedError

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Same as `predict`."""
        return self.predict(batch)

    def init_loss(self) -> None:
        """Build the loss modules; called once, after construction."""
        raise NotImplementedError

    def loss(self, predictions: dict[str, torch.Tensor], batch: Batch) -> dict[str, torch.Tensor]:
        """Scalar losses by key; the total loss is their sum."""
        raise NotImplementedError

    def init_metric(self) -> None:
        """Build the metric modules; called once, after `init_loss`."""
        raise NotImplementedError

    def update_metric(
        self,
        predictions: dict[str, torch.Tensor],
        batch: Batch,
        losses: dict[str, torch.Tensor] | None = None,
    ) -> None:
        """Add a batch to the metrics; `losses` feeds the mean of each loss."""
        raise NotImplementedError

    def compute_metric(self) -> dict[str, torch.Tensor]:
        """Value of each metric since the last call; starts them afresh."""
        values = {}
        for name, metric in self._metric_modules.items():
            values[name] = metric.compute()
            metric.reset()
        return values

    def update_train_metric(self, predictions: dict[str, torch.Tensor], batch: Batch) -> None:
        """Add a training batch to the decayed train metrics."""
        raise NotImplementedError

    def compute_train_metric(self) -> dict[str, torch.Tensor]:
        """Current value of each decayed train metric."""
        values = {}
        for name, metric in self._train_metric_modules.items():
            assert isinstance(metric, TrainMetricWrapper)
            values[name] = metric.compute()
        return values

    def on_train_end(self) -> None:
        """Called once after the last training step, before the last checkpoint is written."""

    def sparse_parameters(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Embedding tables: (trainable, frozen)."""
        trainable: list[nn.Parameter] = []
        frozen: list[nn.Parameter] = []
        for module in self.modules():
            if isinstance(module, EmbeddingGroup):
                for into, tables in zip((trainable, frozen), module.sparse_parameters()):
                    into.extend(tables)
        return trainable, frozen

    def get_features_in_feature_groups(self, feature_groups: Sequence[Any]) -> list[BaseFeature]:
        """The features that the groups use, sequence groups included, each once, in config order."""
        names = {n for g in feature_groups for n in g.feature_names}
        names |= {n for g in feature_groups for s in g.sequence_groups for n in s.feature_names}
        return [f for f in self._features if f.name in names]


def variational_dropouts(
    settings: Any, embedding_group: EmbeddingGroup, feature_groups: Sequence[Any]
) -> nn.ModuleDict:
    """A variational dropout for each DEEP or WIDE group of several features, by the group's name.

    Args:
        settings: the VariationalDropout message of model_config.
        embedding_group: knows the features' widths.
        feature_groups: the groups to drop features of; SEQUENCE groups are passed over.

    Raises:
        ConfigError: there is a JAGGED_SEQUENCE group.
    """
    dropouts = nn.ModuleDict()
    for group in feature_groups:
        if group.group_type == FeatureGroupType.SEQUENCE:
            continue
        if group.group_type == FeatureGroupType.JAGGED_SEQUENCE:
            raise ConfigError(
                f"model_config.variational_dropout does not work on JAGGED_SEQUENCE groups, such as "
                f"{group.group_name!r}; remove it or make the group a SEQUENCE"
            )
        dims = embedding_group.group_feature_dims(group.group_name)
        if len(dims) > 1:
            dropouts[group.group_name] = VariationalDropout(
                dims,
                group.group_name,
                settings.regularization_lambda,
                settings.embedding_wise_variational_dropout,
            )
    return dropouts
