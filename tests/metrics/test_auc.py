import logging
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from torchmetrics.classification import BinaryAUROC, MulticlassAUROC

from tzrec_core.errors import ConfigError, DataError
from tzrec_core.metrics import AUC, DecayAUC, GroupedAUC, MulticlassAUC


def skewed(num_rows, rate, seed=0):
    """Rows whose positives are rare and whose probabilities are small, as clicks are."""
    rng = np.random.default_rng(seed)
    labels = rng.random(num_rows) < rate
    logits = math.log(rate) + 1.2 * labels + rng.standard_normal(num_rows)
    return torch.from_numpy(1 / (1 + np.exp(-logits))).float(), torch.from_numpy(labels).long()


def fed(metric, *columns, batch_size=700):
    for batch in zip(*(column.split(batch_size) for column in columns)):
        metric.update(*batch)
    return metric


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=2, max_size=60), st.integers(1, 60))
def test_exact_auc_equals_scikit_learn_with_ties(rows, batch_size):
    probs = torch.tensor([score / 6 for score, _ in rows])
    labels = torch.tensor([label for _, label in rows]).float()
    auc = fed(AUC(), probs, labels, batch_size=batch_size).compute().item()
    if labels.min() == labels.max():
        assert math.isnan(auc)
    else:
        assert auc == pytest.approx(roc_auc_score(labels, probs), abs=1e-6)


def test_folded_auc_of_rare_positives_is_within_1e_4_and_says_so_once(caplog):
    probs, labels = skewed(300_000, 0.0024)
    with caplog.at_level(logging.WARNING):
        metric = fed(AUC(max_rows=1000), probs, labels, batch_size=20_000)
    exact = roc_auc_score(labels, probs)
    assert abs(metric.compute().item() - exact) < 1e-4
    assert abs(fed(AUC(thresholds=200), probs, labels).compute().item() - exact) > 0.02
    assert [r.message for r in caplog.records if "1,000 scores" in r.message and "65,536 bins" in r.message]
    assert len(caplog.records) == 1


@pytest.mark.parametrize(("scale", "shift"), [(0.05, 0.0), (0.3, -9.0), (3.0, 2.0), (0.05, 6.0)])
def test_folding_keeps_the_error_bound_for_narrow_wide_and_extreme_logits(scale, shift):
    rng = np.random.default_rng(1)
    labels = rng.random(60_000) < 0.1
    logits = shift + scale * (rng.standard_normal(60_000) + labels)
    probs = torch.from_numpy(1 / (1 + np.exp(-logits))).float()
    auc = fed(AUC(max_rows=1000), probs, torch.from_numpy(labels), batch_size=9000).compute().item()
    assert abs(auc - roc_auc_score(labels, probs)) < 1e-4


def test_folding_keeps_memory_flat():
    metric = AUC(max_rows=1000)
    probs, labels = skewed(50_000, 0.1)
    sizes = []
    for batch in zip(probs.split(100), labels.split(100)):
        metric.update(*batch)
        kept = [*metric.scores, *metric.labels, *metric.bins]
        sizes.append((len(kept), sum(t.numel() * t.element_size() for t in kept)))
    assert max(count for count, _ in sizes) < 30
    assert max(size for _, size in sizes) < 2 * 8 * (2**16 + 1) + 5 * 1100


def test_probabilities_of_zero_and_one_survive_folding():
    probs, labels = torch.tensor([0.0, 1.0, 0.0, 1.0, 0.5]), torch.tensor([0, 1, 0, 1, 0])
    assert fed(AUC(max_rows=1), probs, labels, batch_size=2).compute() == 1


def test_nan_probability_makes_auc_nan_exact_or_folded():
    probs, labels = torch.tensor([0.1, float("nan"), 0.7]), torch.tensor([0, 1, 1])
    for metric in (AUC(), AUC(max_rows=1)):
        assert fed(metric, probs, labels).compute().isnan()


