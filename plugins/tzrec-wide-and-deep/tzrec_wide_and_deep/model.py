"""Wide & Deep: a linear model beside a deep net."""

# B batch

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from tzrec_core.config import config_to_kwargs
from tzrec_core.data import Batch
from tzrec_core.features import BaseFeature
from tzrec_core.models import RankModel
from tzrec_core.modules import MLP


class WideAndDeep(RankModel):
    """A linear model over ids and a deep net over embeddings, summed into one logit.

    Cheng et al., DLRS 2016, sec. 3, eq. 3. Departs from the paper: the two parts may meet in a `final` MLP; the
    weight of an id is the sum of `wide_embedding_dim` numbers; crosses are features, not part of the model.

    Groups: `wide` (WIDE), `deep` (DEEP). With num_class > 1 and no `final`, the linear model adds one number to the
    logits of all classes.

    Raises:
        ConfigError: a group is missing.
    """

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
        self.embedding_group.group_dims("wide")  # says what is missing
        self.deep_mlp = MLP(self.embedding_group.group_total_dim("deep"), **config_to_kwargs(self._model_config.deep))
        self._has_final = self._model_config.HasField("final")
        output_dim = self.deep_mlp.output_dim()
        if self._has_final:
            self.final_mlp = MLP(1 + output_dim, **config_to_kwargs(self._model_config.final))
            output_dim = self.final_mlp.output_dim()
        self.output_mlp = nn.Linear(output_dim, self._num_class)

    def predict(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Predictions of RankModel."""
        grouped = self.build_input(batch)
        wide_B1 = torch.sum(grouped["wide"], dim=1, keepdim=True)
        deep = self.deep_mlp(grouped["deep"])
        if self._has_final:
            output = self.output_mlp(self.final_mlp(torch.cat([wide_B1, deep], dim=1)))
        else:
            output = wide_B1 + self.output_mlp(deep)
        return self._output_to_prediction(output)
