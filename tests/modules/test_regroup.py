import random

import pytest
import torch
from torch import Tensor
from torchrec import KeyedTensor

from tzrec_core.modules import regroup

WIDTHS = {"a": 2, "b": 3, "c": 1, "d": 4, "x": 1, "y": 2}


def columns(*keys: str, requires_grad: bool = True) -> KeyedTensor:
    values = torch.randn(5, sum(WIDTHS[key] for key in keys), requires_grad=requires_grad)
    return KeyedTensor(list(keys), [WIDTHS[key] for key in keys], values)


def by_hand(keyed: list[KeyedTensor], single: dict[str, Tensor], groups: list[list[str]]) -> list[Tensor]:
    parts = {key: value for one in keyed for key, value in one.to_dict().items()} | single
    return [torch.cat([parts[key] for key in keys], dim=1) for keys in groups]


def check(keyed: list[KeyedTensor], single: dict[str, Tensor], groups: list[list[str]]) -> None:
    """Equal outputs, and equal gradients of a loss that weighs each column of each group differently."""
    leaves = [*(one.values() for one in keyed), *single.values()]
    leaves = [leaf for leaf in leaves if leaf.requires_grad]
    expected, actual = by_hand(keyed, single, groups), regroup.by_group(keyed, single, groups)
    weights = [torch.randn_like(group) for group in expected]
    gradients = []
    for outputs in (expected, actual):
        loss = sum((output * weight).sum() for output, weight in zip(outputs, weights))
        gradients.append(torch.autograd.grad(loss, leaves, allow_unused=True))
    for wanted, given in zip(expected, actual, strict=True):
        assert torch.equal(wanted, given)
    for wanted, given in zip(*gradients, strict=True):
        assert (wanted is None) == (given is None)
        if wanted is not None:
            torch.testing.assert_close(given, wanted)


@pytest.mark.parametrize(
    "groups",
    [
        [["a", "b", "c", "d"]],
        [["a", "b"], ["c", "d"]],
        [["a", "b", "c", "d"], ["x", "y", "a", "b", "c", "d"]],
        [["d", "a"], ["b", "a", "x"], ["a"]],
        [["b", "c"], ["c", "d"], ["b", "c"]],
        [["a", "a", "x"]],
        [["x", "y"], ["d"]],
    ],
    ids=str,
)
def test_groups_and_gradients_equal_those_of_one_cat_per_group(groups):
    check([columns("a", "b", "c", "d"), columns("x", "y", requires_grad=False)], {}, groups)


def test_a_single_replaces_the_column_of_its_key():
    single = {"x": torch.randn(5, 3, requires_grad=True)}
    check([columns("a", "b"), columns("x", "y", requires_grad=False)], single, [["x", "y", "a"], ["x"]])


def test_many_random_groups():
    draw = random.Random(1)
    for _ in range(50):
        order = draw.sample(list(WIDTHS), len(WIDTHS))
        keyed = [columns(*order[:4]), columns(*order[4:])]
        check(keyed, {}, [draw.sample(order, draw.randint(1, 6)) for _ in range(draw.randint(1, 4))])


def test_a_group_that_no_loss_reads_sends_no_gradient():
    tables = columns("a", "b", "c")
    first, _ = regroup.by_group([tables], {}, [["a"], ["b", "c"]])
    first.sum().backward()
    assert torch.equal(tables.values().grad, torch.tensor([[1.0, 1, 0, 0, 0, 0]]).expand(5, 6))


def test_a_group_without_embeddings_asks_for_no_gradient():
    keyed = [columns("a", "b"), columns("x", "y", requires_grad=False)]
    numbers, both = regroup.by_group(keyed, {}, [["x", "y"], ["a", "x"]])
    assert not numbers.requires_grad and both.requires_grad


def test_keys_in_another_order_give_the_same_groups():
    """Sharding may change the order in which a collection puts out its columns."""
    values = {key: torch.randn(5, WIDTHS[key]) for key in "abc"}
    for order in ("abc", "cab"):
        keyed = KeyedTensor(
            list(order), [WIDTHS[key] for key in order], torch.cat([values[key] for key in order], dim=1)
        )
        (group,) = regroup.by_group([keyed], {}, [["a", "b", "c"]])
        assert torch.equal(group, torch.cat([values[key] for key in "abc"], dim=1))


def test_columns_side_by_side_are_not_copied():
    tables = columns("a", "b", "c")
    whole, part = regroup.by_group([tables], {}, [["a", "b", "c"], ["b", "c"]])
    assert whole.data_ptr() == tables.values().data_ptr()
    assert part.data_ptr() == tables.values()[:, 2:].data_ptr()


def test_scripts():
    class Groups(torch.nn.Module):
        def forward(self, values: Tensor, other: Tensor) -> list[Tensor]:
            keyed = [KeyedTensor(["a", "b"], [2, 3], values), KeyedTensor(["x"], [1], other)]
            return regroup.by_group(keyed, {}, [["b", "x"], ["a"]])

    values, other = torch.randn(5, 5), torch.randn(5, 1)
    scripted = torch.jit.script(Groups())(values, other)
    for actual, expected in zip(scripted, Groups()(values, other), strict=True):
        assert torch.equal(actual, expected)
