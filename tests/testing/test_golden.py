import copy
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from tzrec_core.config import parse_config
from tzrec_core.features import create_features
from tzrec_core.modules.embedding_group import EmbeddingGroup
from tzrec_core.modules.mlp import MLP
from tzrec_core.testing.golden import (
    assert_close,
    assert_golden_parameters,
    assert_model_golden,
    fill_parameters,
    golden_batch,
    golden_config_text,
    load_golden,
    to_tensor,
)

GOLDEN = load_golden(Path(__file__).parents[1] / "goldens" / "wide_and_deep.json")


class HandMadeWideAndDeep(nn.Module):
    """Wide and deep written out by hand, with the methods that the checks call."""

    def __init__(self, *, scale: float = 1.0, last_name: str = "output_mlp") -> None:
        super().__init__()
        text = "\n".join(line for line in GOLDEN["config_text"].splitlines() if "wide_and_deep {" not in line)
        config = parse_config(text, partial=True)
        features = create_features(config.feature_configs, config.data_config)
        self.embedding_group = EmbeddingGroup(features, config.model_config.feature_groups)
        self.deep_mlp = MLP(in_features=25, hidden_units=[8, 4])
        self.add_module(last_name, nn.Linear(4, 1))
        self.last = [getattr(self, last_name)]
        self.scale = scale

    def init_loss(self):
        self.bce = nn.BCEWithLogitsLoss()

    def init_metric(self):
        self.values = {}

    def predict(self, batch):
        groups = self.embedding_group(batch)
        logits = groups["wide"].sum(1) + self.last[0](self.deep_mlp(groups["deep"])).squeeze(1)
        return {"logits": logits * self.scale, "probs": torch.sigmoid(logits)}

    def loss(self, predictions, batch):
        return {"binary_cross_entropy": self.bce(predictions["logits"], batch.labels["label"].float())}

    def update_metric(self, predictions, batch, losses):
        positive = batch.labels["label"] == 1
        probs = predictions["probs"]
        wins = probs[positive][:, None] > probs[~positive][None, :]
        self.values = {"auc": wins.double().mean(), **losses}

    def compute_metric(self):
        return self.values


def test_a_right_model_passes():
    assert_model_golden(GOLDEN, HandMadeWideAndDeep)


def test_a_wrong_prediction_names_block_tensor_place_and_both_values():
    with pytest.raises(AssertionError, match=r"wide_and_deep eval predictions 'logits': worst at \[\d\]: is .* but"):
        assert_model_golden(GOLDEN, lambda: HandMadeWideAndDeep(scale=1.01))


def test_a_renamed_parameter_is_reported():
    with pytest.raises(AssertionError, match=r"missing: .*output_mlp.*too many: .*head"):
        assert_model_golden(GOLDEN, lambda: HandMadeWideAndDeep(last_name="head"))


@pytest.mark.parametrize(
    ("block", "key", "words"),
    [
        ("embedding_groups_ordered", "embedding_group", "embedding_groups_ordered embedding_group 'deep'"),
        ("eval", "metrics", "eval metrics 'auc'"),
        ("train_ordered", "grad_sq_sum", "train_ordered grad_sq_sum 'sparse'"),
        ("train", "grad_sq_by_shape", "train grad_sq_by_shape '20x8'"),
        ("eval_ordered", "params_without_grad", "eval_ordered params_without_grad"),
        ("train", "losses", "train losses 'binary_cross_entropy'"),
    ],
)
def test_every_block_is_compared(block, key, words):
    golden = copy.deepcopy(GOLDEN)
    part = golden[block][key]
    if key == "params_without_grad":
        part.append("embedding_group")
    elif block.startswith("embedding_groups"):
        part["deep"]["values"][3] += 0.001
    else:
        name = words.rpartition(" ")[2].strip("'")
        part[name] *= 1.01
    with pytest.raises(AssertionError) as error:
        assert_model_golden(golden, HandMadeWideAndDeep)
    assert words in str(error.value)


def test_the_order_of_parameters_counts():
    first, second = nn.Linear(2, 3), nn.Linear(2, 3)
    golden = {"name": "x", "params": {"ordered": [["b.weight", [3, 2], 0], ["a.weight", [3, 2], 1]]}}
    first.bias = second.bias = None
    with pytest.raises(AssertionError, match="parameter 0 is"):
        assert_golden_parameters(nn.ModuleDict({"a": first, "b": second}), golden)


def test_fill_rule_counts_equal_shapes():
    module = nn.ModuleList([nn.Linear(2, 1), nn.Linear(2, 1)])
    fill_parameters(module, amplitude=1.0, ordered=True)
    # sin(0.37 t + 0.11 ndim + 0.013 shape[0] + 0.5 k)
    assert_close(module[1].weight, [[math.sin(0.733), math.sin(1.103)]], "weight of the second, phase 0.733")
    assert_close(module[0].bias, [math.sin(0.123)], "bias of the first, phase 0.123")
    fill_parameters(module, amplitude=1.0, ordered=False)
    assert torch.equal(module[0].weight, module[1].weight)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("auc {}", "auc { thresholds: 200 }"),
        ("auc { thresholds: 7 }", "auc { thresholds: 7 }"),
        ('multiclass_auc { average: "macro" }', 'multiclass_auc { average: "macro"  thresholds: 200 }'),
        ('grouped_auc { grouping_key: "u" }', 'grouped_auc { grouping_key: "u" }'),
    ],
)
def test_unset_auc_thresholds_become_200_and_others_stay(written, expected):
    assert golden_config_text({"config_text": f"metrics {{ {written} }}"}) == f"metrics {{ {expected} }}"


def test_batch_keeps_every_part_of_the_json():
    batch = golden_batch(
        {
            "sparse": {"__BASE__": {"a": {"lengths": [1, 2], "values": [4, 5, 6], "weights": [1.0, 2.0, 3.0]}}},
            "sequence_dense": {"p": {"lengths": [0, 1], "values": [[1.0, 2.0]]}},
            "sequence_mulval_lengths": {"__BASE__": {"m": {"key_lengths": [2, 0], "seq_lengths": [1, 1]}}},
            "jagged_labels": {"y": {"dtype": "int64", "lengths": [1, 1], "values": [3, 4]}},
            "sample_weights": {"w": [1, 2]},
            "additional_infos": {"n": {"dtype": "int32", "values": [1, 2]}},
        }
    )
    assert batch.sparse_features["__BASE__"]["a"].weights().tolist() == [1.0, 2.0, 3.0]
    assert batch.sequence_dense_features["p"].values().tolist() == [[1.0, 2.0]]
    assert batch.sequence_mulval_lengths["__BASE__"]["m"].values().tolist() == [2, 0]
    assert batch.jagged_labels["y"].values().tolist() == [3, 4]
    assert batch.sample_weights["w"].dtype == torch.float32
    assert batch.additional_infos["n"].dtype == torch.int32


def test_nan_written_as_a_word_is_a_number_and_equals_itself():
    assert to_tensor("nan").isnan()
    assert_close(torch.tensor([float("nan"), 1.0]), {"shape": [2], "dtype": "float32", "values": ["nan", 1.0]}, "x")
    with pytest.raises(AssertionError, match=r"worst at \[1\]: is nan, but should be 1"):
        assert_close(torch.tensor([0.0, float("nan")]), [0.0, 1.0], "x")
