import sys

import pytest
import torch
from tzrec_toy import PLUGIN, toy_batch, toy_config, toy_model

from tzrec_core.errors import ConfigError, PluginError
from tzrec_core.models.objectives import build_loss, build_metric, group_ids, loss_spec, metric_input, metric_spec
from tzrec_core.plugins import Output, Plugin, Registry, Task, use_registry

PLUGIN_LOSS = 'losses { plugin { [tzrec.dev/tzrec_core.protos.SidReconLoss] { recon_type: "l1" } } }'


def first_loss(body):
    return toy_config(body).model_config.losses[0]


def first_metric(body):
    return toy_config(body).model_config.metrics[0]


def test_settings_reach_the_constructor():
    loss = build_loss(first_loss("losses { binary_focal_loss { gamma: 3 alpha: 0.25 } }"),
                      task=Task.RANK, num_class=1, reduction="none")  # fmt: skip
    assert loss(torch.tensor([0.0]), torch.tensor([1.0])).shape == (1,)
    assert loss(torch.tensor([0.0]), torch.tensor([1.0])).item() == pytest.approx(0.25 * 0.5**3 * 0.6931472)


def test_a_grouping_field_is_no_setting_of_the_metric():
    metric = first_metric('metrics { grouped_xauc { grouping_key: "user" max_pairs_per_group: 7 } }')
    assert build_metric(metric, task=Task.RANK, num_class=1, outputs={Output.VALUE})._max_pairs == 7


def test_an_unset_number_of_pairs_keeps_the_constructors_default():
    metric = build_metric(first_metric("metrics { xauc {} }"), task=Task.RANK, num_class=1, outputs={Output.VALUE})
    assert metric._max_pairs is None


@pytest.mark.parametrize("task", [Task.MATCH, Task.SID])
def test_the_task_decides_which_losses_and_metrics_there_are(task):
    with pytest.raises(ConfigError, match=rf"loss 'l2_loss' is not supported by {task} models"):
        build_loss(first_loss("losses { l2_loss {} }"), task=task, num_class=1, reduction="mean")
    with pytest.raises(ConfigError, match=rf"metric 'auc' is not supported by {task} models"):
        build_metric(first_metric("metrics { auc {} }"), task=task, num_class=1, outputs={Output.BINARY})


@pytest.mark.parametrize(
    ("metric", "outputs", "num_class", "name"),
    [
        ("auc", {Output.BINARY}, 1, "probs"),
        ("auc", {Output.SOFTMAX}, 2, "probs1"),
        ("accuracy", {Output.BINARY}, 1, "probs"),
        ("accuracy", {Output.SOFTMAX}, 2, "probs"),
        ("multiclass_auc", {Output.SOFTMAX}, 3, "probs"),
        ("xauc", {Output.VALUE}, 1, "y"),
        ("recall_at_k", {Output.SIMILARITY}, 1, "similarity"),
        ("mean_squared_error", {Output.BINARY, Output.VALUE}, 1, "y"),
    ],
)
def test_a_metric_reads_the_prediction_that_it_can_use(metric, outputs, num_class, name):
    spec, _ = metric_spec(first_metric(f"metrics {{ {metric} {{}} }}"))
    assert metric_input(spec, outputs, num_class) == name


def test_without_losses_the_error_says_that_the_model_gives_nothing():
    spec, _ = metric_spec(first_metric("metrics { auc {} }"))
    with pytest.raises(ConfigError, match=r"'auc' reads binary predictions.*the model gives none"):
        metric_input(spec, set(), 1)


def test_group_ids_are_the_first_of_each_row_and_0_without_one():
    settings = metric_spec(first_metric('metrics { grouped_auc { grouping_key: "user" } }'))[1]
    batch = toy_batch((1, 0, 1), users=[[3, 1], [], [2**53 + 1]])
    assert group_ids(settings, "grouping_key", batch).tolist() == [3, 0, 2**53 + 1]
    assert group_ids(settings, "", batch) is None


def test_a_plugins_loss_is_unpacked_once_however_many_batches_there_are():
    loss = first_loss(PLUGIN_LOSS)
    assert loss_spec(loss)[1] is loss_spec(loss)[1]
    assert loss_spec(loss)[1].recon_type == "l1"


def test_another_registry_is_asked_anew():
    body = PLUGIN_LOSS
    loss = first_loss(body)
    loss_spec(loss)
    with use_registry(Registry([])), pytest.raises(PluginError, match=r"SidReconLoss is not the settings of a loss"):
        loss_spec(loss)


def test_a_batch_asks_the_registry_for_no_class():
    model = toy_model(PLUGIN_LOSS)
    assert isinstance(PLUGIN, Plugin)
    hidden = sys.modules.pop("tzrec_toy")
    try:
        model.loss(model.predict(toy_batch()), toy_batch())
    finally:
        sys.modules["tzrec_toy"] = hidden
