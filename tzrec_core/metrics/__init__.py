"""Metrics that a config can ask for: torchmetrics of `(**config)`.

They are fed by `update(preds, labels[, group_ids])`, and `compute` is over the rows of all ranks; a
`TrainMetricWrapper` alone looks at its own rank only.
"""

from tzrec_core.metrics.auc import AUC, DecayAUC, GroupedAUC, MulticlassAUC
from tzrec_core.metrics.means import (
    Accuracy,
    Calibration,
    LogLoss,
    MeanAbsoluteError,
    MeanSquaredError,
    NormalizedEntropy,
    RecallAtK,
    RelativeL1,
)
from tzrec_core.metrics.train import TrainMetricWrapper
from tzrec_core.metrics.unique_ratio import UniqueRatio
from tzrec_core.metrics.xauc import XAUC, GroupedXAUC

__all__ = [
    "AUC",
    "XAUC",
    "Accuracy",
    "Calibration",
    "DecayAUC",
    "GroupedAUC",
    "GroupedXAUC",
    "LogLoss",
    "MeanAbsoluteError",
    "MeanSquaredError",
    "MulticlassAUC",
    "NormalizedEntropy",
    "RecallAtK",
    "RelativeL1",
    "TrainMetricWrapper",
    "UniqueRatio",
]
