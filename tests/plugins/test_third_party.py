"""What somebody else's plugins offer works like what is built in: by config, and with its own settings."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from sklearn.metrics import brier_score_loss

from tzrec_core.config import find_mistakes, parse_config, used_plugins
from tzrec_core.data import DataParser
from tzrec_core.data.loader import reader_class
from tzrec_core.engine.callbacks.callbacks import Callbacks
from tzrec_core.errors import ConfigError, PluginError
from tzrec_core.features import create_features
from tzrec_core.models import create_model
from tzrec_core.models.objectives import build_loss, build_metric
from tzrec_core.modules import EmbeddingGroup
from tzrec_core.plugins import Output, Task

FEATURES = """
data_config { fg_mode: FG_NORMAL label_fields: "y" %s }
feature_configs { id_feature { feature_name: "a" expression: "user:a" num_buckets: 5 embedding_dim: 4 } }
feature_configs {
  sequence_feature {
    sequence_name: "s" sequence_length: 9 sequence_delim: ";"
    features { id_feature { feature_name: "a" expression: "user:a" num_buckets: 5 embedding_dim: 4 } }
  }
}
"""


@pytest.fixture(autouse=True)
def plugins(use_plugins):
    return use_plugins("acme-ranking", "tzrec-plain")


def parsed(text):
    return parse_config(text, partial=True, validate=True)


def batch_of(config, columns):
    features = create_features(config.feature_configs, config.data_config)
    parser = DataParser(features, labels=list(config.data_config.label_fields))
    return features, parser.to_batch(parser.parse(pa.RecordBatch.from_pydict(columns)))


def test_a_loss_in_a_slot_is_built_with_its_settings():
    config = parsed("model_config { losses { plugin { [tzrec.dev/acme_ranking.Tversky] { alpha: 0.25 gamma: 2 } } } }")
    loss_config = config.model_config.losses[0]
    loss = build_loss(loss_config, task=Task.RANK, num_class=1, reduction="mean")
    # p = 0.5 everywhere, labels 1, 1, 0: hits 1, wrong 0.25 * 0.5, missed 0.75 * 1
    expected = (1 - 1 / (1 + 0.125 + 0.75)) ** 2
    preds, labels = torch.zeros(3, requires_grad=True), torch.tensor([1.0, 1.0, 0.0])
    value = loss(preds, labels)
    torch.testing.assert_close(value, torch.tensor(expected))
    value.backward()
    assert (preds.grad[:2] < 0).all()
    rows = build_loss(loss_config, task=Task.RANK, num_class=1, reduction="none")(preds, labels)
    assert rows.shape == (3,)


def test_a_metric_in_a_slot_is_built_and_agrees_with_scikit_learn():
    config = parsed("model_config { metrics { plugin { [tzrec.dev/acme_ranking.Brier] { } } } }")
    metric = build_metric(config.model_config.metrics[0], task=Task.RANK, num_class=1, outputs={Output.BINARY})
    rng = np.random.default_rng(0)
    probs, labels = rng.random(50).astype(np.float32), rng.integers(0, 2, 50)
    for part in (slice(0, 20), slice(20, 50)):
        metric.update(torch.from_numpy(probs[part]), torch.from_numpy(labels[part]))
    assert metric.compute().item() == pytest.approx(brier_score_loss(labels, probs), rel=1e-5)


@pytest.mark.parametrize(("mlp", "width"), [("", 4), ("mlp { hidden_units: 3 }", 3)])
def test_a_sequence_encoder_in_a_slot_reads_the_last_steps(mlp, width):
    config = parsed(
        FEATURES % "" + 'model_config { feature_groups { group_name: "deep" group_type: DEEP sequence_groups '
        '{ group_name: "hist" feature_names: "s__a" } sequence_encoders { plugin { '
        f'[tzrec.dev/acme_ranking.LastSteps] {{ input: "hist" steps: 2 {mlp} }} }} }} }} }}'
    )
    features, batch = batch_of(config, {"a": [0, 1], "s__a": ["1;2;3", ""], "y": [0.0, 1.0]})
    group = EmbeddingGroup(features, list(config.model_config.feature_groups))
    assert group.group_total_dim("deep") == width
    out = group(batch)["deep"]
    assert out.shape == (2, width)
    if not mlp:
        (table,) = [p for name, p in group.named_parameters() if name.endswith("weight")]
        torch.testing.assert_close(out, torch.stack([table[2:4].mean(0), torch.zeros(4)]))


def test_a_feature_type_is_named_by_custom_feature_and_reads_its_parameters():
    config = parsed(
        """
        data_config { fg_mode: FG_NORMAL label_fields: "y" }
        feature_configs {
          custom_feature {
            feature_name: "title_length" operator_name: "text_length" expression: "item:title"
            operator_params { fields { key: "scale" value { number_value: 0.5 } } }
          }
        }
        """
    )
    (feature,), batch = batch_of(config, {"title": ["four", None, "größer"], "y": [0.0, 1.0, 0.0]})
    assert (feature.name, feature.is_sparse, feature.output_dim) == ("title_length", False, 1)
    assert batch.dense_features["__BASE__"].values().tolist() == [[2.0], [0.0], [3.0]]


def test_a_reader_in_a_slot_takes_the_place_of_the_dataset_type():
    config = parsed('data_config { reader { [tzrec.dev/acme_ranking.Counting] { rows: 5 columns: "n" } } }')
    reader = reader_class(config.data_config)("nowhere", batch_size=2, data_config=config.data_config)
    assert reader.num_rows == 5
    assert [block.table.column("n").to_pylist() for block in reader.read_rows(1, 4)] == [[1, 2, 3]]


def test_a_model_with_a_dataclass_config_trains():
    config = parsed(
        FEATURES % "" + 'model_config { feature_groups { group_name: "any" group_type: DEEP feature_names: "a" } '
        'plain_model { title: "x" use_bias: false } losses { binary_cross_entropy {} } metrics { auc {} } }'
    )
    features, batch = batch_of(config, {"a": [0, 1], "s__a": ["1", ""], "y": [0.0, 1.0]})
    model = create_model(config.model_config, features, ["y"])
    model.init_loss()
    assert model.linear.bias is None
    predictions = model.predict(batch)
    assert predictions["probs"].shape == (2,)
    sum(model.loss(predictions, batch).values()).backward()
    assert model.linear.weight.grad.abs().sum() > 0


CALLBACKS = "train_config { callbacks { %s } }"
STOP_AFTER_ROWS = "[tzrec.dev/acme_ranking.StopAfterRows] { rows: 7 }"


@pytest.mark.parametrize(
    "text",
    [
        CALLBACKS % STOP_AFTER_ROWS,
        '{"train_config": {"callbacks": [{"@type": "tzrec.dev/acme_ranking.StopAfterRows", "rows": 7}]}}',
    ],
)
def test_a_callback_in_the_train_config_is_made_with_its_settings(text):
    config = parse_config(text, partial=True)
    (callback,) = (m.callback for m in Callbacks.from_config(config)._members if m.plugin)
    assert (type(callback).__module__, callback._limit) == ("acme_ranking.callback", 7)
    assert used_plugins(config) == {"acme-ranking": "1.2.0"}


def test_a_config_with_a_callback_is_written_as_it_was_read():
    config = parse_config(CALLBACKS % STOP_AFTER_ROWS, partial=True)
    assert "[tzrec.dev/acme_ranking.StopAfterRows]" in str(config)
    assert parse_config(str(config), partial=True) == config


def test_a_callback_that_nobody_offers_is_reported_with_line_nearest_name_and_package():
    with pytest.raises(
        PluginError, match=r"2:2: no installed plugin offers 'acme_ranking\.StopAfterRow'\. Did you mean"
    ):
        parse_config("train_config { callbacks {\n [tzrec.dev/acme_ranking.StopAfterRow] { rows: 1 } } }", partial=True)
    with pytest.raises(PluginError, match=r"Is its plugin installed \(pip install other-callbacks\)\?"):
        parse_config(CALLBACKS % "[tzrec.dev/other_callbacks.Watch] { }", partial=True)


def test_a_callback_without_its_settings_is_reported_with_their_path():
    with pytest.raises(ConfigError, match=r"train_config\.callbacks\[0\].*rows"):
        parse_config(CALLBACKS % "[tzrec.dev/acme_ranking.StopAfterRows] { }")


@pytest.mark.parametrize(
    ("slot", "words"),
    [
        (
            "[tzrec.dev/acme_ranking.Brier] { }",
            "acme_ranking.Brier is not the settings of a callback. Installed: acme_",
        ),
        ("", "the slot is empty; write [tzrec.dev/pkg.Message] { ... } into it. Installed: acme_ranking.StopAfterRows"),
    ],
)
def test_validation_finds_what_cannot_be_a_callback(slot, words):
    config = parse_config(CALLBACKS % f"{STOP_AFTER_ROWS} }} callbacks {{ {slot}", partial=True)
    assert any(f"train_config.callbacks[1]: {words}" in mistake for mistake in find_mistakes(config, partial=True))
