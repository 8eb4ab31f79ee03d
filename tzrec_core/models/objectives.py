"""Builds losses and metrics from their configs, the core's and the plugins' alike."""

import functools
import inspect
from typing import Any, TypeVar

import torch
import torchmetrics
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from torch import nn

from tzrec_core.config import BASE_DATA_GROUP, config_to_kwargs, spec_of
from tzrec_core.data.batch import Batch
from tzrec_core.errors import ConfigError
from tzrec_core.plugins import LossSpec, MetricSpec, Offer, Output, Registry, Spec, Task, registry

S = TypeVar("S", bound=Spec)


def loss_spec(loss_config: Any) -> tuple[LossSpec, Message]:
    """Spec and settings of the loss that a LossConfig names."""
    offer, settings = _offer(LossSpec, loss_config, "loss")
    return offer.spec, settings


def metric_spec(metric_config: Any) -> tuple[MetricSpec, Message]:
    """Spec and settings of the metric that a MetricConfig or TrainMetricConfig names."""
    offer, settings = _offer(MetricSpec, metric_config, "metric")
    return offer.spec, settings


def metric_key(metric_config: Any) -> str:
    """What the value of a metric is called, such as `auc` or `recall@10`."""
    spec, settings = metric_spec(metric_config)
    return f"recall@{settings.top_k}" if spec.name == "recall_at_k" else spec.name  # type: ignore[attr-defined]


_EXAMPLES = {"loss": "losses { binary_cross_entropy {} }", "metric": "metrics { auc {} }"}


def _offer(kind: type[S], holder: Any, oneof: str) -> tuple[Offer[S], Message]:
    member = holder.WhichOneof(oneof)
    if member is None:
        raise ConfigError(f"a {oneof} is empty; write one, such as {_EXAMPLES[oneof]}")
    settings = getattr(holder, member)
    if member == "plugin":
        return _plugin_offer(registry(), kind, settings.type_url, settings.value)
    return spec_of(kind, member, settings)


@functools.lru_cache(maxsize=256)
def _plugin_offer(current: Registry, kind: type[S], type_url: str, value: bytes) -> tuple[Offer[S], Message]:
    """As `spec_of`, for the Any slot; remembered, because unpacking is slow and every batch asks."""
    del current  # part of the key only: another registry may answer otherwise
    return spec_of(kind, "plugin", AnyMessage(type_url=type_url, value=value))


def build_loss(loss_config: Any, *, task: Task, num_class: int, reduction: str) -> nn.Module:
    """The module of a loss.

    Args:
        loss_config: a LossConfig.
        task: of the model.
        num_class: of the model or tower.
        reduction: "mean" for a scalar, "none" for one loss per row.

    Raises:
        ConfigError: the task does not support the loss, or `num_class` does not fit it.
    """
    offer, settings = _offer(LossSpec, loss_config, "loss")
    spec = offer.spec
    if task not in spec.tasks:
        raise ConfigError(f"loss {spec.name!r} is not supported by {task} models")
    if problem := spec.num_class_problem(task, num_class):
        raise ConfigError(problem)
    kwargs = _constructor_kwargs(settings, spec.grouping_field)
    module = registry().load(offer)(**kwargs, reduction=reduction)
    assert isinstance(module, nn.Module)
    return module


def build_metric(metric_config: Any, *, task: Task, num_class: int, outputs: set[Output]) -> torchmetrics.Metric:
    """The module of a metric.

    Args:
        metric_config: a MetricConfig or TrainMetricConfig.
        task: of the model.
        num_class: of the model or tower; handed to metrics that take it.
        outputs: what the losses make the model put out.

    Raises:
        ConfigError: the task does not support the metric, or it cannot read such predictions.
    """
    offer, settings = _offer(MetricSpec, metric_config, "metric")
    spec = offer.spec
    if task not in spec.tasks:
        raise ConfigError(f"metric {spec.name!r} is not supported by {task} models")
    metric_input(spec, outputs, num_class)
    cls = registry().load(offer)
    kwargs = _constructor_kwargs(settings, spec.grouping_field)
    if "num_class" in inspect.signature(cls).parameters:
        kwargs["num_class"] = num_class
    metric = cls(**kwargs)
    assert isinstance(metric, torchmetrics.Metric)
    return metric


_PREDICTIONS = {
    Output.BINARY: "probs",
    Output.SOFTMAX: "probs",
    Output.VALUE: "y",
    Output.SIMILARITY: "similarity",
}


def metric_input(spec: MetricSpec, outputs: set[Output], num_class: int) -> str:
    """The prediction that a metric reads, such as `probs`.

    What the losses make the model put out goes before `probs1`, the positive class of two.

    Raises:
        ConfigError: the metric can read none of them.
    """
    for output in spec.outputs:
        if output in outputs:
            return _PREDICTIONS[output]
    if problem := spec.outputs_problem(outputs, num_class):
        raise ConfigError(f"metric {spec.name!r} {problem}")
    return "probs1"


def relative_weights(weights: torch.Tensor) -> torch.Tensor:
    """Weights of rows (B,) divided by their mean, which keeps the size of a mean loss; 0 when all are 0."""
    mean = weights.mean()
    return torch.where(mean == 0, torch.zeros_like(weights), weights / mean)


def _constructor_kwargs(settings: Message, grouping_field: str) -> dict[str, Any]:
    """Settings as keywords; a field that is unset and has no default of its own keeps the constructor's."""
    kwargs = config_to_kwargs(settings)
    kwargs.pop(grouping_field, None)
    for field in settings.DESCRIPTOR.fields:
        unset = field.has_presence and not settings.HasField(field.name)
        if unset and (not field.has_default_value or field.name == "thresholds"):
            # an unset number of thresholds means exact, whatever default the schema states
            kwargs.pop(field.name, None)
    return kwargs


def group_ids(settings: Message, grouping_field: str, batch: Batch) -> torch.Tensor | None:
    """First id (B,) of the feature that `grouping_field` names, 0 for empty rows; None without such a field."""
    if not grouping_field:
        return None
    feature = getattr(settings, grouping_field)
    sparse = batch.sparse_features.get(BASE_DATA_GROUP)
    names = sparse.keys() if sparse is not None else []
    if sparse is None or feature not in names:
        raise ConfigError(
            f"{grouping_field} = {feature!r} is not an id feature of the batch ({', '.join(names) or 'none'})"
        )
    return sparse[feature].to_padded_dense(1)[:, 0].to(torch.int64)
