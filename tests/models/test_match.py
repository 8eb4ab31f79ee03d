import math
from pathlib import Path

import pytest
import torch
from torchrec.fx import Tracer
from tzrec_toy_match import PLUGIN

from tzrec_core import api
from tzrec_core.config import find_mistakes, parse_config
from tzrec_core.data import DataParser
from tzrec_core.errors import ConfigError
from tzrec_core.features import create_features
from tzrec_core.models import (
    PredictWrapper,
    ScriptWrapper,
    TowerWoEGWrapper,
    TowerWrapper,
    TrainWrapper,
    create_model,
)
from tzrec_core.plugins import Registry, use_registry
from tzrec_core.testing import assert_grad_flows, make_batch
from tzrec_core.testing.golden import assert_model_golden, golden_batch, golden_config_text, load_golden
from tzrec_core.testing.tables import make_rows

GOLDENS = Path(__file__).parents[1] / "goldens"
FEATURES = """
feature_configs { id_feature { feature_name: "user" expression: "user:user" num_buckets: 9 embedding_dim: 4 } }
feature_configs { raw_feature { feature_name: "age" expression: "user:age" } }
feature_configs { id_feature { feature_name: "item" expression: "item:item" num_buckets: 9 embedding_dim: 4 } }
feature_configs { raw_feature { feature_name: "price" expression: "item:price" } }
"""
GROUPS = """
feature_groups { group_name: "user" group_type: DEEP feature_names: ["user", "age"] }
feature_groups { group_name: "item" group_type: DEEP feature_names: ["item", "price"] }
"""
TOWERS = 'user_tower { input: "user" mlp { hidden_units: 6 } } item_tower { input: "item" mlp { hidden_units: 5 } }'
SOFTMAX = "losses { softmax_cross_entropy {} }"
HINGE = "losses { plugin { [tzrec.dev/tzrec_core.protos.SidReconLoss] {} } }"
DATA = 'dataset_type: ParquetDataset fg_mode: FG_NORMAL label_fields: "label"'


@pytest.fixture(autouse=True, scope="module")
def only_the_matching_toys_are_installed():
    with use_registry(Registry([PLUGIN])):
        yield


def config_of(settings="in_batch_negative: true", body=SOFTMAX, *, model="dssm", output_dim=3, data=DATA):
    towers = f"{TOWERS} output_dim: {output_dim}"
    text = f"data_config {{ {data} }} {FEATURES} model_config {{ {GROUPS} {model} {{ {towers} {settings} }} {body} }}"
    return parse_config(text, partial=True)


def model_of(*args, sampler=None, sample_weights=(), ready=True, **kwargs):
    """A toy in eval mode; `ready` = with its loss and metrics built."""
    config = config_of(*args, **kwargs)
    features = create_features(config.feature_configs, config.data_config)
    torch.manual_seed(0)
    labels = ["label"]
    model = create_model(config.model_config, features, labels, list(sample_weights), sampler_type=sampler).eval()
    if ready:
        model.init_loss()
        model.init_metric()
    return model


def batch_of(num_rows=3, seed=0):
    return make_batch(config_of(), make_rows(config_of(), num_rows, seed=seed, gaps=False))


def weighted(*weights):
    return golden_batch({"sample_weights": {"w": {"values": list(weights)}}})


def loss_of(model, similarity, batch=None):
    (value,) = model.loss({"similarity": torch.tensor(similarity)}, batch or weighted()).values()
    return value.item()


def negative_log_share(row, label):
    """Cross entropy of one row, written out."""
    return -math.log(math.exp(row[label]) / sum(math.exp(value) for value in row))


# ---- the numbers of TorchEasyRec


@pytest.mark.parametrize(
    ("name", "sampler"), [("dssm_inbatch", None), ("dssm_v2_inbatch", None), ("dssm_neg_inner", "negative_sampler")]
)
def test_computes_the_numbers_of_torcheasyrec(name, sampler):
    golden = load_golden(GOLDENS / f"{name}.json")
    config = parse_config(golden_config_text(golden), partial=True)
    features = create_features(config.feature_configs, config.data_config)
    assert_model_golden(
        golden,
        lambda: create_model(config.model_config, features, golden["labels"], sampler_type=sampler),
        features=features,
    )


# ---- similarity


USERS = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
ITEMS = torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.5, 1.0]])
IN_BATCH = [[2.0, 0.0, 1.5], [0.0, 3.0, 1.0], [2.0, 3.0, 2.5]]


def test_in_batch_similarity_is_of_each_user_and_each_item():
    assert model_of().sim(USERS, ITEMS).tolist() == IN_BATCH


