import torch
from torch import nn

from tzrec_core.models import RankModel


class Tiny(RankModel):
    """A hidden layer with batch norm, so that there are buffers, and dropout, so that steps draw at random."""

    def __init__(self, model_config, features, labels, sample_weights=None, **kwargs):
        super().__init__(model_config, features, labels, sample_weights, **kwargs)
        self.init_input()
        settings = self._model_config
        self.hidden = nn.Linear(self.embedding_group.group_total_dim("deep"), settings.hidden)
        self.norm = nn.BatchNorm1d(settings.hidden)
        self.dropout = nn.Dropout(settings.dropout)
        self.output = nn.Linear(settings.hidden, self._num_class)
        if settings.unused_layer:
            self.unused = nn.Linear(2, 2)

    def predict(self, batch):
        deep = self.build_input(batch)["deep"]
        hidden = self.dropout(torch.relu(self.norm(self.hidden(deep))))
        return self._output_to_prediction(self.output(hidden))
