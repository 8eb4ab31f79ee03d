import math
from math import log

import pytest
import torch
from sklearn.metrics import roc_auc_score
from tzrec_toy import GROUP, toy_batch, toy_config, toy_model

from tzrec_core.errors import ConfigError, DataError
from tzrec_core.features import create_features
from tzrec_core.models import TrainWrapper, create_model

BCE = "losses { binary_cross_entropy {} }"
SOFTMAX = "losses { softmax_cross_entropy {} }"
L2 = "losses { l2_loss {} }"
JRC = 'losses { jrc_loss { session_name: "user" } }'
PROBS = (0.9, 0.6, 0.4, 0.2)


def losses_of(model, output, labels, **kwargs):
    batch = toy_batch(labels, **kwargs)
    return model.loss(model._output_to_prediction(torch.tensor(output)), batch)


def metrics_of(model, predictions, batch, losses=None):
    model.update_metric({k: torch.tensor(v) for k, v in predictions.items()}, batch, losses)
    return {name: value.tolist() for name, value in model.compute_metric().items()}


# ---- predictions


@pytest.mark.parametrize(
    ("losses", "num_class", "shapes"),
    [
        (BCE, 1, {"logits": (4,), "probs": (4,)}),
        ("losses { binary_focal_loss {} }", 1, {"logits": (4,), "probs": (4,)}),
        (SOFTMAX, 2, {"logits": (4, 2), "probs": (4, 2), "probs1": (4,)}),
        (SOFTMAX, 3, {"logits": (4, 3), "probs": (4, 3)}),
        (JRC, 2, {"logits": (4, 2), "probs": (4, 2), "probs1": (4,)}),
        (L2, 1, {"y": (4,)}),
        (BCE + "losses { binary_focal_loss {} }", 1, {"logits": (4,), "probs": (4,)}),
        (BCE + L2, 1, {"logits": (4,), "probs": (4,), "y": (4,)}),
        (SOFTMAX + JRC, 2, {"logits": (4, 2), "probs": (4, 2), "probs1": (4,)}),
    ],
)
def test_a_loss_decides_what_is_predicted(losses, num_class, shapes):
    predictions = toy_model(f"{losses} num_class: {num_class}").predict(toy_batch())
    assert {name: tuple(value.shape) for name, value in predictions.items()} == shapes


def test_probabilities_are_sigmoid_or_softmax_of_the_logits():
    one = toy_model(BCE)._output_to_prediction(torch.tensor([[0.0], [log(3)]]))
    assert one["probs"].tolist() == pytest.approx([0.5, 0.75])
    two = toy_model(f"{SOFTMAX} num_class: 2")._output_to_prediction(torch.tensor([[0.0, log(3)]]))
    assert two["probs"].tolist() == [pytest.approx([0.25, 0.75])]
    assert two["probs1"].tolist() == pytest.approx([0.75])


def test_a_batch_of_one_row_keeps_its_dimension():
    for body, name in ((BCE, "logits"), (L2, "y")):
        assert toy_model(body).predict(toy_batch([1], [[1]]))[name].shape == (1,)


# ---- losses


LN2 = log(2)


@pytest.mark.parametrize(
    ("losses", "num_class", "output", "labels", "expected"),
    [
        (BCE, 1, [[0.0], [log(3)]], (1, 0), {"binary_cross_entropy": (LN2 + log(4)) / 2}),
        (
            "losses { binary_focal_loss { gamma: 2 alpha: 0.5 } }",
            1,
            [[0.0], [log(3)]],
            (1, 0),
            {"binary_focal_loss": (0.5 * 0.5**2 * LN2 + 0.5 * 0.75**2 * log(4)) / 2},
        ),
        (SOFTMAX, 2, [[0.0, 0.0], [0.0, log(3)]], (1, 0), {"softmax_cross_entropy": (LN2 + log(4)) / 2}),
        (SOFTMAX, 3, [[0.0, LN2, 0.0], [0.0, 0.0, 0.0]], (1, 2), {"softmax_cross_entropy": (LN2 + log(3)) / 2}),
        # One session: each row's cross entropy and its contest against the other row have the same two logits.
        (JRC, 2, [[0.0, LN2], [0.0, 0.0]], (1, 0), {"jrc_loss": (log(1.5) + LN2) / 2}),
        (L2, 1, [[1.0], [3.0]], (0, 1), {"l2_loss": (1 + 4) / 2}),
        (
            BCE + L2,
            1,
            [[0.0], [log(3)]],
            (1, 0),
            {"binary_cross_entropy": (LN2 + log(4)) / 2, "l2_loss": (1 + log(3) ** 2) / 2},
        ),
    ],
)
@pytest.mark.parametrize("dtype", ["int64", "float32"])
def test_losses_worked_by_hand(losses, num_class, output, labels, expected, dtype):
    model = toy_model(f"{losses} num_class: {num_class}")
    found = losses_of(model, output, labels, users=[[1], [1]], dtype=dtype)
    assert {name: value.item() for name, value in found.items()} == pytest.approx(expected)


