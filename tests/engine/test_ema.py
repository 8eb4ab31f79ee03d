import pytest
import torch
from torch import nn

from tzrec_core.engine.ema import DenseEMA


def parameter(*values: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values))


def test_an_average_starts_as_a_copy_and_follows_by_hand():
    weight = parameter(1.0, 2.0)
    ema = DenseEMA({"w": weight}, 0.75)
    assert ema.averages["w"].tolist() == [1.0, 2.0]
    with torch.no_grad():
        weight.copy_(torch.tensor([5.0, -2.0]))
    ema.update()
    assert ema.averages["w"].tolist() == pytest.approx([0.75 * 1 + 0.25 * 5, 0.75 * 2 + 0.25 * -2])
    ema.update()
    assert ema.averages["w"].tolist() == pytest.approx([0.75 * 2 + 0.25 * 5, 0.75 * 1 + 0.25 * -2])


def test_no_share_of_the_past_is_the_parameter_itself():
    weight = parameter(1.0)
    ema = DenseEMA({"w": weight}, 0.0)
    with torch.no_grad():
        weight.fill_(3.0)
    ema.update()
    assert ema.averages["w"].tolist() == [3.0]


def test_the_model_computes_with_the_averages_in_the_block_and_gets_its_own_values_back_even_after_an_error():
    layer = nn.Linear(3, 1)
    ema = DenseEMA(dict(layer.named_parameters()), 0.9)
    averages = {name: value.clone() for name, value in ema.averages.items()}
    with torch.no_grad():
        for value in layer.parameters():
            value.normal_()
    own = {name: value.detach().clone() for name, value in layer.named_parameters()}
    with pytest.raises(KeyError), ema.applied():
        assert all(torch.equal(value, averages[name]) for name, value in layer.named_parameters())
        raise KeyError
    assert all(torch.equal(value, own[name]) for name, value in layer.named_parameters())
    assert all(torch.equal(value, averages[name]) for name, value in ema.averages.items())


def test_filling_the_averages_fills_the_ema():
    ema = DenseEMA({"w": parameter(1.0)}, 0.5)
    ema.averages["w"].fill_(7.0)
    assert ema.averages["w"].tolist() == [7.0]
