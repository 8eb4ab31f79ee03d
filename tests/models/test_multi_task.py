from math import log
from pathlib import Path

import pytest
import torch
from tzrec_toy_tasks import PLUGIN

from tzrec_core.config import find_mistakes, parse_config
from tzrec_core.errors import ConfigError, DataError
from tzrec_core.features import create_features
from tzrec_core.models import TrainWrapper, create_model
from tzrec_core.modules import TaskTower
from tzrec_core.plugins import Registry, use_registry
from tzrec_core.testing.golden import assert_model_golden, golden_batch, golden_config_text, load_golden

GOLDENS = Path(__file__).parents[1] / "goldens"
FEATURES = """
feature_configs { id_feature { feature_name: "user" expression: "user:user" num_buckets: 5 embedding_dim: 2 } }
feature_configs { raw_feature { feature_name: "price" expression: "item:price" } }
"""
GROUP = 'feature_groups { group_name: "all" group_type: DEEP feature_names: ["user", "price"] }'
DATA = 'label_fields: ["click", "buy"] sample_weight_fields: ["w", "v"]'
BCE = "losses { binary_cross_entropy {} }"
L2 = "losses { l2_loss {} }"
SOFTMAX = "losses { softmax_cross_entropy {} }"
LN2 = log(2)


@pytest.fixture(autouse=True, scope="module")
def only_the_toys_of_several_tasks_are_installed():
    with use_registry(Registry([PLUGIN])):
        yield


def tower(name="ctr", body=BCE, label="click"):
    return f'task_towers {{ tower_name: "{name}" label_name: "{label}" {body} }}'


def config_of(*towers, body="", data=DATA):
    settings = " ".join(towers)
    text = f"data_config {{ {data} }} {FEATURES} model_config {{ {GROUP} plain {{ {settings} }} {body} }}"
    return parse_config(text, partial=True)


def model_of(*towers, ready=True, **kwargs):
    """A toy in eval mode; `ready` = with its losses and metrics built."""
    config = config_of(*towers, **kwargs)
    features = create_features(config.feature_configs, config.data_config)
    data_config = config.data_config
    torch.manual_seed(0)
    model = create_model(
        config.model_config, features, list(data_config.label_fields), list(data_config.sample_weight_fields)
    ).eval()
    if ready:
        model.init_loss()
        model.init_metric()
    return model


def batch_of(click=(1, 0, 1, 0), buy=(1, 0, 0, 0), **weights):
    n = len(click)
    return golden_batch(
        {
            "sparse": {"__BASE__": {"user": {"lengths": [1] * n, "values": [i % 5 for i in range(n)]}}},
            "dense": {"__BASE__": {"price": [[i / 4] for i in range(n)]}},
            "labels": {"click": {"values": list(click)}, "buy": {"values": list(buy)}},
            "sample_weights": {
                name: {"values": list(w)} for name, w in {"w": [1] * n, "v": [1] * n, **weights}.items()
            },
        }
    )


def losses_of(model, outputs, batch):
    """Losses by key of the outputs by tower name."""
    predictions = model._multi_task_output_to_prediction({k: torch.tensor(v) for k, v in outputs.items()})
    return {name: value.item() for name, value in model.loss(predictions, batch).items()}


# ---- the numbers of TorchEasyRec


def test_mmoe_computes_the_numbers_of_torcheasyrec():
    golden = load_golden(GOLDENS / "mmoe.json")

    def build():
        config = parse_config(golden_config_text(golden), partial=True)
        features = create_features(config.feature_configs, config.data_config)
        return create_model(config.model_config, features, golden["labels"])

    assert_model_golden(golden, build)


# ---- towers


def test_a_tower_is_an_mlp_and_a_linear_layer():
    layers = TaskTower(2, 1, mlp={"hidden_units": [1], "bias": False})
    with torch.no_grad():
        layers.tower_mlp.mlp[0].perceptron[0].weight.copy_(torch.tensor([[1.0, -2.0]]))
        layers.linear.weight.fill_(3.0)
        layers.linear.bias.fill_(0.5)
    assert layers(torch.tensor([[4.0, 1.0], [0.0, 1.0]])).tolist() == [[6.5], [0.5]]  # relu(2) * 3 and relu(-2) * 3


