"""What each field of model_config and of its losses, metrics and layers does, on the installed models."""

import math

import pytest
import torch
from torch import nn

from tzrec_core.models import TrainWrapper
from tzrec_core.testing.golden import golden_batch

FEATURES = """
feature_configs { id_feature { feature_name: "user" expression: "user:user" num_buckets: 9 embedding_dim: 4 } }
feature_configs { id_feature { feature_name: "item" expression: "item:item" num_buckets: 9 embedding_dim: 4 } }
"""
GROUPS = """
feature_groups { group_name: "wide" group_type: WIDE feature_names: ["user", "item"] }
feature_groups { group_name: "deep" group_type: DEEP feature_names: ["user", "item"] }
"""
DEEP = "deep { hidden_units: 8 }"
MODELS = ("deepfm", "wide_and_deep")
LN2 = math.log(2)


def text_of(body="losses { binary_cross_entropy {} }", model=f"wide_and_deep {{ {DEEP} }}", data=""):
    return f"data_config {{ {data} }} {FEATURES} model_config {{ {GROUPS} {model} {body} }}"


def batch_of(labels, users=(0, 0, 1, 1), **sample_weights):
    def column(ids):
        return {"lengths": [1] * len(labels), "values": list(ids)[: len(labels)]}

    return golden_batch(
        {
            "sparse": {"__BASE__": {"user": column(users), "item": column([1, 2, 3, 4])}},
            "labels": {"label": {"values": list(labels), "dtype": "float32"}},
            "sample_weights": {name: {"values": list(values)} for name, values in sample_weights.items()},
        }
    )


def metrics(model, predictions, labels, **kwargs):
    values = {name: torch.tensor(value) for name, value in predictions.items()}
    model.update_metric(values, batch_of(labels, **kwargs))
    return model.compute_metric()


def loss(model, key, values, labels, **kwargs):
    (found,) = model.loss({key: torch.tensor(values)}, batch_of(labels, **kwargs)).values()
    return found.item()


# The model


@pytest.mark.parametrize("name", MODELS)
def test_the_oneof_names_the_model(model_of, name):
    model = model_of(text_of(model=f"{name} {{ {DEEP} }}"))
    assert type(model).__module__ == f"tzrec_{name}.model"
    assert model.predict(batch_of([1, 0]))["probs"].shape == (2,)


def test_num_class_is_the_width_of_the_output(model_of):
    model = model_of(text_of("losses { softmax_cross_entropy {} } num_class: 3"))
    assert model.predict(batch_of([1, 0]))["probs"].shape == (2, 3)


@pytest.mark.parametrize("name", MODELS)
def test_deep_is_the_network_of_the_deep_group(model_of, name):
    model = model_of(text_of(model=f"{name} {{ deep {{ hidden_units: [6, 5] }} }}"))
    assert [layer.out_features for layer in linears(model.deep_mlp)] == [6, 5]


@pytest.mark.parametrize(("name", "width"), [("deepfm", 1 + 4 + 8), ("wide_and_deep", 1 + 8)])
def test_final_joins_the_parts(model_of, name, width):
    model = model_of(text_of(model=f"{name} {{ {DEEP} final {{ hidden_units: 3 }} }}"))
    assert [(layer.in_features, layer.out_features) for layer in linears(model.final_mlp)] == [(width, 3)]


@pytest.mark.parametrize("name", MODELS)
def test_wide_tables_have_their_width_and_start(model_of, name):
    wide = 'wide_embedding_dim: 2 wide_init_fn: "nn.init.constant_,val=0.25"'
    tables = dict(model_of(text_of(model=f"{name} {{ {DEEP} {wide} }}")).named_parameters())
    weight = tables["embedding_group.emb_impls.__BASE__.ebc.embedding_bags.user_emb_wide.weight"]
    assert torch.equal(weight, torch.full((9, 2), 0.25))


# Layers


def linears(module):
    return [m for m in module.modules() if isinstance(m, nn.Linear)]


@pytest.fixture
def deep_layer(model_of):
    """The modules of the only layer of `deep`, with these settings."""
    return lambda settings: list(
        model_of(text_of(model=f"wide_and_deep {{ deep {{ hidden_units: 8 {settings} }} }}")).deep_mlp.mlp[0].perceptron
    )


