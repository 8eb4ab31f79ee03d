import torch

from tzrec_core.metrics import UniqueRatio

CODES = torch.tensor([[2, 3, 2], [2, 3, 1], [4, 0, 1], [3, 2, 1], [3, 2, 1], [2, 3, 1]])


def test_a_row_counts_once_however_often_it_comes():
    metric = UniqueRatio()
    for batch in CODES.split(1):
        metric.update(batch)
    torch.testing.assert_close(metric.compute().item(), 4 / 6)
    assert sum(len(chunk) for chunk in metric.codes) <= 3 * len(CODES)


def test_rows_are_compared_across_ranks_also_with_one_that_saw_none(two_ranks):
    first, second, third = UniqueRatio(), UniqueRatio(), UniqueRatio()
    first.update(CODES[:3])
    second.update(CODES[3:])
    torch.testing.assert_close(two_ranks(first, second).item(), 4 / 6)
    third.update(CODES[:0])
    first.reset()
    first.update(CODES)
    torch.testing.assert_close(two_ranks(first, third).item(), 4 / 6)


def test_no_rows_is_nan():
    metric = UniqueRatio()
    metric.update(CODES[:0])
    assert metric.compute().isnan()
