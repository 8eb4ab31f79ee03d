import torch

from tzrec_core.losses import L2Loss


def test_l2_is_the_squared_difference_also_for_whole_number_labels():
    preds, labels = torch.tensor([1.5, -1.0]), torch.tensor([1, 1])
    assert L2Loss(reduction="none")(preds, labels).tolist() == [0.25, 4.0]
    assert L2Loss()(preds, labels).item() == 2.125
