import itertools

import torch

from tzrec_core.modules.fm import FactorizationMachine


def test_two_vectors_give_their_product() -> None:
    fields_BFD = torch.tensor([[[1.0, 2.0, 3.0], [4.0, 5.0, -6.0]]])
    assert FactorizationMachine()(fields_BFD).tolist() == [[4.0, 10.0, -18.0]]


def test_it_is_the_sum_over_all_pairs() -> None:
    fields_BFD = torch.randn(4, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    pairs = sum(fields_BFD[:, i] * fields_BFD[:, j] for i, j in itertools.combinations(range(5), 2))
    torch.testing.assert_close(FactorizationMachine()(fields_BFD), pairs)


def test_one_field_and_no_row_interact_with_nothing() -> None:
    assert FactorizationMachine()(torch.tensor([[[2.0, 3.0]]])).tolist() == [[0.0, 0.0]]
    assert FactorizationMachine()(torch.zeros(0, 3, 2)).shape == (0, 2)


def test_gradients_are_the_sum_of_the_other_fields() -> None:
    fields_BFD = torch.tensor([[[1.0], [2.0], [5.0]]], requires_grad=True)
    FactorizationMachine()(fields_BFD).sum().backward()
    assert fields_BFD.grad is not None
    assert fields_BFD.grad[0, :, 0].tolist() == [7.0, 6.0, 3.0]


def test_it_traces_and_scripts() -> None:
    fm = FactorizationMachine()
    fields_BFD = torch.randn(3, 4, 2)
    torch.testing.assert_close(torch.jit.script(torch.fx.symbolic_trace(fm))(fields_BFD), fm(fields_BFD))
