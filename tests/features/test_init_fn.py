import pickle

import pytest
import torch

from tzrec_core.errors import ConfigError
from tzrec_core.features.init_fn import parse_init_fn


def test_uniform_fills_a_tensor_within_its_bounds() -> None:
    torch.manual_seed(0)
    table = torch.full((50, 4), 9.0)
    parse_init_fn("nn.init.uniform_,a=-0.01,b=0.02")(table)
    assert table.min() >= -0.01
    assert table.max() <= 0.02
    assert table.min() < -0.005
    assert table.max() > 0.015


@pytest.mark.parametrize(
    ("spec", "value"),
    [
        ("nn.init.constant_,val=0.5", 0.5),
        (" nn.init.constant_ , val = 0.5 ", 0.5),
        ("torch.nn.init.constant_,val=-2", -2.0),
        ("nn.init.zeros_", 0.0),
        ("nn.init.ones_", 1.0),
    ],
)
def test_constant_fills_are_exact(spec: str, value: float) -> None:
    table = torch.full((2, 3), 9.0)
    parse_init_fn(spec)(table)
    assert table.tolist() == [[value] * 3] * 2


def test_string_arguments_are_literals() -> None:
    torch.manual_seed(0)
    expected = torch.nn.init.kaiming_uniform_(torch.empty(4, 3), mode="fan_out", nonlinearity="relu")
    torch.manual_seed(0)
    table = torch.empty(4, 3)
    parse_init_fn("nn.init.kaiming_uniform_,mode='fan_out',nonlinearity='relu'")(table)
    assert torch.equal(table, expected)


def test_it_travels_by_pickle() -> None:
    table = torch.zeros(2)
    pickle.loads(pickle.dumps(parse_init_fn("nn.init.constant_,val=3.0")))(table)
    assert table.tolist() == [3.0, 3.0]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("nn.init.unifrom_,a=0", ["nn.init.unifrom_", "Did you mean 'nn.init.uniform_'"]),
        ("normal_", ["'normal_' is not an initialiser", "Did you mean 'nn.init.normal_'"]),
        ("os.system,command='true'", ["os.system", "not an initialiser"]),
        ("nn.init.calculate_gain", ["not an initialiser"]),
        ("", ["not an initialiser", "nn.init.xavier_uniform_"]),
        ("nn.init.normal_,mean=0.0,sdt=0.1", ["no argument 'sdt'", "Did you mean 'std'"]),
        ("nn.init.zeros_,val=1", ["no argument 'val'", "none"]),
        ("nn.init.uniform_,tensor=1", ["no argument 'tensor'"]),
        ("nn.init.constant_", ["needs val=..."]),
        ("nn.init.uniform_,-0.1,0.1", ["cannot be read", "Name each one"]),
        ("nn.init.uniform_,a=print(1)", ["cannot be read"]),
        ("nn.init.uniform_,a=", ["cannot be read"]),
        ("nn.init.uniform_,**{'a': 1}", ["cannot be read"]),
        ("nn.init.uniform_,a=1)+(2", ["cannot be read"]),
    ],
)
def test_mistakes_are_refused_with_the_fix(spec: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_init_fn(spec)
    for word in [repr(spec), *words]:
        assert word in str(caught.value)
