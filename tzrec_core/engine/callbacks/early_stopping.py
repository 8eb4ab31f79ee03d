"""Ends a run whose evaluations no longer get better."""

import math
from typing import Any

from tzrec_core.engine.callbacks.callback import Callback, Run
from tzrec_core.engine.directions import direction_of, directions
from tzrec_core.errors import ConfigError, did_you_mean
from tzrec_core.models import BaseModel


class EarlyStopping(Callback):
    """Stops when a metric has not improved for `patience` evaluations in a row; a continued run counts on.

    NaN is no improvement.

    Args:
        metric: as the evaluation prints it.
        higher_is_better: True = more is better; None = as the metric says.
        patience: evaluations, >= 1.
        min_delta: what a value must gain on the best one so far, >= 0.

    Raises:
        ConfigError: at the start of the run, there is nothing to evaluate on, or nobody says what is better; there, or
            at the first evaluation, the metric does not exist.
    """

    def __init__(
        self, metric: str, higher_is_better: bool | None = None, patience: int = 3, min_delta: float = 0.0
    ) -> None:
        self._metric, self._higher_is_better = metric, higher_is_better
        self._patience, self._min_delta = patience, min_delta
        self._best: float | None = None
        self._best_step = 0
        self._num_worse = 0

    def on_train_start(self, run: Run) -> None:
        """Check the settings against the run; a run that has stopped early before does not start."""
        self._higher_is_better = check_metric(_PATH, self._metric, self._higher_is_better, run)
        self._stop_if_worse(run)

    def on_evaluate(self, run: Run, metrics: dict[str, float]) -> None:
        """Compare with the best value so far."""
        if self._metric not in metrics:
            raise _no_metric(_PATH, self._metric, list(metrics))
        value = metrics[self._metric]
        sign = 1 if self._higher_is_better else -1
        gain = math.inf if self._best is None else sign * (value - self._best)
        if gain > self._min_delta and not math.isnan(value):
            self._best, self._best_step, self._num_worse = value, run.step, 0
        else:
            self._num_worse += 1
            self._stop_if_worse(run)

    def state_dict(self) -> dict[str, Any]:
        """The best value, its step, and the evaluations since; empty before the first evaluation."""
        if self._best is None and not self._num_worse:
            return {}
        return {
            "metric": self._metric, "best": self._best, "best_step": self._best_step, "num_worse": self._num_worse,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there, unless another metric was looked at."""
        if state["metric"] == self._metric:
            self._best, self._best_step, self._num_worse = state["best"], state["best_step"], state["num_worse"]

    def _stop_if_worse(self, run: Run) -> None:
        if self._num_worse < self._patience:
            return
        times = f"{self._num_worse} evaluation{'s' if self._num_worse > 1 else ''}"
        if self._best is None:
            run.stop(f"early stopping: {self._metric} was not a number in {times}")
        else:
            best = f"{self._best:.6f} of step {self._best_step}"
            run.stop(f"early stopping: {self._metric} has not improved on {best} in {times}")


_PATH = "train_config.early_stopping"


def check_metric(path: str, metric: str, higher_is_better: bool | None, run: Run) -> bool:
    """Find out before the first step, as far as that can be known, that no evaluation will bring a metric.

    Args:
        path: of the settings in the config that look at it.
        metric: as the evaluation prints it.
        higher_is_better: what the settings say; None = nothing.
        run: the run, before its first step.

    Returns:
        whether more of it is better: as the settings say, else as the metric does.

    Raises:
        ConfigError: there is nothing to evaluate on, the model has no such metric, or neither says what is better.
    """
    if not run.has_eval_data:
        raise ConfigError(f"{path} looks at evaluations, but there is no evaluation data; set eval_input_path")
    if type(run.model).compute_metric is BaseModel.compute_metric:
        names = list(run.model._metric_modules)
        # one with several values is printed as <name>_0, <name>_1
        if not any(metric == name or metric.startswith(f"{name}_") for name in names):
            raise _no_metric(path, metric, names)
    if higher_is_better is None:
        higher_is_better = direction_of(metric, directions(run.model))
    if higher_is_better is None:
        raise ConfigError(
            f"{path}.metric = {metric!r} does not say whether more or less of it is better; write higher_is_better: "
            "true or false beside it"
        )
    return higher_is_better


def _no_metric(path: str, metric: str, names: list[str]) -> ConfigError:
    return ConfigError(
        f"{path}.metric = {metric!r} is not a metric of the evaluation. Metrics are: {', '.join(names) or 'none'}."
        f"{did_you_mean(metric, names)}"
    )