def test_the_session_of_jrc_is_the_first_id_of_its_feature_and_0_without_one():
    model = toy_model(f"{JRC} num_class: 2")
    output = [[0.3, 0.9], [0.1, -0.2], [0.5, 0.4], [0.2, 0.7]]
    labels = (1, 0, 1, 0)
    together = losses_of(model, output, labels, users=[[2, 3], [2], [], [0]])
    apart = losses_of(model, output, labels, users=[[2], [2], [0], [0]])
    other = losses_of(model, output, labels, users=[[2], [0], [2], [0]])
    assert together["jrc_loss"].item() == pytest.approx(apart["jrc_loss"].item())
    assert together["jrc_loss"].item() != pytest.approx(other["jrc_loss"].item())


def test_sample_weights_are_taken_relative_to_their_mean():
    model = toy_model(BCE, sample_weights=["w"])
    found = losses_of(model, [[0.0], [log(3)]], (1, 0), users=[[1], [1]], w=[1.0, 3.0])
    assert found["binary_cross_entropy"].item() == pytest.approx((0.5 * LN2 + 1.5 * log(4)) / 2)


@pytest.mark.parametrize(
    ("losses", "num_class"), [(BCE, 1), ("losses { binary_focal_loss {} }", 1), (SOFTMAX, 2), (JRC, 2), (L2, 1)]
)
def test_equal_weights_change_nothing_and_zero_weights_give_a_loss_of_zero(losses, num_class):
    output = [[0.3, 0.9][:num_class], [0.1, -0.2][:num_class]]
    plain = losses_of(toy_model(f"{losses} num_class: {num_class}"), output, (1, 0), users=[[1], [1]])
    model = toy_model(f"{losses} num_class: {num_class}", sample_weights=["w"])
    equal = losses_of(model, output, (1, 0), users=[[1], [1]], w=[7.0, 7.0])
    assert {k: v.item() for k, v in equal.items()} == pytest.approx({k: v.item() for k, v in plain.items()})
    leaf = torch.tensor(output, requires_grad=True)
    batch = toy_batch((1, 0), [[1], [1]], w=[0.0, 0.0])
    (loss,) = model.loss(model._output_to_prediction(leaf), batch).values()
    loss.backward()
    assert loss.item() == 0
    assert leaf.grad.abs().sum().item() == 0


def test_a_class_that_num_class_does_not_have_is_a_data_error():
    model = toy_model(f"{SOFTMAX} num_class: 2")
    with pytest.raises(DataError, match=r"label 'label' holds 2, but num_class = 2 has the classes 0 to 1"):
        losses_of(model, [[0.0, 0.0], [0.0, 0.0]], (1, 2), users=[[1], [1]])


# ---- metrics


def test_metrics_of_one_probability_worked_by_hand():
    body = BCE + "".join(
        f"metrics {{ {metric} }}"
        for metric in (
            "auc {}",
            "accuracy {}",
            'grouped_auc { grouping_key: "user" }',
            "normalized_entropy {}",
            "logloss {}",
            "calibration {}",
        )
    )
    found = metrics_of(toy_model(body), {"probs": PROBS}, toy_batch(), {"binary_cross_entropy": torch.tensor(0.25)})
    logloss = -(log(0.9) + log(0.4) + log(0.4) + log(0.8)) / 4
    assert found == pytest.approx(
        {
            "auc": 3 / 4,  # 0.4 is below 0.6
            "accuracy": 2 / 4,
            "grouped_auc": 1.0,
            "normalized_entropy": logloss / LN2,
            "logloss": logloss,
            "calibration": 2.1 / 2,
            "binary_cross_entropy": 0.25,
        }
    )