def test_a_tower_without_an_mlp_is_a_linear_layer():
    assert [name for name, _ in TaskTower(2, 3).named_parameters()] == ["linear.weight", "linear.bias"]


def test_mlp_gives_a_tower_layers_of_its_own():
    model = model_of(tower("a", BCE + "mlp { hidden_units: [4] }"), tower("b", BCE))
    assert [layers.linear.in_features for layers in model._task_tower] == [4, 3]


def test_gradients_reach_every_parameter():
    model = model_of(tower("ctr", BCE + "mlp { hidden_units: [4] }"), tower("cvr", L2, "buy")).train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_()  # no unit of the MLP is dead
    sum(model.loss(model.predict(batch_of()), batch_of()).values()).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()] == []


# ---- predictions


@pytest.mark.parametrize(
    ("body", "shapes"),
    [
        (BCE, {"logits_a": (4,), "probs_a": (4,)}),
        ("losses { binary_focal_loss {} }", {"logits_a": (4,), "probs_a": (4,)}),
        (f"{SOFTMAX} num_class: 2", {"logits_a": (4, 2), "probs_a": (4, 2), "probs1_a": (4,)}),
        (f"{SOFTMAX} num_class: 3", {"logits_a": (4, 3), "probs_a": (4, 3)}),
        (
            'losses { jrc_loss { session_name: "user" } } num_class: 2',
            {"logits_a": (4, 2), "probs_a": (4, 2), "probs1_a": (4,)},
        ),
        (L2, {"y_a": (4,)}),
        (BCE + L2, {"logits_a": (4,), "probs_a": (4,), "y_a": (4,)}),
    ],
)
def test_the_losses_of_a_tower_decide_what_is_predicted_for_it(body, shapes):
    predictions = model_of(tower("a", body), tower("b", L2, "buy")).predict(batch_of())
    assert {name: tuple(value.shape) for name, value in predictions.items()} == {**shapes, "y_b": (4,)}


def test_each_tower_has_its_own_number_of_classes():
    model = model_of(tower("a", f"{SOFTMAX} num_class: 3"), tower("b", f"{SOFTMAX} num_class: 2"))
    predictions = model.predict(batch_of())
    assert [predictions[f"probs_{name}"].shape[1] for name in "ab"] == [3, 2]


# ---- losses


def test_a_tower_reads_its_own_label_and_its_own_output():
    model = model_of(tower("ctr", BCE), tower("paid", L2, "buy"))
    found = losses_of(model, {"ctr": [[0.0], [log(3)]], "paid": [[1.0], [3.0]]}, batch_of((1, 0), (0, 1)))
    assert found == pytest.approx({"binary_cross_entropy_ctr": (LN2 + log(4)) / 2, "l2_loss_paid": (1 + 4) / 2})


def test_several_losses_of_a_tower_stand_side_by_side():
    found = losses_of(model_of(tower("a", BCE + L2)), {"a": [[0.0], [log(3)]]}, batch_of((1, 0), (0, 0)))
    assert found == pytest.approx({"binary_cross_entropy_a": (LN2 + log(4)) / 2, "l2_loss_a": (1 + log(3) ** 2) / 2})


def squared(settings, click=(1, 0, 1), buy=(0, 0, 0), **weights):
    """The loss of a tower that is 1, 2 and 3 off in three rows: squared errors 1, 4 and 9."""
    model = model_of(tower("t", f"{L2} {settings}", "buy"))
    return losses_of(model, {"t": [[1.0], [2.0], [3.0]]}, batch_of(click, buy, **weights))["l2_loss_t"]


