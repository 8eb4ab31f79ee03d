import json
from pathlib import Path

import pytest
import torch

from tzrec_core.losses import BinaryFocalLoss, JRCLoss, ParetoEfficientMultiTaskLoss

GOLDENS = Path(__file__).parents[1] / "goldens"


def cases(name):
    return json.loads((GOLDENS / f"{name}.json").read_text())["cases"]


def tensor(entry):
    return torch.tensor(entry["values"], dtype=getattr(torch, entry["dtype"])).reshape(entry["shape"])


@pytest.mark.parametrize(
    ("loss_class", "case"),
    [(JRCLoss, case) for case in cases("loss_jrc")] + [(BinaryFocalLoss, case) for case in cases("loss_binary_focal")],
)
def test_loss_and_input_gradients_equal_torcheasyrecs(loss_class, case):
    inputs = {name: tensor(entry) for name, entry in case["inputs"].items()}
    for name in case["input_grads"]:
        inputs[name].requires_grad_()
    loss = loss_class(**case["params"])(**inputs)
    torch.testing.assert_close(loss, tensor(case["output"]), rtol=2e-5, atol=2e-6)
    loss.backward(torch.ones(()) if loss.ndim == 0 else torch.arange(loss.numel()).float().cos())
    for name, grad in case["input_grads"].items():
        torch.testing.assert_close(inputs[name].grad, tensor(grad), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("case", cases("loss_pareto_weights"))
def test_pareto_weights_equal_torcheasyrecs(case):
    weights = ParetoEfficientMultiTaskLoss(**case["params"]).weights(tensor(case["inputs"]["grads"]))
    torch.testing.assert_close(weights.tolist(), case["output_weights"], rtol=2e-5, atol=2e-6)
