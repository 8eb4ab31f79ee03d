import pytest
import torch
from torch import nn
from tzrec_toy import toy_batch, toy_config, toy_model

from tzrec_core.errors import ConfigError
from tzrec_core.features import create_features
from tzrec_core.models import PredictWrapper, RankModel, ScriptWrapper, TrainWrapper
from tzrec_core.models.wrappers import TARGET_REPEAT_INTERLEAVE_KEY, autocast_dtype

BCE = "losses { binary_cross_entropy {} }"
FOCAL = "losses { binary_focal_loss {} }"


class Fixed(RankModel):
    """Predicts what it is given, through a weight of 1."""

    def __init__(self, predictions):
        config = toy_config(BCE)
        super().__init__(config.model_config, create_features(config.feature_configs), ["label"])
        self.weight = nn.Parameter(torch.ones(()))
        self.predictions = predictions

    def predict(self, batch):
        return {name: value * self.weight.to(value.dtype) for name, value in self.predictions.items()}


# ---- training


def test_training_returns_the_sum_of_the_losses_and_what_it_is_made_of():
    batch = toy_batch()
    total, (losses, predictions, same) = TrainWrapper(toy_model(BCE + FOCAL, ready=False))(batch)
    assert total.dtype == torch.float32
    assert total.item() == pytest.approx(sum(loss.item() for loss in losses.values()))
    assert list(losses) == ["binary_cross_entropy", "binary_focal_loss"]
    assert list(predictions) == ["logits", "probs"]
    assert same is batch


def test_only_the_total_loss_keeps_its_graph():
    total, (losses, predictions, _) = TrainWrapper(toy_model(ready=False))(toy_batch())
    assert total.requires_grad
    assert not any(value.requires_grad for value in (*losses.values(), *predictions.values()))


def test_bf16_stays_close_to_float32_and_keeps_predictions_in_float32():
    expected = TrainWrapper(toy_model(ready=False))(toy_batch())
    total, (losses, predictions, _) = TrainWrapper(toy_model(ready=False), mixed_precision="BF16")(toy_batch())
    assert total.item() == pytest.approx(expected[0].item(), rel=1e-2)
    assert total.item() != expected[0].item()
    assert {value.dtype for value in (*predictions.values(), *losses.values())} == {torch.float32}
    total.backward()


def test_bf16_does_not_round_the_labels_of_a_regression():
    model = Fixed({"y": torch.full((2,), 1001.0)})
    model._base_model_config = toy_config("losses { l2_loss {} }").model_config
    wrapper = TrainWrapper(model, mixed_precision="BF16")
    total, _ = wrapper(toy_batch((1001.0, 1001.0), [[1], [1]], dtype="float32"))
    assert total.item() == 0


def test_pareto_weights_are_refused():
    with pytest.raises(ConfigError, match=r"use_pareto_loss_weight.*not supported yet; remove it"):
        TrainWrapper(toy_model(BCE + "use_pareto_loss_weight: true", ready=False))


def test_an_unknown_precision_names_the_nearest():
    with pytest.raises(ConfigError, match=r"mixed_precision = 'BF61' is not one of BF16, FP16. Did you mean 'BF16'\?"):
        autocast_dtype("BF61")
    assert autocast_dtype("") is autocast_dtype(None) is None


# ---- prediction


def test_prediction_returns_all_columns_or_the_wanted_ones():
    model, batch = toy_model(), toy_batch()
    nothing, (predictions, same) = PredictWrapper(model)(batch)
    assert nothing is None
    assert same is batch
    assert list(predictions) == ["logits", "probs"]
    assert list(PredictWrapper(model, output_cols=["probs"])(batch)[1][0]) == ["probs"]


def test_a_column_that_is_not_predicted_names_the_nearest_and_all():
    wrapper = PredictWrapper(toy_model(), output_cols=["prob"])
    with pytest.raises(ConfigError, match=r"not predict 'prob'. Did you mean 'probs'\? It predicts: logits, probs"):
        wrapper(toy_batch())


def test_the_key_that_says_how_often_rows_repeat_is_always_kept():
    model = Fixed({"probs": torch.ones(2), "logits": torch.ones(2), TARGET_REPEAT_INTERLEAVE_KEY: torch.ones(2)})
    _, (predictions, _) = PredictWrapper(model, output_cols=["probs"])(toy_batch())
    assert list(predictions) == ["probs", "__TARGET_REPEAT_INTERLEAVE_KEY__"]


def test_half_precision_results_come_as_float32():
    model = Fixed({"y": torch.ones(2, dtype=torch.bfloat16), "ids": torch.ones(2, dtype=torch.int64)})
    _, (predictions, _) = PredictWrapper(model)(toy_batch())
    assert [value.dtype for value in predictions.values()] == [torch.float32, torch.int64]
    with torch.no_grad():
        _, (mixed, _) = PredictWrapper(toy_model(), mixed_precision="BF16")(toy_batch())
    assert mixed["probs"].dtype == torch.float32


# ---- plain tensors


@pytest.mark.parametrize(
    "batch",
    [
        toy_batch(),
        toy_batch([1], [[3]]),
        toy_batch([1, 0, 1], [[], [], []]),
    ],
    ids=["4 rows", "1 row", "no ids"],
)
def test_flat_tensors_give_the_predictions_of_a_batch(batch):
    model = toy_model()
    script = ScriptWrapper(model).eval()
    flat = {name: value for name, value in batch.to_dict().items() if name != "label"}
    torch.testing.assert_close(script(flat), model.predict(batch), rtol=0, atol=0)
    assert model.is_inference


def test_flat_tensors_that_the_model_does_not_read_are_ignored():
    model, batch = toy_model(), toy_batch()
    script = ScriptWrapper(model).eval()
    rebuilt = script.get_batch(batch.to_dict())
    assert rebuilt.sparse_features["__BASE__"].keys() == ["user", "tags"]
    assert not rebuilt.labels