def test_the_threshold_of_accuracy_counts():
    model = toy_model(BCE + "metrics { accuracy { threshold: 0.3 } }")
    assert metrics_of(model, {"probs": PROBS}, toy_batch())["accuracy"] == 3 / 4


def test_metrics_of_numbers_worked_by_hand():
    body = L2 + "".join(
        f"metrics {{ {metric} }}"
        for metric in (
            "mean_absolute_error {}",
            "mean_squared_error {}",
            "xauc { in_batch: true }",
            'grouped_xauc { grouping_key: "user" }',
        )
    )
    batch = toy_batch((1.0, 2.0, 3.0, 4.0), dtype="float32")
    found = metrics_of(toy_model(body), {"y": (1.5, 1.0, 5.0, 6.0)}, batch, {"l2_loss": torch.tensor(2.0)})
    assert found == pytest.approx(
        {
            "mean_absolute_error": (0.5 + 1 + 2 + 2) / 4,
            "mean_squared_error": (0.25 + 1 + 4 + 4) / 4,
            "xauc": 5 / 6,  # only the first two are swapped
            "grouped_xauc": 1 / 2,
            "l2_loss": 2.0,
        }
    )


THREE = ((0.5, 0.3, 0.2), (0.1, 0.3, 0.6), (0.4, 0.5, 0.1), (0.3, 0.4, 0.3))


def test_metrics_of_several_classes():
    body = f"{SOFTMAX} num_class: 3 metrics {{ accuracy {{}} }} metrics {{ multiclass_auc {{}} }}"
    found = metrics_of(toy_model(body), {"probs": THREE}, toy_batch((0, 2, 0, 1)))
    expected = roc_auc_score((0, 2, 0, 1), THREE, multi_class="ovr", average="macro")
    assert found["accuracy"] == 3 / 4
    assert found["multiclass_auc"] == pytest.approx(expected)


def test_top_k_of_accuracy_counts():
    model = toy_model(f"{SOFTMAX} num_class: 3 metrics {{ accuracy {{ top_k: 2 }} }}")
    assert metrics_of(model, {"probs": THREE}, toy_batch((0, 0, 0, 1)))["accuracy"] == 3 / 4


@pytest.mark.parametrize("loss", [SOFTMAX, JRC])
def test_two_classes_have_the_metrics_of_one_and_of_several(loss):
    names = ["auc {}", "logloss {}", "calibration {}", "accuracy {}", "multiclass_auc {}"]
    body = f"{loss} num_class: 2" + "".join(f" metrics {{ {name} }}" for name in names)
    probs = [(1 - p, p) for p in PROBS]
    found = metrics_of(toy_model(body), {"probs": probs, "probs1": PROBS}, toy_batch())
    assert found["auc"] == found["multiclass_auc"] == 3 / 4
    assert found["accuracy"] == 2 / 4
    assert found["calibration"] == pytest.approx(2.1 / 2)


@pytest.mark.parametrize("metric", ["auc", "multiclass_auc"])
def test_auc_is_exact_when_thresholds_are_unset_and_binned_when_they_are_set(metric):
    probs = (0.0012, 0.0011, 0.0010, 0.0009)  # all within the first of 200 bins
    found = {}
    for name, settings in (("exact", ""), ("binned", "thresholds: 200")):
        body = f"{SOFTMAX} num_class: 2 metrics {{ {metric} {{ {settings} }} }}"
        predictions = {"probs": [(1 - p, p) for p in probs], "probs1": probs}
        found[name] = metrics_of(toy_model(body), predictions, toy_batch((1, 1, 0, 0)))[metric]
    assert found == {"exact": 1.0, "binned": pytest.approx(0.5)}


def test_labels_that_are_shares_reach_the_metrics_as_they_are():
    model = toy_model(BCE + "metrics { calibration {} } metrics { logloss {} }")
    batch = toy_batch((0.5, 0.5), [[1], [1]], dtype="float32")
    found = metrics_of(model, {"probs": (0.5, 0.5)}, batch)
    assert found["calibration"] == 1.0
    assert found["logloss"] == pytest.approx(LN2)


