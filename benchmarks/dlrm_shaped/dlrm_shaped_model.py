"""DLRM (Naumov et al., 2019, arXiv:1906.00091) as small as the benchmark needs it."""

# B batch, F vectors, D embedding dim, P pairs

from typing import Any

import torch
from torch import Tensor, nn

from tzrec_core.data import Batch
from tzrec_core.models import RankModel
from tzrec_core.modules import MLP


class DLRMShaped(RankModel):
    def __init__(
        self, model_config: Any, features: Any, labels: Any, sample_weights: Any = None, **kwargs: Any
    ) -> None:
        super().__init__(model_config, features, labels, sample_weights, **kwargs)
        self.init_input()
        dims = self.embedding_group.group_dims("sparse")
        settings = self._model_config
        self._num_vectors, self._dim = len(dims) + 1, dims[0]
        num_pairs = self._num_vectors * (self._num_vectors - 1) // 2
        self.bottom = MLP(self.embedding_group.group_total_dim("dense"), list(settings.bottom))
        self.top = MLP(self._dim + num_pairs, list(settings.top))
        self.output = nn.Linear(self.top.output_dim(), self._num_class)

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        grouped = self.build_input(batch)
        bottom_BD = self.bottom(grouped["dense"])
        vectors_BFD = torch.cat([bottom_BD, grouped["sparse"]], dim=1).view(-1, self._num_vectors, self._dim)
        products_BFF = torch.bmm(vectors_BFD, vectors_BFD.transpose(1, 2))
        row_P, column_P = torch.tril_indices(self._num_vectors, self._num_vectors, -1, device=bottom_BD.device)
        products_BP = products_BFF.flatten(1).index_select(1, row_P * self._num_vectors + column_P)
        return self._output_to_prediction(self.output(self.top(torch.cat([bottom_BD, products_BP], dim=1))))
