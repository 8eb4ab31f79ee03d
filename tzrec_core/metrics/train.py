"""What turns a metric into a train metric: a value that follows the latest batches."""

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from tzrec_core.errors import ConfigError
from tzrec_core.metrics.auc import DecayAUC


class TrainMetricWrapper(Metric):
    """Publishes a metric of the latest batches, older ones fading.

    Every `decay_step` updates the metric of these updates is computed and blended in: value = decay_rate *
    value + (1 - decay_rate) * new. The first one is taken as it is, and one that is NaN is skipped. A
    `DecayAUC` blends its counts instead of its values. `value` and `step_total` are parameters without
    gradient, so that checkpoints hold them. Each rank sees its own batches only: nothing is exchanged, and
    no step waits for the device.

    Args:
        metric: what to follow; reset after each block.
        decay_rate: in [0, 1); the share that the past keeps.
        decay_step: updates from one published value to the next; >= 1.

    Returns of `compute`:
        Scalar float32, the last published value; 0 before the first.

    Raises:
        ConfigError: decay_rate or decay_step is out of range.
    """

    full_state_update = False

    def __init__(self, metric: Metric, decay_rate: float = 0.9, decay_step: int = 100) -> None:
        super().__init__(compute_with_cache=False)
        if not 0 <= decay_rate < 1:
            raise ConfigError(f"train_metrics.decay_rate = {decay_rate} lies outside [0, 1).")
        if decay_step < 1:
            raise ConfigError(f"train_metrics.decay_step = {decay_step}: give at least 1.")
        # Ranks need not end a block at the same time: a collective here could wait for ever.
        metric.sync_on_compute = metric._to_sync = False
        self.metric = metric
        self._decay_rate = decay_rate
        self._decay_step = decay_step
        self.value = nn.Parameter(torch.zeros(()), requires_grad=False)
        self.step_total = nn.Parameter(torch.zeros(()), requires_grad=False)

    def update(self, preds: Tensor, labels: Tensor, group_ids: Tensor | None = None) -> None:
        """Hand a batch to the metric; publish at the end of a block."""
        self.metric.update(preds, labels, *([] if group_ids is None else [group_ids]))
        self.step_total += 1
        if self.update_count % self._decay_step == 0:
            self._publish()

    def _publish(self) -> None:
        if isinstance(self.metric, DecayAUC):
            self.metric.decay(self._decay_rate)
            value = self.metric.compute()
        else:
            new = self.metric.compute()
            blended = self._decay_rate * self.value + (1 - self._decay_rate) * new
            value = torch.where(self.step_total > self._decay_step, blended, new)
            self.metric.reset()
        self.value.copy_(torch.where(value.isnan(), self.value, value))

    def compute(self) -> Tensor:
        """The last published value."""
        return self.value.detach().clone()

    def forward(self, preds: Tensor, labels: Tensor, group_ids: Tensor | None = None) -> Tensor:
        """Update, and give the last published value."""
        self.update(preds, labels, group_ids)
        return self.compute()

    def reset(self) -> None:
        """Forget everything, the published value included."""
        super().reset()
        self.metric.reset()
        self.value.zero_()
        self.step_total.zero_()