def test_auc_refuses_labels_that_are_shares():
    model = toy_model(BCE + "metrics { auc {} }")
    with pytest.raises(DataError, match=r"auc takes the labels 0 to 1, got 0.5"):
        metrics_of(model, {"probs": (0.5, 0.5)}, toy_batch((0.5, 1.0), [[1], [1]], dtype="float32"))


def test_the_mean_of_a_loss_weighs_batches_by_their_rows():
    model = toy_model(BCE)
    for labels, loss in (((1, 0, 1), 1.0), ((1,), 5.0)):
        batch = toy_batch(labels, [[1]] * len(labels))
        model.update_metric({"probs": torch.tensor([0.5] * len(labels))}, batch,
                            {"binary_cross_entropy": torch.tensor(loss)})  # fmt: skip
    assert model.compute_metric()["binary_cross_entropy"].item() == pytest.approx((3 * 1.0 + 5.0) / 4)


def test_every_loss_has_a_mean_metric_of_its_name():
    model = toy_model(BCE + L2)
    losses = {"binary_cross_entropy": torch.tensor(1.0), "l2_loss": torch.tensor(2.0)}
    assert metrics_of(model, {"probs": PROBS}, toy_batch(), losses) == losses


def test_metrics_start_afresh_after_they_are_computed():
    model = toy_model(BCE + "metrics { accuracy {} }")
    assert metrics_of(model, {"probs": PROBS}, toy_batch((0, 0, 1, 1)))["accuracy"] == 0
    assert metrics_of(model, {"probs": PROBS}, toy_batch((1, 1, 0, 0)))["accuracy"] == 1


def test_grouped_metrics_tell_large_ids_apart():
    model = toy_model(BCE + 'metrics { grouped_auc { grouping_key: "user" } }')
    big = 2**53
    found = metrics_of(model, {"probs": PROBS}, toy_batch((1, 0, 0, 1), users=[[big], [big], [big + 1], [big + 1]]))
    assert found["grouped_auc"] == 0.5


# ---- train metrics


def test_train_metrics_are_zero_until_decay_step_batches_were_seen():
    model = toy_model(BCE + "train_metrics { accuracy {} decay_rate: 0.75 decay_step: 2 }")
    seen = []
    for labels in ((1, 1, 0, 0), (0, 0, 1, 1), (1, 1, 0, 0), (1, 1, 0, 0)):
        model.update_train_metric({"probs": torch.tensor(PROBS)}, toy_batch(labels))
        seen.append(model.compute_train_metric()["accuracy"].item())
    assert seen == pytest.approx([0.0, 0.5, 0.5, 0.75 * 0.5 + 0.25 * 1.0])


@pytest.mark.parametrize(
    ("body", "predictions", "expected"),
    [
        (f"{BCE} train_metrics {{ auc {{}} decay_step: 1 }}", {"probs": PROBS}, {"auc": 0.75}),
        (
            f"{SOFTMAX} num_class: 2 train_metrics {{ auc {{}} decay_step: 1 }}",
            {"probs": [(1 - p, p) for p in PROBS], "probs1": PROBS},
            {"auc": 0.75},
        ),
        (
            f"{L2} train_metrics {{ mean_absolute_error {{}} decay_step: 1 }}"
            "train_metrics { mean_squared_error {} decay_step: 1 }"
            "train_metrics { xauc { in_batch: true } decay_step: 1 }",
            {"y": (1.5, 0.5, 1.0, 0.0)},
            {"mean_absolute_error": 0.25, "mean_squared_error": 0.125, "xauc": 4 / 6},
        ),
    ],
)
def test_every_train_metric_reads_what_the_loss_predicts(body, predictions, expected):
    model = toy_model(body)
    model.update_train_metric({k: torch.tensor(v) for k, v in predictions.items()}, toy_batch())
    found = {name: value.item() for name, value in model.compute_train_metric().items()}
    assert found == pytest.approx(expected, abs=1e-4)


