import torch

from tzrec_core.losses import BinaryCrossEntropy, BinaryFocalLoss


def test_gamma_zero_and_even_alpha_is_half_the_cross_entropy():
    logits, labels = torch.tensor([2.0, -1.0, 0.3]), torch.tensor([1, 1, 0])
    loss = BinaryFocalLoss(gamma=0.0, alpha=0.5)(logits, labels)
    torch.testing.assert_close(loss, BinaryCrossEntropy()(logits, labels) / 2)


def test_no_gradient_flows_through_the_weight():
    logits = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
    BinaryFocalLoss(gamma=2.0, alpha=0.25)(logits, torch.tensor([1])).backward()
    prob = logits.detach().sigmoid()
    torch.testing.assert_close(logits.grad, 0.25 * (1 - prob) ** 2 * (prob - 1))
