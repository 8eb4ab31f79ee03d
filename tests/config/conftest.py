import pytest

from tzrec_core.config import parse_config
from tzrec_core.errors import TzrecError

PLUGINS = ("tzrec-deepfm", "tzrec-wide-and-deep", "tzrec-plain", "acme-ranking", "acme-zoo")

VALID = """
train_input_path: "data/train.parquet"
eval_input_path: "data/eval.parquet"
model_dir: "runs/one"
data_config {
  dataset_type: ParquetDataset
  label_fields: "clicked"
  sample_weight_fields: "weight"
}
feature_configs { id_feature { feature_name: "user_id" expression: "user:user_id" num_buckets: 9 embedding_dim: 4 } }
feature_configs { id_feature { feature_name: "item_id" expression: "item:item_id" num_buckets: 9 embedding_dim: 4 } }
feature_configs { raw_feature { feature_name: "price" expression: "item:price" } }
feature_configs {
  sequence_feature {
    sequence_name: "seen"
    sequence_length: 5 sequence_delim: ";"
    features { id_feature { feature_name: "item_id" expression: "item:item_id" num_buckets: 9 embedding_dim: 4 } }
  }
}
model_config {
  feature_groups { group_name: "wide" group_type: WIDE feature_names: "user_id" feature_names: "item_id" }
  feature_groups { group_name: "deep" group_type: DEEP feature_names: "user_id" feature_names: "item_id" }
  deepfm { deep { hidden_units: [8, 4] } }
  losses { binary_cross_entropy {} }
  metrics { auc {} }
}
"""


@pytest.fixture(autouse=True)
def plugins(use_plugins):
    """The plugins of every test here, whatever else is installed."""
    return use_plugins(*PLUGINS)


@pytest.fixture
def valid():
    """A config without mistakes."""
    return VALID


@pytest.fixture
def changed():
    """`VALID` with some of its text replaced."""

    def change(*pairs):
        text = VALID
        for old, new in zip(pairs[::2], pairs[1::2], strict=True):
            assert text.count(old) >= 1, old
            text = text.replace(old, new, 1)
        return text

    return change


@pytest.fixture
def mistakes():
    """What is said about a text, one entry per mistake."""

    def find(text, **options):
        options = {"validate": True, **options}
        try:
            parse_config(text, **options)
        except TzrecError as error:
            return getattr(error, "problems", [str(error)])
        return []

    return find
