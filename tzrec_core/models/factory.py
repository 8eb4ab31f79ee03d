"""From a config to a model."""

from collections.abc import Sequence
from typing import Any

import torch

from tzrec_core.config import model_offer, refuse_unsupported
from tzrec_core.errors import ConfigError, PluginError
from tzrec_core.features import BaseFeature
from tzrec_core.models.base import BaseModel
from tzrec_core.modules.base import Kernel
from tzrec_core.plugins import registry
from tzrec_core.protos import model_pb2


def create_model(
    model_config: Any,
    features: Sequence[BaseFeature],
    labels: Sequence[str],
    sample_weights: Sequence[str] | None = None,
    sampler_type: str | None = None,
    device: torch.device | str = torch.device("cpu"),  # noqa: B008
) -> BaseModel:
    """Build the model that a ModelConfig names.

    Args:
        model_config: the assembled ModelConfig.
        features: all features of the config.
        labels: names of the labels.
        sample_weights: names of the sample weights.
        sampler_type: name of the sampler, for models that read sampled negatives.
        device: where parameters are made and initialised; `"meta"` leaves them without storage, for sharding.

    Returns:
        the model, its kernel set to `model_config.kernel`.

    Raises:
        ConfigError: the config names no model, has a setting that is not supported yet, or the model refuses it.
        PluginError: the model's class cannot be imported or is no BaseModel.
    """
    try:
        offer = model_offer(model_config)
    except ValueError as error:
        raise ConfigError(f"{error}; add one, such as deepfm {{ ... }}. See `tzrec list-models`.") from None
    refuse_unsupported(model_config, "model_config")
    cls = registry().load(offer)
    if not (isinstance(cls, type) and issubclass(cls, BaseModel)):
        raise PluginError(
            f"model {offer.spec.name!r} of {offer.plugin.distribution}: {offer.spec.target} is not a subclass of "
            f"tzrec_core.models.BaseModel"
        )
    with torch.device(device):
        model = cls(
            model_config,
            list(features),
            list(labels),
            sample_weights=list(sample_weights or []),
            sampler_type=sampler_type,
        )
    model.set_kernel(Kernel[model_pb2.Kernel.Name(model_config.kernel)])
    return model