def test_train_metrics_and_metrics_of_one_name_are_apart():
    model = toy_model(BCE + "metrics { auc {} } train_metrics { auc {} decay_step: 1 }")
    model.update_train_metric({"probs": torch.tensor(PROBS)}, toy_batch())
    assert metrics_of(model, {"probs": PROBS}, toy_batch((0, 1, 0, 1)))["auc"] == 0.25
    assert model.compute_train_metric()["auc"].item() == pytest.approx(0.75)


def test_a_saved_model_holds_its_train_metrics():
    model = toy_model(BCE + "train_metrics { auc {} decay_step: 1 }")
    model.update_train_metric({"probs": torch.tensor(PROBS)}, toy_batch())
    other = toy_model(BCE + "train_metrics { auc {} decay_step: 1 }")
    other.load_state_dict(model.state_dict())
    assert other.compute_train_metric()["auc"].item() == pytest.approx(0.75)


# ---- variational dropout


DROPOUT = BCE + "variational_dropout { regularization_lambda: 0.5 }"


def test_variational_dropout_scales_the_features_by_what_they_keep():
    model = toy_model(DROPOUT)
    dropout = model.group_variational_dropouts["all"]
    with torch.no_grad():
        dropout.feature_p.copy_(torch.tensor([0.0, 50.0, -50.0]))  # halved, dropped, kept
    batch = toy_batch()
    plain = model.embedding_group(batch)["all"]
    scaled = model.build_input(batch)["all"]
    torch.testing.assert_close(scaled[:, :2], plain[:, :2] / 2)
    assert scaled[:, 2:5].abs().sum().item() == 0
    torch.testing.assert_close(scaled[:, 5:], plain[:, 5:])


def test_the_loss_of_variational_dropout_joins_the_total():
    model = toy_model(DROPOUT, ready=False)
    with torch.no_grad():
        model.group_variational_dropouts["all"].feature_p.copy_(torch.tensor([0.0, 50.0, -50.0]))
    total, (losses, _, _) = TrainWrapper(model)(toy_batch())
    assert list(losses) == ["binary_cross_entropy", "all_feature_p_loss"]
    assert losses["all_feature_p_loss"].item() == pytest.approx(0.5 / 4 * (0.5 + 0 + 1))
    assert total.item() == pytest.approx(sum(loss.item() for loss in losses.values()))


def test_the_loss_of_variational_dropout_reaches_its_probabilities():
    model = toy_model(DROPOUT, ready=False).train()
    TrainWrapper(model)(toy_batch())[0].backward()
    assert model.group_variational_dropouts["all"].feature_p.grad.abs().min().item() > 0


def test_groups_of_one_feature_and_sequence_groups_have_no_variational_dropout():
    one = 'feature_groups { group_name: "all" group_type: DEEP feature_names: "user" }'
    steps = 'feature_groups { group_name: "clicks" group_type: SEQUENCE feature_names: "clicks" feature_names: "user" }'
    model = toy_model(DROPOUT, groups=one + steps)
    assert not model.group_variational_dropouts
    assert list(model.loss(model.predict(toy_batch()), toy_batch())) == ["binary_cross_entropy"]


def test_variational_dropout_refuses_jagged_groups():
    steps = 'feature_groups { group_name: "clicks" group_type: JAGGED_SEQUENCE feature_names: "clicks" }'
    with pytest.raises(ConfigError, match=r"variational_dropout does not work on JAGGED_SEQUENCE.*'clicks'"):
        toy_model(DROPOUT, groups=GROUP + steps)


def test_serving_computes_no_dropout_loss():
    model = toy_model(DROPOUT)
    model.set_is_inference(True)
    model.predict(toy_batch())
    model.set_is_inference(False)
    assert list(model.loss({"logits": torch.zeros(4)}, toy_batch())) == ["binary_cross_entropy"]


