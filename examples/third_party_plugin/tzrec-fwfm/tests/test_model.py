import pyarrow as pa
import pytest
import torch
from tzrec_fwfm.loss import Poly1

from tzrec_core.config import parse_config
from tzrec_core.errors import ConfigError
from tzrec_core.features import create_features
from tzrec_core.models import create_model
from tzrec_core.testing import make_batch

CONFIG = """
data_config { fg_mode: FG_NORMAL label_fields: "label" }
feature_configs { id_feature { feature_name: "a" expression: "user:a" num_buckets: 2 embedding_dim: 2 } }
feature_configs { id_feature { feature_name: "b" expression: "user:b" num_buckets: 2 embedding_dim: 2 } }
feature_configs { id_feature { feature_name: "c" expression: "item:c" num_buckets: 2 embedding_dim: 2 } }
feature_configs { raw_feature { feature_name: "price" expression: "item:price" } }
model_config {
  feature_groups { group_name: "wide" group_type: WIDE feature_names: "a" }
  feature_groups { group_name: "fields" group_type: DEEP feature_names: [%s] }
  fwfm {}
  losses { plugin { [tzrec.dev/tzrec_fwfm.Poly1] { epsilon: 2 } } }
}
"""
ROW = pa.table({"a": [1], "b": [1], "c": [1], "price": [0.5], "label": [1]})


def build(fields='"a", "b", "c"'):
    config = parse_config(CONFIG % fields, partial=True)
    model = create_model(config.model_config, create_features(config.feature_configs, config.data_config), ["label"])
    tables = {name.split(".")[-2]: table for name, table in model.embedding_group.named_parameters()}
    with torch.no_grad():
        for name, values in {"a_emb": [1, 2], "b_emb": [3, 4], "c_emb": [5, 6], "a_emb_wide": [1, 2, 3, 4]}.items():
            tables[name][1] = torch.tensor(values, dtype=torch.float32)
        model.strength.bias.fill_(0.5)
    return config, model.eval()


def test_each_pair_of_fields_has_its_strength():
    config, model = build()
    with torch.no_grad():
        model.strength.weight.copy_(torch.tensor([[1.0, 10.0, 100.0]]))
    # the weight of a: 1 + 2 + 3 + 4; products a b = 3 + 8, a c = 5 + 12, b c = 15 + 24; the bias
    expected = 10 + 11 * 1 + 17 * 10 + 39 * 100 + 0.5
    assert model.predict(make_batch(config, ROW))["logits"].tolist() == [expected]


def test_it_begins_as_a_factorization_machine():
    config, model = build()
    assert model.predict(make_batch(config, ROW))["logits"].tolist() == [10 + 11 + 17 + 39 + 0.5]


@pytest.mark.parametrize("fields", ['"a", "b", "c", "price"', '"a"'])
def test_what_cannot_be_multiplied_is_refused(fields):
    with pytest.raises(ConfigError, match="two or more of one width"):
        build(fields)


def test_a_wrong_answer_costs_epsilon_times_its_probability_more():
    logits, labels = torch.log(torch.tensor([3.0, 3.0])), torch.tensor([1.0, 0.0])  # a probability of 3/4 for 1
    expected = -torch.log(torch.tensor([0.75, 0.25])) + 2 * torch.tensor([0.25, 0.75])
    torch.testing.assert_close(Poly1(epsilon=2.0, reduction="none")(logits, labels), expected)
    torch.testing.assert_close(Poly1(epsilon=2.0)(logits, labels), expected.mean())


def test_the_config_names_the_loss_and_its_epsilon():
    config, model = build()
    model.init_loss()
    batch = make_batch(config, ROW)
    losses = model.loss({"logits": torch.tensor([0.0])}, batch)
    assert losses["poly1"].item() == pytest.approx(0.693147 + 2 * 0.5, abs=1e-5)
