"""Metrics over the rows of two real processes, against one process that has them all."""

import sys
import warnings
from pathlib import Path

import pytest
import torch
import torchmetrics

from tzrec_core.engine.world import join_world
from tzrec_core.metrics import (
    AUC,
    XAUC,
    Accuracy,
    Calibration,
    DecayAUC,
    GroupedAUC,
    GroupedXAUC,
    LogLoss,
    MeanAbsoluteError,
    MeanSquaredError,
    MulticlassAUC,
    NormalizedEntropy,
    RecallAtK,
    RelativeL1,
    UniqueRatio,
)

sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))
from ranks import run_ranks

BATCH_SIZE = 50


def metrics():
    return {
        "auc": AUC(),
        "auc with thresholds": AUC(thresholds=200),
        "auc folded on one rank": AUC(max_rows=300),
        "auc folded on both": AUC(max_rows=100),
        "multiclass_auc": MulticlassAUC(3),
        "multiclass_auc weighted, folded": MulticlassAUC(3, average="weighted", max_rows=500),
        "multiclass_auc per class, with thresholds": MulticlassAUC(3, average="none", thresholds=50),
        "decay_auc": DecayAUC(),
        "grouped_auc": GroupedAUC(),
        "xauc": XAUC(),
        "xauc in batch": XAUC(in_batch=True),
        "grouped_xauc": GroupedXAUC(),
        "accuracy": Accuracy(),
        "accuracy of classes": Accuracy(num_class=3, top_k=2),
        "mean_absolute_error": MeanAbsoluteError(),
        "mean_squared_error": MeanSquaredError(),
        "logloss": LogLoss(),
        "calibration": Calibration(),
        "normalized_entropy": NormalizedEntropy(),
        "recall_at_k": RecallAtK(2),
        "relative_l1": RelativeL1(),
        "unique_ratio": UniqueRatio(),
        "loss": torchmetrics.MeanMetric(),
    }


def rows(num_rows, sorted_by_label):
    generator = torch.Generator().manual_seed(5)
    labels = torch.randint(2, (num_rows,), generator=generator)
    classes = torch.randint(3, (num_rows,), generator=generator)
    if sorted_by_label:
        labels, classes = labels.sort().values, classes.sort().values
    logits = torch.randn(num_rows, generator=generator) + labels
    class_logits = torch.randn(num_rows, 3, generator=generator) + torch.nn.functional.one_hot(classes, 3)
    return {
        "labels": labels,
        "classes": classes,
        "probs": logits.sigmoid(),
        "class_probs": class_logits.softmax(1),
        "groups": torch.randint(40, (num_rows,), generator=generator) - 7,
        "codes": torch.randint(6, (num_rows, 2), generator=generator),
    }


def feed(found, data):
    for start in range(0, len(data["labels"]), BATCH_SIZE):
        batch = {name: column[start : start + BATCH_SIZE] for name, column in data.items()}
        probs, labels = batch["probs"], batch["labels"]
        for name, metric in found.items():
            if name in ("accuracy of classes", "recall_at_k") or name.startswith("multiclass_auc"):
                metric.update(batch["class_probs"], batch["classes"])
            elif name.startswith("grouped"):
                metric.update(probs, labels, batch["groups"])
            elif name == "unique_ratio":
                metric.update(batch["codes"])
            elif name == "loss":
                metric.update((probs - labels).abs().mean(), len(labels))
            else:
                metric.update(probs, labels)


def values_of(found, *, is_alone):
    values = {}
    for name, metric in found.items():
        if is_alone:
            metric.distributed_available_fn = lambda: False
        torch.manual_seed(3)  # some draw pairs
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*before the ``update``")
            values[name] = metric.compute().double().flatten().tolist()
    return values


SPLITS = {
    "uneven": (700, 450, False),
    "each rank has one class": (700, 350, True),
    "a rank without rows": (250, 250, False),
    "no rows at all": (0, 0, False),
}


def scenario():
    world = join_world()
    compared = {}
    for split, (num_rows, first, sorted_by_label) in SPLITS.items():
        data = rows(num_rows, sorted_by_label)
        mine = slice(0, first) if world.rank == 0 else slice(first, None)
        shared, alone = metrics(), metrics()
        feed(shared, {name: column[mine] for name, column in data.items()})
        feed(alone, data)
        values = values_of(shared, is_alone=False)
        for metric in shared.values():
            metric._computed = None  # the second time must exchange again, from each rank's own rows
        compared[split] = (values, values_of(shared, is_alone=False), values_of(alone, is_alone=True))
    return compared


SUMS_OF_FLOATS = {
    "mean_absolute_error", "mean_squared_error", "logloss", "calibration", "normalized_entropy", "relative_l1", "loss",
    "decay_auc",
}  # fmt: skip


def tolerance_of(name):
    if "folded" in name:  # the rows that were left after the last folding are others
        return 1e-4
    return 1e-6 if name in SUMS_OF_FLOATS else 0  # all others count


def test_every_metric_over_two_processes_equals_that_of_one():
    outputs = run_ranks(__file__, "scenario", 2)
    for split in SPLITS:
        for name in metrics():
            expected = pytest.approx(outputs[0][split][2][name], abs=tolerance_of(name), rel=0, nan_ok=True)
            for rank, output in enumerate(outputs):
                shared, again, _ = output[split]
                assert shared[name] == expected, (split, name, rank)
                assert again[name] == expected, (split, name, rank)
