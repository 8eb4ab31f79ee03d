import json
from pathlib import Path

import pytest
import torch

from tzrec_core.metrics import XAUC, GroupedAUC

GOLDENS = Path(__file__).parents[1] / "goldens"
NOT_ARGUMENTS = ("torch_manual_seed_before_construction", "note")


def cases(name):
    return json.loads((GOLDENS / f"{name}.json").read_text())["cases"]


def tensor(entry):
    values = [float(v) for v in entry["values"]] if "float" in entry["dtype"] else entry["values"]
    return torch.tensor(values, dtype=getattr(torch, entry["dtype"])).reshape(entry["shape"])


@pytest.mark.parametrize(
    ("metric_class", "case"),
    [(GroupedAUC, case) for case in cases("metric_grouped_auc")] + [(XAUC, case) for case in cases("metric_xauc")],
)
def test_metric_equals_torcheasyrecs(metric_class, case):
    torch.manual_seed(0)
    metric = metric_class(**{k: v for k, v in case["params"].items() if k not in NOT_ARGUMENTS})
    for update in case["updates"]:
        metric.update(*map(tensor, update))
    expected = tensor(case["output"])
    torch.testing.assert_close(metric.compute(), expected, rtol=2e-5, atol=2e-6, equal_nan=True)
