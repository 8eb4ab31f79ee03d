"""Models that retrieve: a user and an item side that meet in a similarity."""

# B rows, I item rows, D width of the embeddings, C candidates of a row, N shared negatives, H hard negatives

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
import torchmetrics
from torch import Tensor, nn

from tzrec_core.config import config_to_kwargs, negatives_problem
from tzrec_core.data.batch import Batch
from tzrec_core.errors import ConfigError
from tzrec_core.features import BaseFeature
from tzrec_core.metrics import TrainMetricWrapper
from tzrec_core.models.base import BaseModel, variational_dropouts
from tzrec_core.models.objectives import (
    build_loss,
    build_metric,
    group_ids,
    loss_spec,
    metric_key,
    metric_spec,
    relative_weights,
)
from tzrec_core.modules.base import BaseModule
from tzrec_core.modules.embedding_group import EmbeddingGroup
from tzrec_core.plugins import Output, Task
from tzrec_core.protos.simi_pb2 import Similarity

HARD_NEG_INDICES = "hard_neg_indices"  # in Batch.additional_infos: (H, 2) int64, see `MatchModel.sim`

_NO_HARD_NEGATIVE = -1e32


class MatchModel(BaseModel):
    """Base of matching models.

    A subclass builds its towers as `user_tower` and `item_tower` in its constructor, embeds the users and the items in
    `predict`, and hands both to `_output_to_prediction`. If it computes its similarity otherwise, it calls `sim` and
    divides by the temperature itself.

    `in_batch_negative` in the model's settings decides where the negatives of a row come from, and with that what the
    columns of `similarity` are:

        in_batch_negative, I = B: C = B, entry [i, j] is of user i and the item of row j; the label of row i is i.
        a sampler, I = B + N + H: C = 1 + N + the largest slot + 1. Column 0 is the row's own item, its label; then come
            the N negatives that all rows share, then the row's hard negatives by slot, about -1e32 where it has none.

    Predictions, float32, also under autocast:
        in training and evaluation: `similarity` (B, C).
        for inference (`is_inference`), where there are no negatives: `similarity` (B,), of each row's own user and
            item, `user_tower_emb` (B, D) and `item_tower_emb` (B, D).

    Labels of the batch are not read. With a sample weight w the loss is mean(loss * w) / mean(w), and 0 when all
    weights are 0.

    Raises:
        ConfigError: there are two sources of negatives, or none to train with; the number of losses is not one; a loss
            or metric does not fit; the temperature is not positive.
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
        settings = config_to_kwargs(self._model_config) if self._model_config is not None else {}
        self._num_class = model_config.num_class
        self._label_name = self._labels[0] if self._labels else ""
        self._sample_weight_name = self._sample_weights[0] if self._sample_weights else ""
        self._sampler_type: str | None = kwargs.get("sampler_type")
        self._in_batch_negative: bool = settings.get("in_batch_negative", False)
        self._is_euclid = settings.get("similarity") == "EUCLID"
        self._temperature: float = settings.get("temperature", 1.0)
        if not self._temperature > 0:
            raise ConfigError(f"temperature = {self._temperature:g}: similarities are divided by it; write more than 0")
        if self._in_batch_negative and self._sampler_type:
            raise ConfigError(negatives_problem(True, self._sampler_type))

    def sim(self, user_emb: Tensor, item_emb: Tensor, hard_neg_indices: Tensor | None = None) -> Tensor:
        """Similarity of users and items: dot product, or minus the distance when the settings say EUCLID.

        Cosines come from towers whose outputs have length 1. The class says which columns there are.

        Args:
            user_emb: (B, D).
            item_emb: (I, D).
            hard_neg_indices: (H, 2) int64, user row and slot of the last H rows of `item_emb`; None = there are none.

        Returns:
            (B, C), and for inference (B,); float32.
        """
        if self.is_inference:
            return _of_pairs(user_emb, item_emb, self._is_euclid).to(torch.float32)
        if self._in_batch_negative:
            return _of_all(user_emb, item_emb, self._is_euclid).to(torch.float32)
        return _of_candidates(user_emb, item_emb, hard_neg_indices, self._is_euclid)

    def _output_to_prediction(self, user_emb: Tensor, item_emb: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Predictions of the towers' outputs (B, D) and (I, D)."""
        similarity = self.sim(user_emb, item_emb, batch.additional_infos.get(HARD_NEG_INDICES)) / self._temperature
        if not self.is_inference:
            return {"similarity": similarity}
        return {
            "similarity": similarity,
            "user_tower_emb": user_emb.to(torch.float32),
            "item_tower_emb": item_emb.to(torch.float32),
        }

    def init_loss(self) -> None:
        """Build the configured loss."""
        can_choose = hasattr(self._model_config, "in_batch_negative")  # else it has candidates of its own
        if can_choose and (problem := negatives_problem(self._in_batch_negative, self._sampler_type)):
            raise ConfigError(problem)
        losses = self._base_model_config.losses
        if len(losses) != 1:
            raise ConfigError(
                f"model_config.losses has {len(losses)} losses; a matching model takes one: "
                "losses { softmax_cross_entropy {} }"
            )
        self._init_loss_impl(losses[0], self._num_class, "none" if self._sample_weight_name else "mean")

    def _init_loss_impl(self, loss_config: Any, num_class: int = 1, reduction: str = "none", suffix: str = "") -> None:
        spec, settings = loss_spec(loss_config)
        if getattr(settings, "label_smoothing", 0) and str(self._sampler_type).startswith("hard_"):
            raise ConfigError(
                f"{spec.name}.label_smoothing spreads the label over all candidates, of which rows lack some with "
                f"{self._sampler_type}; remove it"
            )
        self._loss_modules[spec.name + suffix] = build_loss(
            loss_config, task=Task.MATCH, num_class=num_class, reduction=reduction
        )

    def loss(self, predictions: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """The scalar loss by its name, and `<group>_feature_p_loss` of the towers with variational dropout."""
        label = self._positives(predictions["similarity"])
        weight = None
        if self._sample_weight_name:
            weight = relative_weights(batch.sample_weights[self._sample_weight_name].to(torch.float32))
        losses: dict[str, Tensor] = {}
        for loss_config in self._base_model_config.losses:
            losses.update(self._loss_impl(predictions, batch, label, weight, loss_config, self._num_class))
        for module in self.modules():
            if isinstance(module, _Tower):
                losses.update(module._take_feature_p_losses())
        return losses

    def _loss_impl(
        self,
        predictions: dict[str, Tensor],
        batch: Batch,
        label: Tensor,
        loss_weight: Tensor | None,
        loss_config: Any,
        num_class: int = 1,
        suffix: str = "",
    ) -> dict[str, Tensor]:
        spec, settings = loss_spec(loss_config)
        ids = group_ids(settings, spec.grouping_field, batch)
        module = self._loss_modules[spec.name + suffix]
        similarity = predictions[f"similarity{suffix}"]
        value = module(similarity, label) if ids is None else module(similarity, label, ids)
        if loss_weight is not None:
            value = torch.mean(value * loss_weight)
        return {spec.name + suffix: value}

    def _positives(self, similarity: Tensor) -> Tensor:
        """The column (B,) int64 of each row's own item."""
        if self._in_batch_negative:
            return torch.arange(similarity.size(0), device=similarity.device)
        return torch.zeros(similarity.size(0), dtype=torch.int64, device=similarity.device)

    def init_metric(self) -> None:
        """Build the configured metrics, the train metrics, and the mean of the loss under the loss's key."""
        for metric_config in self._base_model_config.metrics:
            self._init_metric_impl(metric_config, self._num_class)
        for metric_config in self._base_model_config.train_metrics:
            self._init_train_metric_impl(metric_config, self._num_class)
        for loss_config in self._base_model_config.losses:
            self._metric_modules[loss_spec(loss_config)[0].name] = torchmetrics.MeanMetric()

    def _init_metric_impl(self, metric_config: Any, num_class: int = 1, suffix: str = "") -> None:
        self._add_metric(self._metric_modules, metric_config, num_class, suffix)

    def _init_train_metric_impl(self, metric_config: Any, num_class: int = 1, suffix: str = "") -> None:
        spec, _ = metric_spec(metric_config)
        if not spec.train:
            raise ConfigError(f"{spec.name} cannot be a train metric")
        key = self._add_metric(self._train_metric_modules, metric_config, num_class, suffix)
        self._train_metric_modules[key] = TrainMetricWrapper(
            self._train_metric_modules[key],  # type: ignore[arg-type]
            metric_config.decay_rate,
            metric_config.decay_step,
        )

    def _add_metric(self, modules: nn.ModuleDict, metric_config: Any, num_class: int, suffix: str) -> str:
        key = metric_key(metric_config) + suffix
        if key in modules:
            raise ConfigError(f"metric {key!r} is configured twice; keep one")
        modules[key] = build_metric(metric_config, task=Task.MATCH, num_class=num_class, outputs={Output.SIMILARITY})
        return key

    def update_metric(
        self, predictions: dict[str, Tensor], batch: Batch, losses: dict[str, Tensor] | None = None
    ) -> None:
        """Add a batch to the metrics; `losses` feeds the mean of the loss, over rows."""
        label = self._positives(predictions["similarity"])
        for metric_config in self._base_model_config.metrics:
            self._update_metric_impl(predictions, batch, label, metric_config, self._num_class)
        for name, value in (losses or {}).items():
            if name in self._metric_modules:
                self._metric_modules[name].update(value, label.size(0))  # type: ignore[operator]

    def update_train_metric(self, predictions: dict[str, Tensor], batch: Batch) -> None:
        """Add a training batch to the decayed train metrics."""
        label = self._positives(predictions["similarity"])
        for metric_config in self._base_model_config.train_metrics:
            self._update_train_metric_impl(predictions, batch, label, metric_config, self._num_class)

    def _update_metric_impl(
        self,
        predictions: dict[str, Tensor],
        batch: Batch,
        label: Tensor,
        metric_config: Any,
        num_class: int = 1,
        suffix: str = "",
    ) -> None:
        self._feed(self._metric_modules, predictions, batch, label, metric_config, suffix)

    def _update_train_metric_impl(
        self,
        predictions: dict[str, Tensor],
        batch: Batch,
        label: Tensor,
        metric_config: Any,
        num_class: int = 1,
        suffix: str = "",
    ) -> None:
        self._feed(self._train_metric_modules, predictions, batch, label, metric_config, suffix)

    def _feed(
        self,
        modules: nn.ModuleDict,
        predictions: dict[str, Tensor],
        batch: Batch,
        label: Tensor,
        metric_config: Any,
        suffix: str,
    ) -> None:
        spec, settings = metric_spec(metric_config)
        ids = group_ids(settings, spec.grouping_field, batch)
        metric = modules[metric_key(metric_config) + suffix]
        metric.update(predictions[f"similarity{suffix}"], label, *([] if ids is None else [ids]))  # type: ignore[operator]


class _Tower(BaseModule):
    """What the towers share: their settings, variational dropout, and unit length for COSINE."""

    def __init__(
        self,
        tower_config: Any,
        output_dim: int,
        similarity: int,
        feature_groups: Sequence[Any],
        features: Sequence[BaseFeature],
        model_config: Any,
    ) -> None:
        super().__init__()
        self._tower_config = tower_config
        self._group_name: str = tower_config.input
        self._output_dim = output_dim
        self._similarity = similarity
        self._feature_groups = list(feature_groups)
        self._features = list(features)
        self._model_config = model_config
        self._group_feature_p_losses: dict[str, Tensor] = {}

    def _init_dropouts(self, embedding_group: EmbeddingGroup) -> None:
        if self._model_config.HasField("variational_dropout"):
            self.group_variational_dropouts = variational_dropouts(
                self._model_config.variational_dropout, embedding_group, self._feature_groups
            )

    def _drop(self, grouped: dict[str, Tensor]) -> dict[str, Tensor]:
        if self._model_config.HasField("variational_dropout"):
            for name, dropout in self.group_variational_dropouts.items():
                grouped[name], loss = dropout(grouped[name])
                if not self.is_inference:
                    self._group_feature_p_losses[f"{name}_feature_p_loss"] = loss
        return grouped

    def _take_feature_p_losses(self) -> dict[str, Tensor]:
        losses, self._group_feature_p_losses = self._group_feature_p_losses, {}
        return losses

    def _normalize(self, output: Tensor) -> Tensor:
        """The tower's output (.., D), of length 1 when the similarity is COSINE."""
        return F.normalize(output, dim=-1) if self._similarity == Similarity.COSINE else output


class MatchTower(_Tower):
    """Base of towers that embed their own groups, so that user and item side share no tables.

    A subclass calls `init_input()` in its constructor. Its `forward(batch)` calls `build_input(batch)` and returns
    embeddings (rows, D), through `_normalize`. Its last layer has the width `output_dim`, and is left out when that
    is 0.

    Args:
        tower_config: the tower's message, such as `Tower`; its `input` names the tower's main group, `_group_name`.
        output_dim: D; 0 = the width of the last hidden layer.
        similarity: a `Similarity`, or an enum with equal numbers.
        feature_groups: all groups that the tower reads.
        features: the features of these groups, and any others.
        model_config: the assembled ModelConfig.
    """

    embedding_group: EmbeddingGroup

    def init_input(self) -> None:
        """Build the embedding group, and a variational dropout per group when the config asks for it."""
        self.embedding_group = EmbeddingGroup(self._features, self._feature_groups)
        self._init_dropouts(self.embedding_group)

    def build_input(self, batch: Batch) -> dict[str, Tensor]:
        """The embedding group's output by its keys, see `EmbeddingGroup`, after variational dropout."""
        return self._drop(self.embedding_group(batch))


class MatchTowerWoEG(_Tower):
    """Base of towers without an embedding group: they read that of the model, so that both sides may share tables.

    A subclass calls `init_input(embedding_group)` in its constructor. Its `forward(grouped)` takes the output of that
    group, calls `build_input(grouped)` and returns embeddings as those of a `MatchTower`. Arguments are the same.
    """

    def init_input(self, embedding_group: EmbeddingGroup) -> None:
        """Build a variational dropout per group when the config asks for it; does not keep `embedding_group`."""
        self._init_dropouts(embedding_group)

    def build_input(self, grouped: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The output of an embedding group, after variational dropout of the tower's own groups."""
        return self._drop(dict(grouped))


class TowerWrapper(BaseModel):
    """One tower of a trained model as a model of its own, for inference.

    Its parameters have the names of the whole model's, so that a checkpoint of that fills it.

    Args:
        module: the tower.
        tower_name: what the whole model calls it, such as `user_tower`.

    Returns of `predict`:
        `<tower_name>_emb`: (B, D), float32.
    """

    def __init__(self, module: MatchTower, tower_name: str = "user_tower") -> None:
        super().__init__(module._model_config, module._features, [])
        self._feature_groups = module._feature_groups
        self._tower_name = tower_name
        self.add_module(tower_name, module)
        self.set_is_inference(True)

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Embed the users, or the items, of a batch."""
        return {f"{self._tower_name}_emb": self.get_submodule(self._tower_name)(batch).to(torch.float32)}


class TowerWoEGWrapper(BaseModel):
    """As `TowerWrapper`, for a tower that reads the model's embedding group: it gets one with its own groups only.

    The tables of that group are new; load them from the whole model's state_dict or checkpoint, in which they have the
    same names.
    """

    def __init__(self, module: MatchTowerWoEG, tower_name: str = "user_tower") -> None:
        super().__init__(module._model_config, module._features, [])
        self._feature_groups = module._feature_groups
        self._tower_name = tower_name
        self.embedding_group = EmbeddingGroup(module._features, module._feature_groups)
        self.add_module(tower_name, module)
        self.set_is_inference(True)

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Embed the users, or the items, of a batch."""
        grouped = self.embedding_group(batch)
        return {f"{self._tower_name}_emb": self.get_submodule(self._tower_name)(grouped).to(torch.float32)}


def _of_all(user_BD: Tensor, item_ID: Tensor, is_euclid: bool) -> Tensor:
    """(B, I): of each user and each item."""
    if is_euclid:
        return -torch.cdist(user_BD, item_ID)
    return torch.mm(user_BD, item_ID.T)


def _of_pairs(user_BD: Tensor, item_BD: Tensor, is_euclid: bool) -> Tensor:
    """(B,): of each user and the item at its place."""
    if is_euclid:
        return -torch.linalg.vector_norm(user_BD - item_BD, dim=1)
    return torch.sum(user_BD * item_BD, dim=1)


@torch.fx.wrap
def _of_candidates(user_BD: Tensor, item_ID: Tensor, hard_neg_indices: Tensor | None, is_euclid: bool) -> Tensor:
    """(B, C) float32, in the layout of a sampler; a leaf of a traced graph, for C depends on the values of a batch."""
    num_rows, num_hard = user_BD.size(0), 0 if hard_neg_indices is None else hard_neg_indices.size(0)
    num_shared = item_ID.size(0) - num_rows - num_hard
    own_BD, shared_ND, hard_HD = torch.split(item_ID, [num_rows, num_shared, num_hard])
    parts = [_of_pairs(user_BD, own_BD, is_euclid)[:, None], _of_all(user_BD, shared_ND, is_euclid)]
    if hard_neg_indices is not None and num_hard:
        rows, slots = hard_neg_indices.unbind(1)
        hard_H = _of_pairs(user_BD[rows], hard_HD, is_euclid).to(torch.float32)
        none_BC = hard_H.new_full((num_rows, int(slots.max()) + 1), _NO_HARD_NEGATIVE)
        parts.append(none_BC.index_put((rows, slots), hard_H))
    return torch.cat([part.to(torch.float32) for part in parts], dim=1)
