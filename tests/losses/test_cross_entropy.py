import math

import pytest
import torch

from tzrec_core.errors import ConfigError
from tzrec_core.losses import BinaryCrossEntropy, SoftmaxCrossEntropy


def test_binary_cross_entropy_of_logits_worked_by_hand():
    logits, labels = torch.tensor([0.0, math.log(3)]), torch.tensor([1, 0])
    rows = BinaryCrossEntropy(reduction="none")(logits, labels)
    torch.testing.assert_close(rows.tolist(), [math.log(2), math.log(4)])
    assert BinaryCrossEntropy()(logits, labels).item() == pytest.approx(1.5 * math.log(2))


def test_binary_smoothing_moves_labels_towards_one_half():
    logits = torch.tensor([math.log(3), math.log(3)])
    rows = BinaryCrossEntropy(label_smoothing=0.2, reduction="none")(logits, torch.tensor([1, 0]))
    right, wrong = -math.log(0.75), -math.log(0.25)
    torch.testing.assert_close(rows.tolist(), [0.9 * right + 0.1 * wrong, 0.1 * right + 0.9 * wrong])


def test_softmax_cross_entropy_spreads_the_smoothed_share_over_all_classes():
    logits, labels = torch.tensor([[0.0, math.log(2), 0.0]]), torch.tensor([1], dtype=torch.int32)
    probs = [0.25, 0.5, 0.25]
    loss = SoftmaxCrossEntropy(label_smoothing=0.3)(logits, labels).item()
    assert loss == pytest.approx(-sum(w * math.log(p) for w, p in zip([0.1, 0.8, 0.1], probs)))
    assert SoftmaxCrossEntropy(reduction="none")(logits, labels).shape == (1,)


def test_settings_out_of_range_are_refused_with_their_value():
    with pytest.raises(ConfigError, match=r"label_smoothing = 1\.5"):
        BinaryCrossEntropy(label_smoothing=1.5)
    with pytest.raises(ConfigError, match="reduction = 'sum' is not one of mean, none"):
        SoftmaxCrossEntropy(reduction="sum")