@pytest.mark.parametrize("thresholds", [2, 7, 200])
def test_set_thresholds_give_torchmetrics_number(thresholds):
    probs, labels = skewed(3000, 0.2)
    probs = torch.cat([probs, torch.tensor([0.0, 1.0, 1.0, 0.5])])
    labels = torch.cat([labels, torch.tensor([0, 1, 0, 1])])
    expected = fed(BinaryAUROC(thresholds=thresholds), probs, labels).compute()
    torch.testing.assert_close(fed(AUC(thresholds=thresholds), probs, labels).compute(), expected)


def test_one_class_is_nan_when_exact_and_torchmetrics_zero_with_thresholds():
    probs, labels = torch.tensor([0.2, 0.3]), torch.tensor([1, 1])
    assert fed(AUC(), probs, labels).compute().isnan()
    assert fed(AUC(thresholds=200), probs, labels).compute() == 0


def test_auc_refuses_labels_that_are_not_classes_and_useless_thresholds():
    with pytest.raises(DataError, match=r"auc takes the labels 0 to 1, got 3\.5"):
        AUC().update(torch.tensor([0.1, 0.2]), torch.tensor([1.0, 3.5]))
    with pytest.raises(ConfigError, match=r"auc\.thresholds = 1"):
        AUC(thresholds=1)


def test_reset_forgets_rows_and_bins():
    metric = fed(AUC(max_rows=3), torch.tensor([0.1, 0.9, 0.2, 0.8]), torch.tensor([1, 0, 1, 0]), batch_size=2)
    assert metric.compute() == 0
    metric.reset()
    assert fed(metric, torch.tensor([0.1, 0.9]), torch.tensor([0, 1])).compute() == 1


def test_a_metric_can_be_pickled_with_its_rows():
    metric = fed(AUC(), torch.tensor([0.1, 0.9]), torch.tensor([0, 1]))
    assert pickle.loads(pickle.dumps(metric)).compute() == 1


@pytest.mark.parametrize("limits", [(10_000, 10_000), (100, 10_000), (100, 100)])
def test_two_ranks_give_the_auc_of_all_rows_even_if_one_has_folded(limits, two_ranks):
    probs, labels = skewed(2000, 0.3)
    metrics = [AUC(max_rows=limit) for limit in limits]
    for metric, rows in zip(metrics, (slice(0, 1500), slice(1500, None))):
        fed(metric, probs[rows], labels[rows], batch_size=60)
    assert two_ranks(*metrics).item() == pytest.approx(roc_auc_score(labels, probs), abs=1e-4)
    # After the exchange a rank has its own rows back, and goes on.
    metrics[0].distributed_available_fn = lambda: False
    fed(metrics[0], probs[1500:], labels[1500:], batch_size=60)
    assert metrics[0].compute().item() == pytest.approx(roc_auc_score(labels, probs), abs=1e-4)


def test_a_rank_without_rows_does_not_make_the_others_wait(two_ranks):
    probs, labels = skewed(200, 0.3)
    full, empty = fed(AUC(), probs, labels), AUC()
    with pytest.warns(UserWarning, match="before the ``update``"):
        assert two_ranks(full, empty).item() == pytest.approx(roc_auc_score(labels, probs), abs=1e-6)


def multiclass_rows():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (900,), generator=generator)
    logits = torch.randn(900, 3, generator=generator) + torch.nn.functional.one_hot(labels, 3)
    return logits.softmax(1), labels


@pytest.mark.parametrize("average", ["macro", "weighted"])
def test_exact_multiclass_auc_equals_scikit_learn(average):
    probs, labels = multiclass_rows()
    expected = roc_auc_score(
        labels, probs.double() / probs.double().sum(1, keepdim=True), multi_class="ovr", average=average
    )
    for max_rows in (10_000, 500):
        auc = fed(MulticlassAUC(3, average=average, max_rows=max_rows), probs, labels, batch_size=100).compute()
        assert auc.item() == pytest.approx(expected, abs=1e-4 if max_rows == 500 else 1e-6)