def test_a_layer_is_linear_then_relu(deep_layer):
    assert [type(m) for m in deep_layer("")] == [nn.Linear, nn.ReLU]


def test_activation_names_what_follows_the_linear_map(deep_layer):
    _, active = deep_layer('activation: "nn.LeakyReLU(negative_slope=0.5)"')
    assert isinstance(active, nn.LeakyReLU) and active.negative_slope == 0.5


def test_dropout_ratio_is_the_share_that_is_dropped(deep_layer):
    *_, dropout = deep_layer("dropout_ratio: 0.5")
    assert isinstance(dropout, nn.Dropout) and dropout.p == 0.5


def test_use_bn_and_use_ln_put_a_norm_behind_the_linear_map(deep_layer):
    assert isinstance(deep_layer("use_bn: true")[1], nn.BatchNorm1d)
    assert isinstance(deep_layer("use_ln: true")[1], nn.LayerNorm)


def test_bias_false_leaves_the_bias_out(deep_layer):
    assert deep_layer("bias: false")[0].bias is None


# Variational dropout


def test_variational_dropout_pays_for_the_features_it_keeps(model_of):
    text = text_of("losses { binary_cross_entropy {} } variational_dropout { regularization_lambda: 3.0 }")
    model = model_of(text)
    model.build_input(batch_of([1, 0]))
    keep = 1 - torch.sigmoid(model.group_variational_dropouts["deep"].feature_p)
    torch.testing.assert_close(model._group_feature_p_losses["deep_feature_p_loss"], 3.0 * keep.sum() / 2)


def test_variational_dropout_may_have_a_probability_per_column(model_of):
    body = "losses { binary_cross_entropy {} } variational_dropout { embedding_wise_variational_dropout: true }"
    assert model_of(text_of(body)).group_variational_dropouts["deep"].feature_p.shape == (8,)


# Losses


@pytest.mark.parametrize(
    ("settings", "expected"),
    [("binary_cross_entropy {}", math.log1p(math.exp(-2))),
     ("binary_cross_entropy { label_smoothing: 0.5 }", math.log1p(math.exp(-2)) + 0.25 * 2),
     ("binary_focal_loss {}", 0.5 * (1 / (1 + math.exp(2))) ** 2 * math.log1p(math.exp(-2))),
     ("binary_focal_loss { gamma: 1 alpha: 0.75 }", 0.75 / (1 + math.exp(2)) * math.log1p(math.exp(-2)))],
)  # fmt: skip
def test_losses_of_one_logit(model_of, settings, expected):
    assert loss(model_of(text_of(f"losses {{ {settings} }}")), "logits", [2.0], [1]) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [("", math.log1p(math.exp(-2))), ("label_smoothing: 0.5", math.log1p(math.exp(-2)) + 0.25 * 2)],
)
def test_softmax_cross_entropy(model_of, settings, expected):
    model = model_of(text_of(f"losses {{ softmax_cross_entropy {{ {settings} }} }} num_class: 2"))
    assert loss(model, "logits", [[0.0, 2.0]], [1]) == pytest.approx(expected)


def test_l2_loss(model_of):
    assert loss(model_of(text_of("losses { l2_loss {} }")), "y", [2.0, 1.0], [5, 1]) == pytest.approx(4.5)


@pytest.mark.parametrize(("session", "rivals"), [("user", 1), ("item", 0)])
def test_jrc_loss_ranks_within_the_session(model_of, session, rivals):
    model = model_of(text_of(f'losses {{ jrc_loss {{ session_name: "{session}" alpha: 0.25 }} }} num_class: 2'))
    found = loss(model, "logits", [[0.0, 0.0]] * 2, [1, 0])
    assert found == pytest.approx(0.25 * LN2 + 0.75 * rivals * LN2)


def test_the_first_sample_weight_weighs_the_rows(model_of):
    model = model_of(text_of(data='sample_weight_fields: "w"'))
    weighted = loss(model, "logits", [2.0, -2.0], [1, 1], w=[1.0, 0.0])
    assert weighted == pytest.approx(math.log1p(math.exp(-2)))


def test_losses_are_summed(model_of):
    text = text_of("losses { binary_cross_entropy {} } losses { binary_focal_loss {} }")
    wrapper = TrainWrapper(model_of(text, ready=False))
    total, (losses, _, _) = wrapper(batch_of([1, 0]))
    assert list(losses) == ["binary_cross_entropy", "binary_focal_loss"]
    assert total.item() == pytest.approx(sum(value.item() for value in losses.values()))


