import pytest
import torch
from torch import nn

from tzrec_core.testing.asserts import assert_grad_flows, assert_same_predictions

WANT = {"logits": torch.tensor([[0.0, 1.0], [2.0, 3.0]]), "probs": torch.tensor([0.5, 0.25])}


def same(got, **tolerance):
    assert_same_predictions(got, WANT, **{"rtol": 0, "atol": 0, **tolerance}, what="after loading:")


def test_the_message_names_tensor_worst_index_and_both_values():
    got = {**WANT, "logits": WANT["logits"] + torch.tensor([[0.0, 0.1], [0.0, -0.5]])}
    with pytest.raises(AssertionError) as error:
        same(got)
    assert str(error.value) == ("after loading: 'logits': worst at [1, 1]: is 2.5, but should be 3 (2 of 4 differ)")


def test_a_difference_within_tolerance_is_none():
    got = {**WANT, "probs": WANT["probs"] * 1.001}
    same(got, rtol=0.01)
    same(got, atol=0.01)
    with pytest.raises(AssertionError, match=r"'probs': worst at \[0\]"):
        same(got)


def test_nan_equals_nan_and_nothing_else():
    nan = {"y": torch.tensor([1.0, torch.nan])}
    assert_same_predictions(nan, nan, rtol=0, atol=0, what="twice:")
    with pytest.raises(AssertionError, match=r"worst at \[1\]: is nan, but should be 2"):
        assert_same_predictions(nan, {"y": torch.tensor([1.0, 2.0])}, rtol=1, atol=1, what="twice:")


@pytest.mark.parametrize(
    ("got", "message"),
    [
        ({"logits": WANT["logits"]}, r"keys are \['logits'\], but should be \['logits', 'probs'\]"),
        ({**WANT, "probs": WANT["probs"].double()}, "'probs': dtype is torch.float64, but should be torch.float32"),
        ({**WANT, "probs": WANT["probs"][:1]}, r"'probs': shape is \(1,\), but should be \(2,\)"),
    ],
)
def test_other_keys_dtypes_and_shapes_are_differences(got, message):
    with pytest.raises(AssertionError, match=message):
        same(got)


class Model(nn.Module):
    """y = a x; b is multiplied by zero, c is detached, d does not train."""

    def __init__(self):
        super().__init__()
        for name in "abcd":
            self.register_parameter(name, nn.Parameter(torch.ones(2), requires_grad=name != "d"))

    def predict(self, batch):
        return {"y": batch * (self.a + 0 * self.b + self.c.detach() + self.d)}

    def loss(self, predictions, batch):
        return {"l2": predictions["y"].square().mean(), "l1": predictions["y"].abs().mean()}


def test_parameters_without_gradient_are_named():
    with pytest.raises(AssertionError, match=r"^no gradient reaches b, c: "):
        assert_grad_flows(Model(), torch.ones(2))


def test_exceptions_may_be_patterns_and_leave_no_gradients_behind():
    model = Model()
    assert_grad_flows(model, torch.ones(2), except_=["[bc]"])
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("needless", ["a", "e*"])
def test_an_exception_that_is_none_is_a_mistake(needless):
    with pytest.raises(AssertionError, match="should have no gradient"):
        assert_grad_flows(Model(), torch.ones(2), except_=["b", "c", needless])


def test_a_model_without_any_gradient_is_named_too():
    model = Model()
    model.requires_grad_(False)
    model.a.requires_grad_(True)
    model.loss = lambda predictions, batch: {"l2": predictions["y"].detach().mean()}
    with pytest.raises(AssertionError, match=r"no gradient reaches a: "):
        assert_grad_flows(model, torch.ones(2))
