"""A small ranking model, the plugin that offers it, and what the tests of models build it with.

conftest.py makes it importable as `tzrec_toy`.
"""

from dataclasses import dataclass

import torch
from torch import nn

from tzrec_core.config import parse_config
from tzrec_core.features import create_features
from tzrec_core.models import RankModel, create_model
from tzrec_core.modules import MLP
from tzrec_core.plugins import Group, LossSpec, MetricSpec, ModelSpec, Output, Plugin
from tzrec_core.testing.golden import golden_batch

FEATURES = """
feature_configs { id_feature { feature_name: "user" expression: "user:user" num_buckets: 5 embedding_dim: 2 } }
feature_configs { id_feature { feature_name: "tags" expression: "item:tags" num_buckets: 5 embedding_dim: 3 } }
feature_configs { raw_feature { feature_name: "price" expression: "item:price" } }
feature_configs { sequence_id_feature { feature_name: "clicks" expression: "user:clicks" sequence_length: 9
  num_buckets: 5 embedding_dim: 2 } }
"""
GROUP = """feature_groups { group_name: "all" group_type: DEEP
  feature_names: "user" feature_names: "tags" feature_names: "price" }"""


@dataclass(frozen=True)
class ToySettings:
    """Settings of `toy`."""

    width: int = 4


class Toy(RankModel):
    """An MLP over the group `all`."""

    def __init__(self, model_config, features, labels, sample_weights=None, **kwargs):
        super().__init__(model_config, features, labels, sample_weights, **kwargs)
        self.init_input()
        self.mlp = MLP(self.embedding_group.group_total_dim("all"), hidden_units=[self._model_config.width])
        self.output = nn.Linear(self._model_config.width, self._num_class)

    def predict(self, batch):
        grouped = self.build_input(batch)
        return self._output_to_prediction(self.output(self.mlp(grouped["all"])))


class NotAModel(nn.Module):
    """What a plugin must not offer as a model."""


class AbsoluteLoss(nn.Module):
    """|y - label|."""

    def __init__(self, recon_type="l2", reduction="mean"):
        super().__init__()
        self.recon_type, self.reduction = recon_type, reduction

    def forward(self, preds, labels):
        loss = (preds - labels).abs()
        return loss.mean() if self.reduction == "mean" else loss


PLUGIN = Plugin(
    name="toy",
    distribution="tzrec-toy",
    version="0.1.0",
    specs=[
        ModelSpec(
            name="toy",
            target="tzrec_toy:Toy",
            config="tzrec_toy:ToySettings",
            summary="A toy.",
            groups=(Group("all"), Group("clicks", types=("SEQUENCE", "JAGGED_SEQUENCE"), required=False)),
        ),
        ModelSpec(name="no_model", target="tzrec_toy:NotAModel", config="tzrec_toy:ToySettings", summary="Not one."),
        LossSpec(
            name="absolute_loss",
            target="tzrec_toy:AbsoluteLoss",
            config="tzrec_core.protos.loss_pb2:SidReconLoss",  # any message that no core loss uses
            summary="Absolute error.",
            output=Output.VALUE,
        ),
        MetricSpec(
            name="relative_l1",
            target="tzrec_core.metrics:RelativeL1",
            config="tzrec_core.protos.loss_pb2:SidContrastiveLoss",
            summary="Relative error.",
            outputs=(Output.VALUE,),
        ),
    ],
)


def toy_config(body="losses { binary_cross_entropy {} }", *, groups=GROUP, model="toy {}", features=FEATURES, data=""):
    """A config whose model_config has `body`."""
    text = f'data_config {{ label_fields: "label" {data} }} {features} model_config {{ {groups} {model} {body} }}'
    return parse_config(text, partial=True)


def toy_model(*args, sample_weights=(), ready=True, **kwargs):
    """A toy in eval mode; `ready` = with its losses and metrics built."""
    config = toy_config(*args, **kwargs)
    features = create_features(config.feature_configs, config.data_config)
    torch.manual_seed(0)
    model = create_model(config.model_config, features, ["label"], list(sample_weights)).eval()
    if ready:
        model.init_loss()
        model.init_metric()
    return model


def jagged(rows):
    """The column of a golden batch for rows of ids."""
    return {"lengths": [len(row) for row in rows], "values": [value for row in rows for value in row]}


def toy_batch(labels=(1, 0, 1, 0), users=((1,), (1,), (2,), (2,)), dtype="int64", **weights):
    """A batch with these labels and users, and sample weights by name."""
    n = len(labels)
    return golden_batch(
        {
            "sparse": {
                "__BASE__": {
                    "user": jagged(users),
                    "tags": jagged([[i % 5] * (i % 3) for i in range(n)]),
                    "clicks": jagged([[4 - i % 5] * (i % 4) for i in range(n)]),
                }
            },
            "dense": {"__BASE__": {"price": [[i / 4] for i in range(n)]}},
            "labels": {"label": {"values": list(labels), "dtype": dtype}},
            "sample_weights": {name: {"values": list(w)} for name, w in weights.items()},
        }
    )