# Metrics


PROBS = (0.9, 0.6, 0.8, 0.2)
LABELS = (1, 0, 0, 1)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [("auc {}", 0.5),
     ("auc { thresholds: 2 }", 0.5),
     ("accuracy {}", 0.25),
     ("accuracy { threshold: 0.7 }", 0.5),
     ("logloss {}", -math.log(0.9 * 0.4 * 0.2 * 0.2) / 4),
     ("calibration {}", 2.5 / 2),
     ("normalized_entropy {}", -math.log(0.9 * 0.4 * 0.2 * 0.2) / 4 / LN2),
     ('grouped_auc { grouping_key: "user" }', 0.5)],
)  # fmt: skip
def test_metrics_of_one_probability(model_of, settings, expected):
    name = settings.partition(" ")[0]
    model = model_of(text_of(f"losses {{ binary_cross_entropy {{}} }} metrics {{ {settings} }}"))
    assert metrics(model, {"probs": PROBS}, LABELS)[name].item() == pytest.approx(expected, abs=1e-6)


def test_thresholds_put_probabilities_into_bins(model_of):
    def auc(settings):
        model = model_of(text_of(f"losses {{ binary_cross_entropy {{}} }} metrics {{ auc {{ {settings} }} }}"))
        return metrics(model, {"probs": (0.4, 0.3, 0.2, 0.1)}, (1, 1, 0, 0))["auc"].item()

    assert auc("") == 1 and auc("thresholds: 2") == 0.5


def test_grouped_auc_compares_within_the_groups_of_its_key(model_of):
    def auc(key):
        body = f'losses {{ binary_cross_entropy {{}} }} metrics {{ grouped_auc {{ grouping_key: "{key}" }} }}'
        return metrics(model_of(text_of(body)), {"probs": PROBS}, (1, 0, 1, 0), users=(0, 1, 1, 1))[
            "grouped_auc"
        ].item()

    assert auc("user") == 1 and math.isnan(auc("item"))


def test_eta_bounds_how_wrong_a_probability_can_be(model_of):
    body = "losses { binary_cross_entropy {} } metrics { normalized_entropy { eta: 0.25 } }"
    found = metrics(model_of(text_of(body)), {"probs": (0.0, 0.0)}, (1, 0))["normalized_entropy"].item()
    assert found == pytest.approx(-(math.log(0.25) + math.log(0.75)) / 2 / LN2)


CLASS_PROBS = ((0.5, 0.3, 0.2), (0.4, 0.5, 0.1), (0.3, 0.4, 0.3), (0.5, 0.1, 0.4))
CLASSES = (0, 0, 1, 2)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [("", (0.625 + 2 / 3 + 1) / 3), ('average: "weighted"', (2 * 0.625 + 2 / 3 + 1) / 4),
     ("thresholds: 2", 0.5)],
)  # fmt: skip
def test_multiclass_auc_averages_each_class_against_the_rest(model_of, settings, expected):
    body = f"losses {{ softmax_cross_entropy {{}} }} num_class: 3 metrics {{ multiclass_auc {{ {settings} }} }}"
    found = metrics(model_of(text_of(body)), {"probs": CLASS_PROBS}, CLASSES)["multiclass_auc"].item()
    assert found == pytest.approx(expected)


def test_top_k_counts_the_most_probable_classes(model_of):
    def accuracy(settings):
        body = f"losses {{ softmax_cross_entropy {{}} }} num_class: 3 metrics {{ accuracy {{ {settings} }} }}"
        return metrics(model_of(text_of(body)), {"probs": CLASS_PROBS}, CLASSES)["accuracy"].item()

    assert accuracy("") == 0.5 and accuracy("top_k: 2") == 1


VALUES = (3.0, 1.0, 2.0, 0.0)
REAL_LABELS = (4, 1.5, 2, 0)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [("mean_absolute_error {}", 0.375),
     ("mean_squared_error {}", 0.3125),
     ("xauc { in_batch: true }", 1),
     ('grouped_xauc { grouping_key: "user" }', 1)],
)  # fmt: skip
def test_metrics_of_a_value(model_of, settings, expected):
    name = settings.partition(" ")[0]
    model = model_of(text_of(f"losses {{ l2_loss {{}} }} metrics {{ {settings} }}"))
    assert metrics(model, {"y": VALUES}, REAL_LABELS)[name].item() == pytest.approx(expected)


