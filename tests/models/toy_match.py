"""Small matching models, one of either kind of towers, and the plugin that offers them.

conftest.py makes it importable as `tzrec_toy_match`. Names and settings are those of TorchEasyRec's DSSM.
"""

from dataclasses import dataclass
from enum import Enum

from torch import nn

from tzrec_core.config import config_to_kwargs
from tzrec_core.models import MatchModel, MatchTower, MatchTowerWoEG
from tzrec_core.modules import MLP, EmbeddingGroup
from tzrec_core.plugins import Group, LossSpec, ModelSpec, Plugin, Task
from tzrec_core.protos.tower_pb2 import Tower


class Similarity(Enum):
    COSINE = 0
    INNER_PRODUCT = 1
    EUCLID = 2


@dataclass(frozen=True)
class DSSMSettings:
    user_tower: Tower
    item_tower: Tower
    output_dim: int
    similarity: Similarity = Similarity.INNER_PRODUCT
    temperature: float = 1.0
    in_batch_negative: bool = False


def add_layers(tower, embedding_group):
    tower.mlp = MLP(embedding_group.group_total_dim(tower._group_name), **config_to_kwargs(tower._tower_config.mlp))
    if tower._output_dim:
        tower.output = nn.Linear(tower.mlp.output_dim(), tower._output_dim)


def run_layers(tower, grouped):
    hidden = tower.mlp(grouped[tower._group_name])
    return tower._normalize(tower.output(hidden) if tower._output_dim else hidden)


class DSSMTower(MatchTower):
    """A tower with tables of its own."""

    def __init__(self, *args):
        super().__init__(*args)
        self.init_input()
        add_layers(self, self.embedding_group)

    def forward(self, batch):
        return run_layers(self, self.build_input(batch))


class DSSMTowerV2(MatchTowerWoEG):
    """A tower on the model's tables."""

    def __init__(self, *args, embedding_group):
        super().__init__(*args)
        self.init_input(embedding_group)
        add_layers(self, embedding_group)

    def forward(self, grouped):
        return run_layers(self, self.build_input(grouped))


def tower_arguments(model, tower_config):
    groups = [group for group in model._feature_groups if group.group_name == tower_config.input]
    features = model.get_features_in_feature_groups(groups)
    settings = model._model_config
    return tower_config, settings.output_dim, settings.similarity, groups, features, model._base_model_config


class DSSM(MatchModel):
    """Two MLPs, each on its own embeddings."""

    def __init__(self, model_config, features, labels, sample_weights=None, **kwargs):
        super().__init__(model_config, features, labels, sample_weights, **kwargs)
        self.user_tower = DSSMTower(*tower_arguments(self, self._model_config.user_tower))
        self.item_tower = DSSMTower(*tower_arguments(self, self._model_config.item_tower))

    def predict(self, batch):
        return self._output_to_prediction(self.user_tower(batch), self.item_tower(batch), batch)


class DSSMV2(MatchModel):
    """Two MLPs on embeddings that they share."""

    def __init__(self, model_config, features, labels, sample_weights=None, **kwargs):
        super().__init__(model_config, features, labels, sample_weights, **kwargs)
        self.embedding_group = EmbeddingGroup(self._features, self._feature_groups)
        for name in ("user_tower", "item_tower"):
            arguments = tower_arguments(self, getattr(self._model_config, name))
            self.add_module(name, DSSMTowerV2(*arguments, embedding_group=self.embedding_group))

    def predict(self, batch):
        grouped = self.embedding_group(batch)
        return self._output_to_prediction(self.user_tower(grouped), self.item_tower(grouped), batch)


class Hinge(nn.Module):
    """How far the best rival is above the positive."""

    def __init__(self, recon_type="l2", reduction="mean"):
        super().__init__()
        self.reduction = reduction

    def forward(self, preds, labels):
        loss = preds.amax(1) - preds.gather(1, labels[:, None])[:, 0]
        return loss.mean() if self.reduction == "mean" else loss


def spec(name, target):
    towers = tuple(Group(from_field=f"{side}_tower.input") for side in ("user", "item"))
    return ModelSpec(
        name=name,
        target=f"tzrec_toy_match:{target}",
        config="tzrec_toy_match:DSSMSettings",
        task=Task.MATCH,
        summary="Two towers.",
        groups=towers,
    )


PLUGIN = Plugin(
    name="toy_match",
    distribution="tzrec-toy-match",
    version="0.1.0",
    specs=[
        spec("dssm", "DSSM"),
        spec("dssm_v2", "DSSMV2"),
        LossSpec(
            name="hinge",
            target="tzrec_toy_match:Hinge",
            config="tzrec_core.protos.loss_pb2:SidReconLoss",  # any message that no core loss uses
            summary="A loss of a plugin.",
            tasks=frozenset({Task.MATCH}),
        ),
    ],
)