# ---- what does not fit


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("", r"model_config.losses is empty; add one, such as losses \{ binary_cross_entropy"),
        ("losses {}", r"a loss is empty; write one, such as losses \{"),
        (BCE + "num_class: 2", r"num_class = 2 does not fit binary_cross_entropy, which takes 1"),
        ("losses { binary_focal_loss {} } num_class: 2", r"num_class = 2 does not fit binary_focal_loss"),
        (SOFTMAX, r"num_class = 1 does not fit softmax_cross_entropy, which takes at least 2"),
        (JRC + "num_class: 3", r"num_class = 3 does not fit jrc_loss, which takes 2"),
        (L2 + "num_class: 2", r"num_class = 2 does not fit l2_loss, which takes 1"),
        (BCE + BCE, r"loss 'binary_cross_entropy' is configured twice; keep one"),
        (BCE + "metrics { auc {} } metrics { auc {} }", r"metric 'auc' is configured twice; keep one"),
        (
            BCE + "train_metrics { auc {} } train_metrics { auc {} }",
            r"train metric 'auc' is configured twice; keep one",
        ),
        (BCE + "metrics {}", r"a metric is empty; write one, such as metrics \{ auc"),
        (BCE + "metrics { recall_at_k {} }", r"metric 'recall_at_k' is not supported by rank models"),
        (BCE + "train_metrics { recall_at_k {} }", r"metric 'recall_at_k' is not supported by rank models"),
        (
            BCE + "metrics { multiclass_auc {} }",
            r"'multiclass_auc' reads softmax predictions.*num_class = 1 the model gives binary",
        ),
        (L2 + "metrics { auc {} }", r"'auc' reads binary predictions.*the model gives value"),
        (BCE + "metrics { xauc {} }", r"'xauc' reads value predictions.*the model gives binary"),
        (SOFTMAX + "num_class: 3 metrics { auc {} }", r"'auc' reads binary predictions.*num_class = 3"),
        (L2 + "train_metrics { auc {} }", r"'auc' reads binary predictions.*the model gives value"),
        (BCE + "metrics { accuracy { top_k: 2 } }", r"accuracy.top_k = 2 does not lie between 1 and num_class = 1"),
        (BCE + "metrics { auc { thresholds: 1 } }", r"auc.thresholds = 1: give at least 2"),
    ],
)
def test_what_does_not_fit_is_a_config_error(body, words):
    with pytest.raises(ConfigError, match=words):
        toy_model(body)


@pytest.mark.parametrize("metric", ["grouped_auc", "grouped_xauc"])
def test_a_grouping_key_that_is_no_id_feature_names_those_of_the_batch(metric):
    loss, prediction = (BCE, "probs") if metric == "grouped_auc" else (L2, "y")
    model = toy_model(f'{loss} metrics {{ {metric} {{ grouping_key: "price" }} }}')
    with pytest.raises(ConfigError, match=r"grouping_key = 'price' is not an id feature.*user, tags, clicks"):
        metrics_of(model, {prediction: PROBS}, toy_batch())


# ---- plugins


def test_a_plugins_loss_and_metric_work_like_the_cores_own():
    body = """losses { plugin { [tzrec.dev/tzrec_core.protos.SidReconLoss] { recon_type: "l1" } } }
    metrics { plugin { [tzrec.dev/tzrec_core.protos.SidContrastiveLoss] {} } }"""
    model = toy_model(body)
    assert model._loss_modules["absolute_loss"].recon_type == "l1"
    losses = losses_of(model, [[1.0], [3.0]], (0, 1), users=[[1], [1]])
    assert {k: v.item() for k, v in losses.items()} == {"absolute_loss": 1.5}
    found = metrics_of(model, {"y": (1.0, 3.0)}, toy_batch((0, 1), [[1], [1]]), losses)
    assert found == pytest.approx({"relative_l1": (1 + 2 / 3) / 2, "absolute_loss": 1.5}, abs=1e-4)


def test_gradients_reach_every_parameter():
    for body in (BCE, f"{SOFTMAX} num_class: 3", f"{JRC} num_class: 2", L2, BCE + L2):
        model = toy_model(body).train()
        sum(model.loss(model.predict(toy_batch()), toy_batch()).values()).backward()
        assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()] == []


def test_the_first_label_and_the_first_sample_weight_are_the_models():
    config = toy_config(BCE)
    features = create_features(config.feature_configs, config.data_config)
    model = create_model(config.model_config, features, ["label", "other"], ["w", "v"])
    model.init_loss()
    losses = losses_of(model, [[0.0], [log(3)]], (1, 0), users=[[1], [1]], w=[1.0, 0.0], v=[0.0, 1.0])
    assert math.isclose(losses["binary_cross_entropy"].item(), LN2, rel_tol=1e-6)
