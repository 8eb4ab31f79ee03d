"""Whether more or less of a metric is better, as the metric itself says."""

import re
from collections.abc import Mapping

from tzrec_core.models import BaseModel


def directions(model: BaseModel) -> dict[str, bool]:
    """By name of each metric of an evaluation, True = more is better; what says nothing is left out.

    A torchmetrics.Metric says it by its class attribute `higher_is_better`. Of a loss, whose mean has the loss's name,
    less is better.

    Args:
        model: after `init_loss` and `init_metric`.
    """
    said = {name: metric.higher_is_better for name, metric in model._metric_modules.items()}
    said |= dict.fromkeys(model._loss_modules, False)
    return {name: bool(is_higher) for name, is_higher in said.items() if is_higher is not None}


def direction_of(metric: str, known: Mapping[str, bool]) -> bool | None:
    """What `directions` know of a metric as the evaluation prints it: one of several values is called `<name>_0`."""
    return known.get(metric, known.get(re.sub(r"_\d+$", "", metric)))