def test_weight_is_a_factor():
    assert squared("") == pytest.approx(14 / 3)
    assert squared("weight: 1") == pytest.approx(14 / 3)
    assert squared("weight: 0.5") == pytest.approx(7 / 3)
    assert squared("weight: 0") == 0


def test_the_sample_weight_is_the_one_that_the_tower_names_relative_to_its_mean():
    weights = {"w": [1.0, 1.0, 4.0], "v": [2.0, 0.0, 1.0]}
    assert squared("", **weights) == pytest.approx(14 / 3)
    assert squared('sample_weight_name: "w"', **weights) == pytest.approx((0.5 * 1 + 0.5 * 4 + 2 * 9) / 3)
    assert squared('sample_weight_name: "v"', **weights) == pytest.approx((2 * 1 + 1 * 9) / 3)
    assert squared('sample_weight_name: "w" weight: 10', **weights) == pytest.approx(10 * (0.5 + 2 + 18) / 3)
    assert squared('sample_weight_name: "w"', w=[0.0, 0.0, 0.0]) == 0


IN_CLICKS = 'task_space_indicator_label: "click"'


def test_rows_count_by_whether_they_are_in_the_space_of_the_task():
    # rows 1 and 3 are inside
    assert squared(IN_CLICKS) == pytest.approx(14 / 3)
    assert squared(f"{IN_CLICKS} out_task_space_weight: 0") == pytest.approx((1 + 9) / 2)
    assert squared(f"{IN_CLICKS} in_task_space_weight: 0") == pytest.approx(4)
    # weights 3, 2, 3 with the mean 8 / 3
    both = f"{IN_CLICKS} in_task_space_weight: 3 out_task_space_weight: 2"
    assert squared(both) == pytest.approx((3 * 1 + 2 * 4 + 3 * 9) / 8)


def test_the_space_of_a_task_is_where_its_indicator_is_above_0():
    assert squared(f"{IN_CLICKS} out_task_space_weight: 0", click=(-1, 0, 7)) == pytest.approx(9)


def test_the_weight_the_sample_weight_and_the_space_of_a_task_work_together():
    settings = f'{IN_CLICKS} out_task_space_weight: 0.5 sample_weight_name: "w" weight: 2'
    # weights 1 * 1, 2 * 0.5 and 4 * 1 with the mean 2
    assert squared(settings, w=[1.0, 2.0, 4.0]) == pytest.approx(2 * (0.5 * 1 + 0.5 * 4 + 2 * 9) / 3)


def test_a_task_with_nobody_in_its_space_has_a_loss_of_0_and_no_gradient():
    model = model_of(tower("t", f"{L2} {IN_CLICKS} out_task_space_weight: 0", "buy"))
    batch = batch_of((0, 0), (1, 0))
    leaf = torch.tensor([[1.0], [2.0]], requires_grad=True)
    (loss,) = model.loss(model._multi_task_output_to_prediction({"t": leaf}), batch).values()
    loss.backward()
    assert loss.item() == 0
    assert leaf.grad.abs().sum().item() == 0


@pytest.mark.parametrize(
    "body",
    [
        BCE,
        "losses { binary_focal_loss {} }",
        f"{SOFTMAX} num_class: 2",
        'losses { jrc_loss { session_name: "user" } } num_class: 2',
        L2,
    ],
)
def test_equal_weights_change_no_loss(body):
    plain, weighted = model_of(tower("t", body)), model_of(tower("t", f'{body} sample_weight_name: "w"'))
    batch = batch_of(w=[7.0] * 4)
    found = [{k: v.item() for k, v in m.loss(plain.predict(batch), batch).items()} for m in (plain, weighted)]
    assert found[0] == pytest.approx(found[1])


def test_the_losses_of_variational_dropout_are_added_once():
    model = model_of(tower("a"), tower("b", L2), body="variational_dropout {}").train()
    for _ in range(2):
        losses = model.loss(model.predict(batch_of()), batch_of())
        assert sorted(losses) == ["all_feature_p_loss", "binary_cross_entropy_a", "l2_loss_b"]


