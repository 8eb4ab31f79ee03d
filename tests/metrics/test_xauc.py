import math
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tzrec_core.errors import ConfigError
from tzrec_core.metrics import XAUC, GroupedXAUC
from tzrec_core.metrics.xauc import _rows_of_pair


def slow_xauc(preds, labels):
    pairs = list(combinations(range(len(preds)), 2))
    return np.mean([(preds[i] - preds[j]) * (labels[i] - labels[j]) > 0 for i, j in pairs]) if pairs else math.nan


rows = st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3), st.integers(0, 3)), min_size=1, max_size=40)


@settings(max_examples=40, deadline=None)
@given(rows)
def test_in_batch_xauc_counts_every_pair_and_ties_as_wrong(rows):
    preds, labels, _ = torch.tensor(rows).float().T
    metric = XAUC(in_batch=True)
    metric.update(preds, labels)
    assert metric.compute().item() == pytest.approx(slow_xauc(preds, labels), nan_ok=True)


def test_in_batch_xauc_pools_the_pairs_of_all_batches():
    metric = XAUC(in_batch=True)
    metric.update(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1, 2, 3]))
    metric.update(torch.tensor([1.0, 2.0]), torch.tensor([2, 1]))
    metric.update(torch.tensor([1.0]), torch.tensor([2]))
    assert metric.compute() == 0.75


def test_numbered_pairs_are_all_pairs_once_also_far_out():
    assert list(zip(*map(torch.Tensor.tolist, _rows_of_pair(torch.arange(6))))) == [
        (1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2),
    ]  # fmt: skip
    row = torch.tensor([2**31 - 1, 12_345_677, 94_906_267])
    for other in (torch.zeros_like(row), row - 1):
        assert [t.tolist() for t in _rows_of_pair(row * (row - 1) // 2 + other)] == [
            row.tolist(),
            other.tolist(),
        ]


def test_sampled_xauc_comes_near_the_share_of_all_pairs():
    generator = torch.Generator().manual_seed(3)
    labels = torch.randn(400, generator=generator)
    preds = labels + torch.randn(400, generator=generator)
    torch.manual_seed(0)
    metric = XAUC(sample_ratio=0.5)
    for batch in zip(preds.split(37), labels.split(37)):
        metric.update(*batch)
    assert metric.compute().item() == pytest.approx(slow_xauc(preds.tolist(), labels.tolist()), abs=0.02)


def test_unset_max_pairs_arrives_from_configs_as_zero_and_few_rows_still_draw_a_pair():
    metric = XAUC(max_pairs=0)
    metric.update(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0]))
    assert metric.compute() == 1


def test_a_single_row_has_no_pair():
    metric = XAUC()
    metric.update(torch.tensor([1.0]), torch.tensor([1.0]))
    assert metric.compute().isnan()


def test_two_ranks_pool_rows_or_pairs(two_ranks):
    for build, expected in ((lambda: XAUC(sample_ratio=1.0), 0.0), (lambda: XAUC(in_batch=True), 0.0)):
        first, second = build(), build()
        first.update(torch.tensor([1.0, 2.0]), torch.tensor([4.0, 3.0]))
        second.update(torch.tensor([3.0, 4.0]), torch.tensor([2.0, 1.0]))
        assert two_ranks(first, second) == expected


@settings(max_examples=40, deadline=None)
@given(rows, st.integers(1, 40))
def test_grouped_xauc_weighs_groups_by_size_and_skips_single_rows(rows, batch_size):
    preds, labels, groups = torch.tensor(rows).T
    metric = GroupedXAUC(max_pairs_per_group=1000)
    for batch in zip(preds.float().split(batch_size), labels.split(batch_size), groups.split(batch_size)):
        metric.update(*batch)
    members = [groups == g for g in groups.unique() if (groups == g).sum() > 1]
    sizes = [m.sum().item() for m in members]
    shares = [slow_xauc(preds[m], labels[m]) for m in members]
    expected = np.average(shares, weights=sizes) if sizes else math.nan
    assert metric.compute().item() == pytest.approx(expected, nan_ok=True)


def test_grouped_xauc_samples_large_groups():
    generator = torch.Generator().manual_seed(3)
    labels, groups = torch.randn(3000, generator=generator), torch.arange(3000) % 20
    preds = labels + torch.randn(3000, generator=generator)
    torch.manual_seed(0)
    values = []
    for max_pairs in (200, 20_000):
        metric = GroupedXAUC(max_pairs)
        metric.update(preds, labels, groups)
        values.append(metric.compute().item())
    assert values[0] != values[1]
    assert values[0] == pytest.approx(values[1], abs=0.03)


def test_settings_out_of_range_are_refused():
    with pytest.raises(ConfigError, match=r"xauc\.sample_ratio = 0"):
        XAUC(sample_ratio=0)
    with pytest.raises(ConfigError, match="max_pairs_per_group = 0"):
        GroupedXAUC(max_pairs_per_group=0)
