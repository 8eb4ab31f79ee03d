"""What surrounds a model: one for training, one for predicting, one for scripts that know only tensors."""

from collections.abc import Sequence

import torch

from tzrec_core.config import refuse_unsupported
from tzrec_core.data.batch import Batch
from tzrec_core.data.parser import DataParser
from tzrec_core.errors import ConfigError, did_you_mean
from tzrec_core.models.base import BaseModel
from tzrec_core.modules.base import BaseModule

TARGET_REPEAT_INTERLEAVE_KEY = "__TARGET_REPEAT_INTERLEAVE_KEY__"

_DTYPES = {"BF16": torch.bfloat16, "FP16": torch.float16}


def autocast_dtype(mixed_precision: str | None) -> torch.dtype | None:
    """The dtype of `mixed_precision`: BF16, FP16, or empty for none; raises ConfigError otherwise."""
    if not mixed_precision:
        return None
    if mixed_precision not in _DTYPES:
        raise ConfigError(
            f"mixed_precision = {mixed_precision!r} is not one of {', '.join(_DTYPES)}."
            f"{did_you_mean(mixed_precision, _DTYPES)}"
        )
    return _DTYPES[mixed_precision]


class TrainWrapper(BaseModule):
    """A model with its losses and metrics, as one training step sees it.

    Args:
        module: the model.
        device: where it runs; None = CPU.
        mixed_precision: `BF16` or `FP16` runs predictions and losses under autocast; None or empty does not.

    Returns of `forward(batch)`:
        (total loss, (losses by key, detached; predictions, detached; batch)).

    Raises:
        ConfigError: the model's config has a setting that is not supported yet, its losses or metrics do not fit the
            model, or mixed_precision is unknown.
    """

    def __init__(
        self, module: BaseModel, device: torch.device | None = None, mixed_precision: str | None = None
    ) -> None:
        super().__init__()
        self.model = module
        refuse_unsupported(module._base_model_config, "model_config")
        self.model.init_loss()
        self.model.init_metric()
        self._device_type = (device or torch.device("cpu")).type
        self._autocast_dtype = autocast_dtype(mixed_precision)

    def forward(
        self, batch: Batch
    ) -> tuple[torch.Tensor, tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], Batch]]:
        """Predict a batch and sum its losses."""
        with torch.autocast(self._device_type, dtype=self._autocast_dtype, enabled=self._autocast_dtype is not None):
            predictions = self.model.predict(batch)
            losses = self.model.loss(predictions, batch)
            total_loss = torch.stack([loss.float() for loss in losses.values()]).sum()
        return total_loss, (
            {key: loss.detach() for key, loss in losses.items()},
            {key: value.detach() for key, value in predictions.items()},
            batch,
        )


class PredictWrapper(BaseModule):
    """A model that predicts, with results on the CPU.

    Args:
        module: the model.
        device: where it runs; None = CPU.
        mixed_precision: as in TrainWrapper.
        output_cols: predictions to return; None = all.

    Returns of `forward(batch)`:
        (None, (predictions by key, batch)).

    Raises:
        ConfigError: the model does not predict one of `output_cols`.
    """

    def __init__(
        self,
        module: BaseModel,
        device: torch.device | None = None,
        mixed_precision: str | None = None,
        output_cols: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self.model = module
        self._device_type = (device or torch.device("cpu")).type
        self._autocast_dtype = autocast_dtype(mixed_precision)
        self._output_cols = list(output_cols) if output_cols else None

    def forward(self, batch: Batch) -> tuple[None, tuple[dict[str, torch.Tensor], Batch]]:
        """Predict a batch."""
        with torch.autocast(self._device_type, dtype=self._autocast_dtype, enabled=self._autocast_dtype is not None):
            predictions = self.model.predict(batch)
        if self._output_cols is not None:
            for name in self._output_cols:
                if name not in predictions:
                    raise ConfigError(
                        f"the model does not predict {name!r}.{did_you_mean(name, predictions)} "
                        f"It predicts: {', '.join(predictions)}"
                    )
        results = {}
        for name, value in predictions.items():
            wanted = self._output_cols is None or name in self._output_cols
            if wanted or name == TARGET_REPEAT_INTERLEAVE_KEY:
                value = value.to(torch.float32) if value.dtype in _DTYPES.values() else value
                results[name] = value.to("cpu")
        return None, (results, batch)


class ScriptWrapper(BaseModule):
    """A model behind plain tensors: what is traced, scripted and exported.

    Args:
        module: the model; put into inference mode.

    `forward(data, device)` takes the flat tensors that `DataParser.parse` returns: `<feature>.values`,
    `<feature>.lengths` and so on.
    """

    def __init__(self, module: BaseModel) -> None:
        super().__init__()
        self.model = module
        self._features = module.get_features_in_feature_groups(module._feature_groups)
        self._data_parser = DataParser(self._features)
        self.set_is_inference(True)

    def get_batch(self, data: dict[str, torch.Tensor], device: torch.device = torch.device("cpu")) -> Batch:  # noqa: B008
        """Build a Batch from flat tensors on `device`."""
        return self._data_parser.to_batch(data).to(device)

    def forward(
        self,
        data: dict[str, torch.Tensor],
        device: torch.device = torch.device("cpu"),  # noqa: B008
    ) -> dict[str, torch.Tensor]:
        """Predict from flat tensors."""
        return self.model.predict(self.get_batch(data, device))
