"""Logistic regression."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from tzrec_core.data import Batch
from tzrec_core.features import BaseFeature
from tzrec_core.models import RankModel


class PlainModel(RankModel):
    """One linear layer on the first group."""

    def __init__(
        self,
        model_config: Any,
        features: Sequence[BaseFeature],
        labels: Sequence[str],
        sample_weights: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model_config, features, labels, sample_weights, **kwargs)
        self.init_input()
        self._group = self.embedding_group.group_names()[0]
        width = self.embedding_group.group_total_dim(self._group)
        self.linear = nn.Linear(width, self._num_class, bias=self._model_config.use_bias)

    def predict(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Predictions of RankModel."""
        return self._output_to_prediction(self.linear(self.build_input(batch)[self._group]))