def test_with_a_sampler_the_own_item_comes_first_then_the_negatives_of_all_rows():
    found = model_of("", sampler="negative_sampler").sim(USERS[:2], torch.cat([ITEMS, ITEMS[:1]]))
    assert found.tolist() == [[2.0, 1.5, 2.0], [3.0, 1.0, 0.0]]


def test_hard_negatives_come_last_each_in_the_slot_of_its_row():
    hard = torch.tensor([[1, 1], [0, 0], [1, 0]])
    items = torch.cat([ITEMS, torch.tensor([[0.0, 7.0], [5.0, 0.0], [0.0, 6.0]])])
    found = model_of("", sampler="hard_negative_sampler").sim(USERS[:2], items, hard)
    none = torch.tensor(-1e32).item()
    assert found.tolist() == [[2.0, 1.5, 5.0, none], [3.0, 1.0, 6.0, 7.0]]


def test_rows_without_any_hard_negative_have_only_those_of_all_rows():
    model = model_of("", sampler="hard_negative_sampler")
    nothing = torch.empty((0, 2), dtype=torch.int64)
    assert torch.equal(model.sim(USERS[:2], ITEMS, nothing), model.sim(USERS[:2], ITEMS))
    only_own = model.sim(USERS, ITEMS)
    assert only_own.tolist() == [[2.0], [3.0], [2.5]]


def test_a_missing_hard_negative_costs_nothing_at_any_temperature():
    model = model_of("temperature: 0.05", sampler="hard_negative_sampler")
    with_hard = model.sim(USERS[:2], torch.cat([ITEMS, ITEMS[:1]]), torch.tensor([[1, 0]])) / model._temperature
    without = model.sim(USERS[:2], ITEMS) / model._temperature
    assert with_hard.shape == (2, 3)
    assert loss_of(model, with_hard[:1].tolist()) == loss_of(model, without[:1].tolist()) > 0


def test_euclid_is_minus_the_distance_in_every_layout():
    distances = [[1.0, 10**0.5, 1.25**0.5], [5**0.5, 2.0, 1.5]]
    settings = "similarity: EUCLID"
    in_batch = model_of(f"{settings} in_batch_negative: true")
    assert -in_batch.sim(USERS[:2], ITEMS).double() == pytest.approx(torch.tensor(distances).double(), abs=1e-5)
    drawn = model_of(settings, sampler="hard_negative_sampler")
    found = -drawn.sim(USERS[:2], torch.cat([ITEMS, ITEMS[:1]]), torch.tensor([[1, 0]]))
    want = [[1.0, 1.25**0.5, 1e32], [2.0, 1.5, 5**0.5]]
    assert found.double() == pytest.approx(torch.tensor(want).double(), rel=1e-5)


def test_identical_embeddings_have_a_distance_of_0_and_finite_gradients():
    for model in (model_of("similarity: EUCLID in_batch_negative: true"), model_of("similarity: EUCLID", sampler="s")):
        users = USERS.clone().requires_grad_()
        similarity = model.sim(users, USERS)
        assert similarity[0, 0].item() == pytest.approx(0, abs=1e-6)
        similarity.sum().backward()
        assert torch.isfinite(users.grad).all()


@pytest.mark.parametrize("model", ["dssm", "dssm_v2"])
def test_cosines_are_dot_products_of_outputs_of_length_1(model):
    plain = model_of(model=model, ready=False)
    cosine = model_of("similarity: COSINE in_batch_negative: true", model=model, ready=False)
    cosine.load_state_dict(plain.state_dict())
    batch = batch_of()
    plain.set_is_inference(True)
    embeddings = plain.predict(batch)
    want = torch.nn.functional.cosine_similarity(
        embeddings["user_tower_emb"][:, None], embeddings["item_tower_emb"][None], dim=2
    )
    torch.testing.assert_close(cosine.predict(batch)["similarity"], want)


@pytest.mark.parametrize("model", ["dssm", "dssm_v2"])
def test_the_temperature_divides_the_similarity(model):
    warm = model_of("temperature: 0.25 in_batch_negative: true", model=model, ready=False)
    plain = model_of(model=model, ready=False)
    plain.load_state_dict(warm.state_dict())
    similarity = warm.predict(batch_of())["similarity"]
    torch.testing.assert_close(similarity, 4 * plain.predict(batch_of())["similarity"])


