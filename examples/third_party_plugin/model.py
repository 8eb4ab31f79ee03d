"""FwFM: a factorization machine that knows which pairs of fields matter."""

# B batch, F fields, D embedding dim, P pairs of fields

from torch import nn

from tzrec_core.errors import ConfigError
from tzrec_core.models import RankModel


class Fwfm(RankModel):
    """A weight for each id, and products of embeddings, weighted by the pair of fields that they come from.

    Pan et al., WWW 2018, eq. 5. Departs from the paper: the weight of an id is the sum of `wide_embedding_dim` numbers.

    Raises:
        ConfigError: the features of the group `fields` differ in width, or there is only one.
    """

    def __init__(self, model_config, features, labels, sample_weights=None, **kwargs):
        super().__init__(model_config, features, labels, sample_weights, **kwargs)
        self.init_input()
        dims = self.embedding_group.group_dims("fields")
        if len(dims) < 2 or len(set(dims)) > 1:
            raise ConfigError(f"fwfm multiplies the features of group 'fields': two or more of one width, not {dims}")
        self._num_fields, self._dim = len(dims), dims[0]
        self._pairs = [i * len(dims) + j for i in range(len(dims)) for j in range(i + 1, len(dims))]
        self.dropout = nn.Dropout(self._model_config.pair_dropout)
        self.strength = nn.Linear(len(self._pairs), self._num_class)
        nn.init.ones_(self.strength.weight)  # a factorization machine, to begin with

    def predict(self, batch):
        """Predictions of RankModel."""
        grouped = self.build_input(batch)
        wide_B1 = grouped["wide"].sum(1, keepdim=True)
        fields_BFD = grouped["fields"].reshape(-1, self._num_fields, self._dim)
        products_BFF = fields_BFD @ fields_BFD.transpose(1, 2)
        products_BP = products_BFF.flatten(1)[:, self._pairs]
        return self._output_to_prediction(wide_B1 + self.strength(self.dropout(products_BP)))
