import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss

from tzrec_core.errors import ConfigError
from tzrec_core.metrics import (
    Accuracy,
    Calibration,
    LogLoss,
    MeanAbsoluteError,
    MeanSquaredError,
    NormalizedEntropy,
    RecallAtK,
    RelativeL1,
)

PROBS = torch.tensor([0.9, 0.2, 0.6, 0.4])
LABELS = torch.tensor([1, 0, 0, 1])


def value(metric, *columns, batch_size=3):
    for batch in zip(*(column.split(batch_size) for column in columns)):
        metric.update(*batch)
    return metric.compute().item()


def test_errors_worked_by_hand():
    preds, labels = torch.tensor([1.0, 2.0, 5.0, 0.0]), torch.tensor([2, 2, 1, 1])
    assert value(MeanAbsoluteError(), preds, labels) == 1.5
    assert value(MeanSquaredError(), preds, labels) == 4.5


def test_log_loss_equals_scikit_learn_and_survives_certain_mistakes():
    probs = torch.cat([PROBS, torch.tensor([0.0, 1.0])])
    labels = torch.cat([LABELS, torch.tensor([1, 0])])
    assert value(LogLoss(), probs, labels) == pytest.approx(log_loss(labels, probs.numpy()), rel=1e-5)


def test_means_do_not_stop_growing_when_there_are_many_rows():
    metric = MeanAbsoluteError()
    metric.update(torch.full((1,), 2.0**26), torch.zeros(1))
    for _ in range(64):
        metric.update(torch.full((1,), 1.0), torch.zeros(1))
    assert metric.total == 2**26 + 64


def test_calibration_is_mean_probability_over_mean_label():
    assert value(Calibration(), PROBS, LABELS) == pytest.approx(2.1 / 2)


def test_normalized_entropy_is_log_loss_over_that_of_the_mean_label():
    labels = torch.tensor([1, 0, 0, 0])
    base = -(0.25 * np.log(0.25) + 0.75 * np.log(0.75))
    expected = log_loss(labels, PROBS.double()) / base
    assert value(NormalizedEntropy(), PROBS, labels) == pytest.approx(expected, rel=1e-6)
    assert value(NormalizedEntropy(), torch.full((4,), 0.25), labels) == pytest.approx(1, rel=1e-6)


def test_eta_bounds_the_entropy_of_a_certain_mistake():
    assert value(NormalizedEntropy(eta=0.5), torch.tensor([1.0, 0.0]), torch.tensor([0, 1])) == pytest.approx(1)


def test_binary_accuracy_needs_a_probability_above_the_threshold():
    assert value(Accuracy(), torch.tensor([0.5, 0.6, 0.4, 0.7]), torch.tensor([1, 1, 0, 0])) == 0.5
    assert value(Accuracy(threshold=0.65), torch.tensor([0.5, 0.6, 0.4, 0.7]), torch.tensor([1, 1, 0, 0])) == 0.25


def test_multiclass_accuracy_and_recall_look_at_the_best_k():
    scores = torch.tensor([[0.1, 0.2, 0.7], [0.5, 0.3, 0.2], [0.2, 0.3, 0.5], [0.6, 0.3, 0.1]])
    labels = torch.tensor([2, 1, 0, 0])
    assert value(Accuracy(num_class=3), scores, labels) == 0.5
    assert value(Accuracy(num_class=3, top_k=2), scores, labels) == 0.75
    assert value(RecallAtK(top_k=1), scores, labels) == 0.5
    assert value(RecallAtK(top_k=2), scores, labels) == 0.75
    assert value(RecallAtK(top_k=50), scores, labels) == 1


def test_recall_takes_positives_marked_in_a_matrix():
    scores = torch.tensor([[0.1, 0.2, 0.7], [0.5, 0.3, 0.2], [0.2, 0.3, 0.5], [0.6, 0.3, 0.1]])
    diagonal_first = torch.tensor([[0, 0, 1], [0, 1, 0], [1, 0, 0], [1, 0, 0]], dtype=torch.bool)
    assert value(RecallAtK(top_k=1), scores, diagonal_first) == 0.5
    assert value(RecallAtK(top_k=2), scores, diagonal_first.long()) == 0.75
    several = torch.tensor([[0, 1, 1], [0, 1, 1], [0, 0, 0], [1, 0, 0]], dtype=torch.bool)
    assert value(RecallAtK(top_k=1), scores, several) == pytest.approx(2 / 5)


def test_k_out_of_range_is_refused():
    with pytest.raises(ConfigError, match=r"accuracy\.top_k = 2 .* num_class = 1"):
        Accuracy(top_k=2)
    with pytest.raises(ConfigError, match=r"recall_at_k\.top_k = 0"):
        RecallAtK(top_k=0)


def test_relative_l1_divides_by_the_larger_of_the_two():
    left, right = torch.tensor([[1.0, 0.0], [-2.0, 1.0]]), torch.tensor([[4.0, 0.0], [2.0, 1.0]])
    assert value(RelativeL1(), left, right, batch_size=1) == pytest.approx((0.75 + 0 + 2 + 0) / 4, rel=1e-4)


def metrics():
    return [
        Accuracy(),
        Calibration(),
        LogLoss(),
        MeanAbsoluteError(),
        MeanSquaredError(),
        NormalizedEntropy(),
        RelativeL1(),
    ]


@pytest.mark.parametrize("index", range(len(metrics())))
def test_two_ranks_equal_one_and_reset_starts_anew(index, two_ranks):
    whole = metrics()[index]
    expected = value(whole, PROBS, LABELS)
    first, second = metrics()[index], metrics()[index]
    first.update(PROBS[:3], LABELS[:3])
    second.update(PROBS[3:], LABELS[3:])
    assert two_ranks(first, second).item() == pytest.approx(expected, rel=1e-6)
    whole.reset()
    assert value(whole, PROBS, LABELS, batch_size=4) == pytest.approx(expected, rel=1e-6)


def test_no_rows_is_nan():
    metric = LogLoss()
    metric.update(torch.empty(0), torch.empty(0))
    assert metric.compute().isnan()