@pytest.mark.parametrize("average", ["macro", "weighted", "none"])
def test_multiclass_thresholds_give_torchmetrics_numbers(average):
    probs, labels = multiclass_rows()
    expected = fed(MulticlassAUROC(3, thresholds=50, average=average), probs, labels, batch_size=100).compute()
    auc = fed(MulticlassAUC(3, thresholds=50, average=average), probs, labels, batch_size=100).compute()
    torch.testing.assert_close(auc, expected)


def test_absent_class_is_left_out_of_the_exact_average():
    probs, labels = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.5, 0.4, 0.1]]), torch.tensor([0, 1, 0])
    assert fed(MulticlassAUC(3), probs, labels).compute() == 1
    assert fed(MulticlassAUC(3, average="none"), probs, labels).compute()[2].isnan()


def test_multiclass_settings_are_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match="Did you mean 'macro'"):
        MulticlassAUC(3, average="marco")
    with pytest.raises(ConfigError, match="num_class >= 2"):
        MulticlassAUC(1)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.booleans(), st.integers(-2, 3)), min_size=1, max_size=60),
    st.integers(1, 60),
)
def test_grouped_auc_is_the_mean_of_scikit_learns_over_the_groups(rows, batch_size):
    probs = torch.tensor([score / 4 for score, _, _ in rows])
    labels = torch.tensor([int(label) for _, label, _ in rows])
    groups = torch.tensor([group for _, _, group in rows])
    areas = [
        roc_auc_score(labels[groups == g], probs[groups == g])
        for g in groups.unique()
        if labels[groups == g].unique().numel() == 2
    ]
    value = fed(GroupedAUC(), probs, labels, groups, batch_size=batch_size).compute().item()
    assert math.isnan(value) if not areas else value == pytest.approx(np.mean(areas), abs=1e-6)


def test_a_group_that_lies_on_two_ranks_is_one_group(two_ranks):
    first = fed(GroupedAUC(), torch.tensor([0.2, 0.9]), torch.tensor([0, 0]), torch.tensor([7, 8]))
    second = fed(GroupedAUC(), torch.tensor([0.5, 0.1, 0.3]), torch.tensor([1, 1, 1]), torch.tensor([7, 8, 9]))
    assert two_ranks(first, second) == 0.5


def test_empty_grouped_auc_is_nan():
    metric = GroupedAUC()
    metric.update(torch.empty(0), torch.empty(0), torch.empty(0, dtype=torch.int64))
    assert metric.compute().isnan()


def test_decay_auc_of_one_block_is_the_binned_auc():
    probs, labels = skewed(2000, 0.3)
    expected = fed(BinaryAUROC(thresholds=200), probs, labels).compute()
    metric = fed(DecayAUC(200), probs, labels)
    torch.testing.assert_close(metric.compute(), expected)
    metric.decay(0.9)
    torch.testing.assert_close(metric.compute(), expected)


def test_decay_auc_blends_confusion_matrices_not_values():
    rng = np.random.default_rng(0)
    blocks = [(torch.from_numpy(rng.random(50)).float(), torch.from_numpy(rng.integers(0, 2, 50))) for _ in range(3)]
    metric, confusion = DecayAUC(20), torch.zeros(20, 2, 2, dtype=torch.float64)
    for probs, labels in blocks:
        metric.update(probs, labels)
        metric.decay(0.75)
        reference = BinaryAUROC(thresholds=20)
        reference.update(probs, labels)
        confusion = 0.75 * confusion + 0.25 * reference.confmat
    true_rate = confusion[:, 1, 1] / confusion[:, 1].sum(1)
    false_rate = confusion[:, 0, 1] / confusion[:, 0].sum(1)
    expected = torch.trapezoid(true_rate.flip(0), false_rate.flip(0))
    assert metric.compute().item() == pytest.approx(expected.item(), rel=1e-5)
