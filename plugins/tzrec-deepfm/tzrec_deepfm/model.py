"""DeepFM: a factorization machine and a deep net that share their embeddings."""

# B batch, F fields, D embedding dim

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from tzrec_core.config import config_to_kwargs
from tzrec_core.data import Batch
from tzrec_core.errors import ConfigError
from tzrec_core.features import BaseFeature
from tzrec_core.models import RankModel
from tzrec_core.modules import MLP, FactorizationMachine


class DeepFM(RankModel):
    """First-order terms, pairwise products and a deep net, summed into one logit.

    Guo et al., IJCAI 2017, sec. 2, eq. 1-4. Departs from the paper: the three parts may meet in a `final` MLP; the
    first-order weight of an id is the sum of `wide_embedding_dim` numbers.

    Groups: `wide` (WIDE), `deep` (DEEP), and `fm` (DEEP), which defaults to `deep`. All features of the group that
    feeds the factorization machine have one width. With num_class > 1 and no `final`, the first-order terms and the
    products add one number to the logits of all classes.

    Raises:
        ConfigError: a group is missing, or widths differ in the group that feeds the factorization machine.
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
        self._fm_group = "fm" if self.embedding_group.has_group("fm") else "deep"
        dims = self.embedding_group.group_dims(self._fm_group)
        if len(set(dims)) > 1:
            widths = ", ".join(f"{n}: {d}" for n, d in self.embedding_group.group_feature_dims(self._fm_group).items())
            raise ConfigError(
                f"deepfm multiplies the features of group {self._fm_group!r} with each other, so they need one "
                f"width, but have {widths}. Give them one embedding_dim, or list those of one width in a group 'fm'."
            )
        self.embedding_group.group_dims("wide")  # says what is missing
        self._num_fields, self._dim = len(dims), dims[0]
        self.fm = FactorizationMachine()
        self.deep_mlp = MLP(self.embedding_group.group_total_dim("deep"), **config_to_kwargs(self._model_config.deep))
        self._has_final = self._model_config.HasField("final")
        output_dim = self.deep_mlp.output_dim()
        if self._has_final:
            self.final_mlp = MLP(1 + self._dim + output_dim, **config_to_kwargs(self._model_config.final))
            output_dim = self.final_mlp.output_dim()
        self.output_mlp = nn.Linear(output_dim, self._num_class)

    def predict(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Predictions of RankModel."""
        grouped = self.build_input(batch)
        wide_B1 = torch.sum(grouped["wide"], dim=1, keepdim=True)
        fields_BFD = grouped[self._fm_group].reshape(-1, self._num_fields, self._dim)
        fm_BD = self.fm(fields_BFD)
        deep = self.deep_mlp(grouped["deep"])
        if self._has_final:
            output = self.output_mlp(self.final_mlp(torch.cat([wide_B1, fm_BD, deep], dim=1)))
        else:
            output = wide_B1 + torch.sum(fm_BD, dim=1, keepdim=True) + self.output_mlp(deep)
        return self._output_to_prediction(output)
