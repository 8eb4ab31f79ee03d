import pytest
import torch

from tzrec_core.errors import ConfigError
from tzrec_core.metrics import DecayAUC, GroupedAUC, MeanAbsoluteError, TrainMetricWrapper


def errors(*sizes):
    """Batches whose absolute error is given."""
    return [(torch.tensor([float(size)]), torch.zeros(1)) for size in sizes]


def published(wrapper, batches):
    values = []
    for batch in batches:
        wrapper.update(*batch)
        values.append(wrapper.compute().item())
    return values


def test_a_value_is_published_every_decay_step_updates_and_is_zero_before():
    wrapper = TrainMetricWrapper(MeanAbsoluteError(), decay_rate=0.75, decay_step=2)
    values = published(wrapper, errors(1, 3, 6, 6, 0, 0, 9))
    torch.testing.assert_close(values, [0.0, 2.0, 2.0, 3.0, 3.0, 2.25, 2.25])


def test_decay_auc_publishes_the_area_of_its_blended_counts():
    wrapper, alone = TrainMetricWrapper(DecayAUC(50), decay_rate=0.5, decay_step=2), DecayAUC(50)
    torch.manual_seed(0)
    batches = [(torch.rand(30), torch.randint(2, (30,))) for _ in range(4)]
    values = published(wrapper, batches)
    expected = [0.0]
    for i, batch in enumerate(batches):
        alone.update(*batch)
        if i % 2:
            alone.decay(0.5)
            expected += [alone.compute().item()] * 2
    torch.testing.assert_close(values, expected[:4])


def test_a_block_without_a_value_leaves_the_last_one():
    wrapper = TrainMetricWrapper(GroupedAUC(), decay_step=1)
    groups = torch.tensor([1, 1])
    wrapper.update(torch.tensor([0.1, 0.9]), torch.tensor([0, 1]), groups)
    wrapper.update(torch.tensor([0.1, 0.9]), torch.tensor([1, 1]), groups)
    assert wrapper.compute() == 1


def test_state_is_two_parameters_without_gradient_that_a_checkpoint_holds():
    wrapper = TrainMetricWrapper(MeanAbsoluteError(), decay_rate=0.5, decay_step=1)
    published(wrapper, errors(4))
    assert {n: p.requires_grad for n, p in wrapper.named_parameters()} == {
        "value": False,
        "step_total": False,
    }
    assert set(wrapper.state_dict()) == {"value", "step_total"}
    loaded = TrainMetricWrapper(MeanAbsoluteError(), decay_rate=0.5, decay_step=1)
    loaded.load_state_dict(wrapper.state_dict())
    assert published(loaded, errors(2)) == [3]
    assert loaded.step_total == 2


def test_reset_starts_from_zero():
    wrapper = TrainMetricWrapper(MeanAbsoluteError(), decay_step=2)
    published(wrapper, errors(4, 4, 4))
    wrapper.reset()
    assert published(wrapper, errors(1, 1)) == [0, 1]


def test_ranks_exchange_nothing():
    wrapper = TrainMetricWrapper(MeanAbsoluteError(), decay_step=1)
    wrapper.metric.distributed_available_fn = wrapper.distributed_available_fn = lambda: True
    wrapper.metric.dist_sync_fn = lambda tensor, group: pytest.fail("a collective in a training step")
    assert published(wrapper, errors(5)) == [5]


def test_settings_out_of_range_are_refused():
    with pytest.raises(ConfigError, match=r"decay_rate = 1"):
        TrainMetricWrapper(MeanAbsoluteError(), decay_rate=1)
    with pytest.raises(ConfigError, match=r"decay_step = 0"):
        TrainMetricWrapper(MeanAbsoluteError(), decay_step=0)