def test_training_sums_the_losses_of_all_towers():
    wrapper = TrainWrapper(model_of(tower("a"), tower("b", L2, "buy"), ready=False))
    total, (losses, predictions, _) = wrapper(batch_of())
    assert total.item() == pytest.approx(sum(loss.item() for loss in losses.values()))
    assert sorted(predictions) == ["logits_a", "probs_a", "y_b"]


def test_a_class_that_num_class_does_not_have_is_a_data_error_of_that_label():
    model = model_of(tower("a"), tower("b", f"{SOFTMAX} num_class: 2", "buy"))
    with pytest.raises(DataError, match=r"label 'buy' holds 2, but num_class = 2 has the classes 0 to 1"):
        losses_of(model, {"a": [[0.0], [0.0]], "b": [[0.0, 0.0], [0.0, 0.0]]}, batch_of((1, 0), (1, 2)))


# ---- metrics


def test_metrics_of_each_tower_worked_by_hand():
    model = model_of(
        tower("ctr", BCE + 'metrics { auc {} } metrics { grouped_auc { grouping_key: "user" } }'),
        tower("paid", L2 + "metrics { mean_absolute_error {} }", "buy"),
    )
    predictions = {"probs_ctr": torch.tensor([0.9, 0.6, 0.4, 0.2]), "y_paid": torch.tensor([1.5, 1.0, 2.0, 0.0])}
    losses = {"binary_cross_entropy_ctr": torch.tensor(0.25), "l2_loss_paid": torch.tensor(2.0)}
    model.update_metric(predictions, batch_of(), losses)
    found = {name: value.item() for name, value in model.compute_metric().items()}
    grouped = found.pop("grouped_auc_ctr")
    assert grouped != grouped  # every user has one row: nothing to rank
    assert found == pytest.approx(
        {
            "auc_ctr": 3 / 4,  # 0.4 is below 0.6
            "mean_absolute_error_paid": (0.5 + 1 + 2 + 0) / 4,
            "binary_cross_entropy_ctr": 0.25,
            "l2_loss_paid": 2.0,
        }
    )


def test_two_classes_have_the_auc_of_the_second():
    model = model_of(tower("t", f"{SOFTMAX} num_class: 2 metrics {{ auc {{}} }}"))
    probs = torch.tensor([0.9, 0.6, 0.4, 0.2])
    model.update_metric({"probs_t": torch.stack([1 - probs, probs], 1), "probs1_t": probs}, batch_of())
    assert model.compute_metric()["auc_t"].item() == 3 / 4


def test_train_metrics_fade_tower_by_tower():
    body = "train_metrics { mean_absolute_error {} decay_rate: 0.5 decay_step: 1 }"
    model = model_of(tower("a", L2 + body), tower("b", L2 + body, "buy"))
    for y in (1.0, 2.0):
        model.update_train_metric({"y_a": torch.tensor([y] * 4), "y_b": torch.tensor([2 * y] * 4)}, batch_of())
    found = {name: value.item() for name, value in model.compute_train_metric().items()}
    assert found == pytest.approx(
        {
            "mean_absolute_error_a": (2 / 4 + 6 / 4) / 2,  # two clicks in four rows: 1 off twice, then 1 and 2 off
            "mean_absolute_error_b": (7 / 4 + 15 / 4) / 2,
        }
    )


# ---- mistakes