def test_grouped_xauc_compares_within_the_groups_of_its_key(model_of):
    def xauc(key):
        body = f'losses {{ l2_loss {{}} }} metrics {{ grouped_xauc {{ grouping_key: "{key}" }} }}'
        return metrics(model_of(text_of(body)), {"y": VALUES}, (1, 2, 1, 0))["grouped_xauc"].item()

    assert xauc("user") == 0.5 and math.isnan(xauc("item"))


@pytest.mark.parametrize(("settings", "num_pairs"), [("sample_ratio: 0.5", 3), ("max_pairs: 4", 4), ("", 1)])
def test_xauc_draws_a_share_or_a_number_of_the_pairs(model_of, monkeypatch, settings, num_pairs):
    drawn = []
    draw = torch.randint
    monkeypatch.setattr(torch, "randint", lambda high, size, **kw: drawn.append(size) or draw(high, size, **kw))
    body = f"losses {{ l2_loss {{}} }} metrics {{ xauc {{ {settings} }} }}"
    metrics(model_of(text_of(body)), {"y": VALUES}, REAL_LABELS)
    assert drawn == [(num_pairs,)]


def test_xauc_in_batch_compares_no_rows_of_different_batches(model_of):
    def xauc(settings):
        model = model_of(text_of(f"losses {{ l2_loss {{}} }} metrics {{ xauc {{ {settings} }} }}"))
        for preds, labels in (((1.0, 2.0), (1, 2)), ((0.0, 0.5), (3, 4))):
            model.update_metric({"y": torch.tensor(preds)}, batch_of(labels))
        return model.compute_metric()["xauc"].item()

    assert xauc("in_batch: true") == 1 and xauc("max_pairs: 1000000") < 1


def test_max_pairs_per_group_limits_the_pairs_of_a_group(model_of, monkeypatch):
    drawn = []
    draw = torch.rand
    monkeypatch.setattr(torch, "rand", lambda size, **kw: drawn.append(size) or draw(size, **kw))
    body = 'losses { l2_loss {} } metrics { grouped_xauc { grouping_key: "user" max_pairs_per_group: 2 } }'
    metrics(model_of(text_of(body)), {"y": VALUES}, REAL_LABELS, users=(1, 1, 1, 1))
    assert drawn == [2]


# Train metrics


@pytest.mark.parametrize(
    ("loss_config", "key", "settings", "expected"),
    [("binary_cross_entropy {}", "probs", "auc { thresholds: 50 }", 0.5),
     ("binary_cross_entropy {}", "probs", "accuracy {}", 0.25),
     ("l2_loss {}", "y", "mean_absolute_error {}", 0.375),
     ("l2_loss {}", "y", "mean_squared_error {}", 0.3125),
     ("l2_loss {}", "y", "xauc { in_batch: true }", 1)],
)  # fmt: skip
def test_train_metrics_are_those_of_the_latest_batches(model_of, loss_config, key, settings, expected):
    model = model_of(text_of(f"losses {{ {loss_config} }} train_metrics {{ {settings} decay_step: 1 }}"))
    values, labels = (PROBS, LABELS) if key == "probs" else (VALUES, REAL_LABELS)
    model.update_train_metric({key: torch.tensor(values)}, batch_of(labels))
    (found,) = model.compute_train_metric().values()
    assert found.item() == pytest.approx(expected, abs=1e-4)


def test_train_metrics_move_every_decay_step_and_keep_decay_rate_of_the_past(model_of):
    settings = "train_metrics { mean_absolute_error {} decay_rate: 0.75 decay_step: 2 }"
    model = model_of(text_of(f"losses {{ l2_loss {{}} }} {settings}"))
    seen = []
    for error in (1.0, 1.0, 3.0, 3.0):
        model.update_train_metric({"y": torch.tensor([error])}, batch_of([0]))
        seen.append(model.compute_train_metric()["mean_absolute_error"].item())
    assert seen == [0, 1, 1, 0.75 * 1 + 0.25 * 3]