@pytest.mark.parametrize("model", ["dssm", "dssm_v2"])
def test_a_tower_is_an_mlp_on_the_group_that_it_names(model):
    linears = [m for m in model_of(model=model).user_tower.modules() if isinstance(m, torch.nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linears] == [(4 + 1, 6), (6, 3)]


def test_an_output_dim_of_0_drops_the_output_layer():
    config = {"item_tower.mlp.mlp.0.perceptron.0.bias", "item_tower.mlp.mlp.0.perceptron.0.weight"}
    names = {name for name, _ in model_of(output_dim=0).named_parameters() if "embedding_group" not in name}
    assert {name for name in names if name.startswith("item_tower")} == config


def test_similarity_is_float32_also_under_autocast():
    for settings, sampler in (("in_batch_negative: true", None), ("", "negative_sampler")):
        model = model_of(settings, sampler=sampler, ready=False)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert model.predict(batch_of())["similarity"].dtype is torch.float32


# ---- loss


def test_in_batch_the_label_of_a_row_is_its_own_place():
    want = sum(negative_log_share(row, number) for number, row in enumerate(IN_BATCH)) / 3
    assert loss_of(model_of(), IN_BATCH) == pytest.approx(want)


def test_with_a_sampler_the_label_of_all_rows_is_0():
    want = sum(negative_log_share(row, 0) for row in IN_BATCH) / 3
    assert loss_of(model_of("", sampler="negative_sampler"), IN_BATCH) == pytest.approx(want)


def test_sample_weights_are_taken_relative_to_their_mean():
    model = model_of(sample_weights=["w"])
    want = sum(weight * negative_log_share(IN_BATCH[i], i) for i, weight in enumerate((1.0, 3.0, 0.5))) / 4.5
    assert loss_of(model, IN_BATCH, weighted(1.0, 3.0, 0.5)) == pytest.approx(want)
    assert loss_of(model, IN_BATCH, weighted(0.0, 0.0, 0.0)) == 0


def test_label_smoothing_spreads_the_label_over_all_candidates():
    model = model_of(body="losses { softmax_cross_entropy { label_smoothing: 0.5 } }")
    rows = [sum(negative_log_share(row, j) for j in range(3)) / 3 for row in IN_BATCH]
    want = sum(0.5 * negative_log_share(IN_BATCH[i], i) + 0.5 * rows[i] for i in range(3)) / 3
    assert loss_of(model, IN_BATCH) == pytest.approx(want)


def test_a_plugin_may_bring_a_loss_for_matching():
    assert loss_of(model_of(body=HINGE), IN_BATCH) == pytest.approx((0 + 0 + 0.5) / 3)


def test_labels_of_the_batch_are_not_read():
    model, batch = model_of(), batch_of()
    predictions = model.predict(batch)
    before = model.loss(predictions, batch)
    batch.labels.clear()
    assert model.loss(predictions, batch) == before
    model.update_metric(predictions, batch, before)


@pytest.mark.parametrize("model", ["dssm", "dssm_v2"])
def test_a_gradient_reaches_every_parameter(model):
    assert_grad_flows(model_of(model=model).train(), batch_of(8))


@pytest.mark.parametrize("model", ["dssm", "dssm_v2"])
def test_variational_dropout_of_each_tower_adds_its_loss_once(model):
    body = f"{SOFTMAX} variational_dropout {{ regularization_lambda: 3.0 }}"
    built, batch = model_of(body=body, model=model), batch_of()
    losses = built.loss(built.predict(batch), batch)
    assert list(losses) == ["softmax_cross_entropy", "user_feature_p_loss", "item_feature_p_loss"]
    for side in ("user", "item"):
        tower = getattr(built, f"{side}_tower")
        keep = 1 - torch.sigmoid(tower.group_variational_dropouts[side].feature_p)
        torch.testing.assert_close(losses[f"{side}_feature_p_loss"], 3.0 * keep.sum() / 3)
    assert list(built.loss({"similarity": torch.eye(3)}, batch)) == ["softmax_cross_entropy"]
    built.set_is_inference(True)
    built.predict(batch)
    assert list(built.loss({"similarity": torch.eye(3)}, batch)) == ["softmax_cross_entropy"]


# ---- metrics


METRICS = "".join(f" metrics {{ recall_at_k {{ top_k: {k} }} }}" for k in (1, 2))


@pytest.mark.parametrize(
    ("settings", "sampler", "expected"),
    [
        ("in_batch_negative: true", None, {"recall@1": 2 / 3, "recall@2": 1.0}),  # the diagonal
        ("", "negative_sampler", {"recall@1": 1 / 3, "recall@2": 1 / 3}),  # the first column
    ],
)
def test_recall_at_k_counts_the_rows_whose_own_item_is_among_the_best_k(settings, sampler, expected):
    model = model_of(settings, SOFTMAX + METRICS, sampler=sampler)
    model.update_metric(
        {"similarity": torch.tensor(IN_BATCH)}, weighted(), {"softmax_cross_entropy": torch.tensor(0.5)}
    )
    found = {name: value.item() for name, value in model.compute_metric().items()}
    assert found == pytest.approx({**expected, "softmax_cross_entropy": 0.5})


def test_the_mean_loss_is_over_rows():
    model = model_of()
    for rows, loss in ((3, 0.5), (1, 0.9)):
        model.update_metric({"similarity": torch.eye(rows)}, weighted(), {"softmax_cross_entropy": torch.tensor(loss)})
    assert model.compute_metric()["softmax_cross_entropy"].item() == pytest.approx((3 * 0.5 + 0.9) / 4)


def test_top_k_of_recall_is_5_when_unset():
    model = model_of(body=f"{SOFTMAX} metrics {{ recall_at_k {{}} }}")
    model.update_metric({"similarity": torch.arange(36.0).reshape(6, 6)}, weighted())
    assert model.compute_metric()["recall@5"].item() == pytest.approx(5 / 6)


def test_recall_at_k_of_the_latest_batches():
    model = model_of(body=f"{SOFTMAX} train_metrics {{ recall_at_k {{ top_k: 1 }} decay_step: 1 }}")
    model.update_train_metric({"similarity": torch.tensor(IN_BATCH)}, weighted())
    assert model.compute_train_metric()["recall@1"].item() == pytest.approx(2 / 3)


# ---- mistakes


@pytest.mark.parametrize(
    ("settings", "body", "sampler", "words"),
    [
        ("in_batch_negative: true", SOFTMAX, "negative_sampler", "data_config.negative_sampler draws negatives"),
        ("", SOFTMAX, None, "Set in_batch_negative: true"),
        (
            "in_batch_negative: true",
            "",
            None,
            "has 0 losses; a matching model takes one: losses { softmax_cross_entropy",
        ),
        ("in_batch_negative: true", SOFTMAX + HINGE, None, "has 2 losses"),
        ("in_batch_negative: true", "losses { binary_cross_entropy {} }", None, "not supported by match models"),
        ("in_batch_negative: true", f"{SOFTMAX} metrics {{ auc {{}} }}", None, "'auc' is not supported by match"),
        ("in_batch_negative: true", SOFTMAX + 2 * "metrics { recall_at_k {} }", None, "'recall@5' is configured twice"),
        ("in_batch_negative: true temperature: 0", SOFTMAX, None, "temperature = 0"),
        (
            "",
            "losses { softmax_cross_entropy { label_smoothing: 0.1 } }",
            "hard_negative_sampler",
            "rows lack some with hard_negative_sampler; remove it",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_what_to_do(settings, body, sampler, words):
    with pytest.raises(ConfigError, match=words.replace("{", r"\{")):
        model_of(settings, body, sampler=sampler)


@pytest.mark.parametrize(
    ("settings", "body", "data", "words"),
    [
        ("in_batch_negative: true", SOFTMAX, 'negative_sampler { num_sample: 3 input_path: "x" attr_fields: "item" '
         'item_id_field: "item" }', "model_config.dssm.in_batch_negative takes the items"),
        ("", SOFTMAX, "", "model_config.dssm.in_batch_negative is not set and data_config has no sampler"),
        ("in_batch_negative: true", "", "", "losses is empty; add one, such as losses { softmax_cross_entropy {} }"),
        ("in_batch_negative: true", 2 * SOFTMAX, "", "a matching model takes one loss, not 2"),
        ("in_batch_negative: true", "losses { l2_loss {} }", "", "dssm is a match model and does not support"),
    ],
)  # fmt: skip
def test_validation_finds_it_before_anything_is_built(settings, body, data, words):
    mistakes = find_mistakes(config_of(settings, body, data=f"{DATA} {data}"))
    assert any(words in mistake for mistake in mistakes), mistakes


def test_a_right_config_has_no_mistakes():
    assert find_mistakes(config_of(body=SOFTMAX + METRICS)) == []


def test_a_model_that_only_predicts_needs_no_negatives():
    model = model_of("", ready=False)
    model.set_is_inference(True)
    assert model.predict(batch_of())["similarity"].shape == (3,)
    with pytest.raises(ConfigError, match="Set in_batch_negative"):
        TrainWrapper(model)


# ---- inference


@pytest.mark.parametrize("model", ["dssm", "dssm_v2"])
@pytest.mark.parametrize("similarity", ["COSINE", "INNER_PRODUCT", "EUCLID"])
def test_for_inference_each_row_has_its_own_similarity_and_both_embeddings(model, similarity):
    built = model_of(f"similarity: {similarity} temperature: 0.5 in_batch_negative: true", model=model)
    batch = batch_of()
    whole = built.predict(batch)
    assert {name: tuple(value.shape) for name, value in whole.items()} == {"similarity": (3, 3)}
    _, (found, _) = ready_for_inference(built)(batch)
    shapes = {"similarity": (3,), "user_tower_emb": (3, 3), "item_tower_emb": (3, 3)}
    assert {name: tuple(value.shape) for name, value in found.items()} == shapes
    torch.testing.assert_close(found["similarity"], whole["similarity"].diagonal())


def ready_for_inference(model):
    wrapper = PredictWrapper(model)
    wrapper.set_is_inference(True)
    return wrapper


@pytest.mark.parametrize(("model", "wrapper"), [("dssm", TowerWrapper), ("dssm_v2", TowerWoEGWrapper)])
@pytest.mark.parametrize("side", ["user", "item"])
def test_a_tower_is_a_model_of_its_own_with_the_names_of_the_whole(model, wrapper, side):
    whole = model_of(model=model, ready=False)
    state = whole.state_dict()
    tower = wrapper(getattr(whole, f"{side}_tower"), f"{side}_tower").eval()
    assert set(tower.state_dict()) <= set(state)
    tower.load_state_dict({name: state[name] for name in tower.state_dict()})
    batch = batch_of()
    whole.set_is_inference(True)
    found, want = tower.predict(batch), whole.predict(batch)
    assert list(found) == [f"{side}_tower_emb"]
    assert torch.equal(found[f"{side}_tower_emb"], want[f"{side}_tower_emb"])


@pytest.mark.parametrize(("model", "wrapper"), [("dssm", TowerWrapper), ("dssm_v2", TowerWoEGWrapper)])
def test_a_tower_reads_its_own_features_only_also_as_a_graph(model, wrapper):
    config = config_of()
    scripted = ScriptWrapper(wrapper(model_of(model=model, ready=False).item_tower, "item_tower").eval())
    graph = torch.fx.GraphModule(
        scripted, Tracer(leaf_modules=["EmbeddingBagCollection", "EmbeddingCollection"]).trace(scripted)
    )
    rows = make_rows(config, 4, gaps=False)
    parser = DataParser(create_features(config.feature_configs, config.data_config))
    flat = {name: value for name, value in parser.parse(rows).items() if name.startswith(("item.", "price."))}
    want = scripted(flat)["item_tower_emb"]
    assert want.shape == (4, 3)
    torch.testing.assert_close(graph(flat, torch.device("cpu"))["item_tower_emb"], want)


def test_it_trains_and_is_evaluated_and_predicts_every_row(tmp_path):
    config = config_of("temperature: 0.2 similarity: COSINE in_batch_negative: true", SOFTMAX + METRICS)
    optimizer = "{ adam_optimizer { lr: 0.02 } constant_learning_rate {} }"
    inputs = 'train_input_path: "x" eval_input_path: "x"'
    optimizers = f"sparse_optimizer {optimizer} dense_optimizer {optimizer}"
    training = (
        f'{inputs} model_dir: "{tmp_path / "run"}" data_config {{ batch_size: 32 num_workers: 0 }} '
        f"train_config {{ {optimizers} num_epochs: 3 use_tensorboard: false }}"
    )
    config.MergeFrom(parse_config(training, partial=True))
    rows = make_rows(config, 80)
    trained = api.train(config, train_data=rows, eval_data=rows)
    evaluated = api.evaluate(config, rows)
    assert set(evaluated.metrics) == {"recall@1", "recall@2", "softmax_cross_entropy"}
    assert evaluated.metrics == pytest.approx(trained.metrics)
    table = api.predict(config, rows).table
    assert table.num_rows == 80  # the last batch has 16
    assert {field.name: str(field.type) for field in table.schema} == {
        "similarity": "float",
        "user_tower_emb": "fixed_size_list<item: float>[3]",
        "item_tower_emb": "fixed_size_list<item: float>[3]",
    }
    loaded = api.load_model(tmp_path / "run")
    loaded.set_is_inference(True)
    _, (predictions, _) = loaded(make_batch(config, rows))
    for name, value in predictions.items():
        torch.testing.assert_close(torch.tensor(table[name].to_pylist()), value)