@pytest.mark.parametrize(
    ("towers", "words"),
    [
        (
            (tower("a"), tower("a", L2)),
            "plain.task_towers[0] and model_config.plain.task_towers[1] have one tower_name, 'a', which ends their "
            "predictions; rename one",
        ),
        (
            (tower("a.b"),),
            "task_towers[0].tower_name = 'a.b' ends names of predictions and metrics: write a name without",
        ),
        ((tower(""),), "task_towers[0].tower_name = '' ends names"),
        (
            (tower("a"), tower("b", BCE, "clik")),
            "model_config.plain.task_towers[1].label_name: 'clik' is not among data_config.label_fields (click, buy). "
            "Did you mean 'click'?",
        ),
        ((tower("a", BCE, ""),), "task_towers[0].label_name: '' is not among data_config.label_fields (click, buy)"),
        (
            (tower("a", BCE + 'sample_weight_name: "u"'),),
            "task_towers[0].sample_weight_name: 'u' is not among data_config.sample_weight_fields (w, v)",
        ),
        (
            (tower("a", BCE + 'task_space_indicator_label: "clicked"'),),
            "task_towers[0].task_space_indicator_label: 'clicked' is not among data_config.label_fields (click, buy). "
            "Did you mean 'click'?",
        ),
        (
            (tower("a", BCE + "out_task_space_weight: 0"),),
            "task_towers[0].out_task_space_weight has no effect without task_space_indicator_label; write that too, or",
        ),
    ],
)
def test_a_mistake_is_named_by_the_checks_and_by_the_model(towers, words):
    (said,) = find_mistakes(config_of(*towers), partial=True)
    assert words in said
    with pytest.raises(ConfigError) as caught:
        model_of(*towers, ready=False)
    assert caught.value.problems == [said]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (f"{BCE} num_class: 2", "num_class = 2 does not fit binary_cross_entropy, which takes 1"),
        (SOFTMAX, "num_class = 1 does not fit softmax_cross_entropy, which takes at least 2"),
        ("losses { recon_loss {} }", ""),
        (f"{L2} metrics {{ auc {{}} }}", "reads"),
        (f"{BCE} metrics {{ recall_at_k {{}} }}", "not support"),
    ],
)
def test_losses_metrics_and_num_class_that_do_not_fit_are_named_with_their_tower(body, words):
    towers = (tower("a"), tower("b", body, "buy"))
    said = find_mistakes(config_of(*towers), partial=True)
    assert any("task_towers[1]" in line and words in line for line in said), said
    with pytest.raises(ConfigError, match=r"'b'|task_towers\[1\]") as caught:
        TrainWrapper(model_of(*towers, ready=False))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("towers", "words"),
    [
        ((), "plain has no task; add one, such as task_towers"),
        ((tower("a", ""),), "losses is empty; add one, such as losses { binary_cross_entropy {} }"),
    ],
)
def test_a_model_without_tasks_and_a_task_without_losses_are_refused(towers, words):
    assert any(words in line for line in find_mistakes(config_of(*towers)))
    with pytest.raises(ConfigError, match=words):
        model_of(*towers)


@pytest.mark.parametrize("name", ["losses", "metrics", "train_metrics", "num_class"])
def test_what_the_model_config_says_of_one_task_is_refused(name):
    body = {"losses": BCE, "metrics": "metrics { auc {} }", "train_metrics": "train_metrics { auc {} }"}
    (said,) = find_mistakes(config_of(tower(), body=body.get(name, "num_class: 2")), partial=True)
    assert said == f"model_config.{name} is not read: write {name} into each task of model_config.plain, or remove it"


@pytest.mark.parametrize("field", ["weight", "in_task_space_weight", "out_task_space_weight"])
def test_weights_of_tasks_are_not_negative(field):
    (said,) = find_mistakes(config_of(tower("a", f"{BCE} {IN_CLICKS} {field}: -1")), partial=True)
    assert f"task_towers[0].{field}" in said and "not negative" in said


def test_the_share_of_a_task_by_pareto_efficiency_is_refused():
    towers = (tower("a", f"{BCE} pareto_min_loss_weight: 0.3"), tower("b", L2))
    assert "pareto_min_loss_weight: weighing losses by Pareto efficiency is not supported yet" in "".join(
        find_mistakes(config_of(*towers), partial=True)
    )
    with pytest.raises(ConfigError, match="pareto_min_loss_weight: weighing losses by Pareto efficiency"):
        model_of(*towers)
    with pytest.raises(ConfigError, match="use_pareto_loss_weight: weighing losses by Pareto efficiency"):
        model_of(tower("a"), body="use_pareto_loss_weight: true")
