"""Losses that a config can ask for, and the weighting of several.

Each is a module of `(**config, reduction="mean" | "none")`, and `forward(preds, labels)` returns a scalar, or
(B,) with "none".
"""

from tzrec_core.losses.cross_entropy import BinaryCrossEntropy, SoftmaxCrossEntropy
from tzrec_core.losses.focal import BinaryFocalLoss
from tzrec_core.losses.jrc import JRCLoss
from tzrec_core.losses.l2 import L2Loss
from tzrec_core.losses.pareto import ParetoEfficientMultiTaskLoss

__all__ = [
    "BinaryCrossEntropy",
    "BinaryFocalLoss",
    "JRCLoss",
    "L2Loss",
    "ParetoEfficientMultiTaskLoss",
    "SoftmaxCrossEntropy",
]
