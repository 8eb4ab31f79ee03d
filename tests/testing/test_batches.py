import pyarrow as pa
import pytest
import torch

from tzrec_core.config import parse_config
from tzrec_core.features import create_features
from tzrec_core.testing.batches import make_batch, make_rows, with_empty_bags, with_empty_sequences, with_nulls

CONFIG = """
data_config { fg_mode: %s label_fields: "label" sample_weight_fields: "weight" }
feature_configs { id_feature { feature_name: "user" expression: "user:user" hash_bucket_size: 1000 embedding_dim: 2 } }
feature_configs { id_feature { feature_name: "city" expression: "user:city" num_buckets: 50 embedding_dim: 2 } }
feature_configs { id_feature { feature_name: "tags" expression: "item:tags" separator: "|" hash_bucket_size: 9 embedding_dim: 2 } }
feature_configs { raw_feature { feature_name: "price" expression: "item:price" } }
feature_configs { sequence_id_feature { feature_name: "clicks" expression: "user:clicks" sequence_length: 3
  hash_bucket_size: 9 embedding_dim: 2 } }
feature_configs { sequence_feature { sequence_name: "hist" sequence_length: 4 sequence_delim: ";"
  features { id_feature { feature_name: "item" expression: "item:item" hash_bucket_size: 9 embedding_dim: 2 } }
  features { raw_feature { feature_name: "price" expression: "item:price" } }
} }
"""  # noqa: E501
FEATURES = ["user", "city", "tags", "price", "clicks", "hist__item", "hist__price"]


@pytest.fixture(params=["FG_NORMAL", "FG_NONE"])
def config(request):
    return parse_config(CONFIG % request.param, partial=True)


def lengths(batch, name):
    return batch.sparse_features["__BASE__"][name].lengths()


def test_a_batch_has_features_labels_and_weights(config):
    batch = make_batch(config, 32)
    assert batch.sparse_features["__BASE__"].keys() == ["user", "city", "tags", "clicks", "hist__item"]
    assert batch.dense_features["__BASE__"].values().shape == (32, 1)
    assert list(batch.sequence_dense_features) == ["hist__price"]
    assert batch.labels["label"].unique().tolist() == [0, 1]
    assert batch.sample_weights["weight"].shape == (32,)


def test_a_batch_is_made_of_given_rows_and_features(config):
    rows = make_rows(config, 8, seed=3)
    features = create_features(config.feature_configs, config.data_config)
    batch = make_batch(config, rows.slice(2, 3), features=features[:2])
    assert batch.sparse_features["__BASE__"].keys() == ["user", "city"]
    assert batch.labels["label"].tolist() == rows["label"].to_pylist()[2:5]


def test_equal_seeds_give_equal_rows_and_others_do_not(config):
    assert make_rows(config, seed=1).equals(make_rows(config, seed=1))
    assert not make_rows(config, seed=1).equals(make_rows(config, seed=2))
    assert not make_rows(config, part=0).equals(make_rows(config, part=1))


def test_rows_without_gaps_lack_nothing(config):
    rows = make_rows(config, 200, gaps=False)
    assert all(column.null_count == 0 for column in rows.columns)
    batch = make_batch(config, rows)
    names = batch.sparse_features["__BASE__"].keys()
    assert all((lengths(batch, name) > 0).all() for name in names)
    batch = make_batch(config, make_rows(config, 200))
    assert all((lengths(batch, name) == 0).any() for name in names)


def test_unseen_ids_are_others(config):
    known, unseen = (make_batch(config, make_rows(config, 300, unseen=unseen)) for unseen in (False, True))
    for name in ("user", "city"):
        ids, others = (set(batch.sparse_features["__BASE__"][name].values().tolist()) for batch in (known, unseen))
        assert len(ids) >= 20
        assert not ids & others
    assert set(unseen.sparse_features["__BASE__"]["city"].values().tolist()) == set(range(30, 50))


def test_nulls_are_everywhere_but_in_labels_and_weights(config):
    rows = make_rows(config, 4)
    nulls = with_nulls(rows, config)
    assert nulls.schema == rows.schema
    assert [name for name in nulls.column_names if nulls[name].null_count == 4] == sorted(FEATURES)
    assert nulls["label"].equals(rows["label"])
    batch = make_batch(config, nulls)
    assert len(batch.sparse_features["__BASE__"].values()) == 0
    assert torch.equal(batch.dense_features["__BASE__"].values(), torch.zeros(4, 1))


def test_empty_bags_are_those_of_texts_and_lists_that_are_no_sequences(config):
    rows = make_rows(config, 4, gaps=False)
    batch = make_batch(config, with_empty_bags(rows, config))
    assert not lengths(batch, "tags").any()
    assert not lengths(batch, "user").any()
    assert lengths(batch, "city").any() == (rows["city"].type == pa.int64())
    for name in ("clicks", "hist__item"):
        assert torch.equal(lengths(batch, name), lengths(make_batch(config, rows), name))
    assert batch.dense_features["__BASE__"].values().all()


def test_empty_sequences_are_all_sequences_and_nothing_else(config):
    rows = make_rows(config, 4, gaps=False)
    batch = make_batch(config, with_empty_sequences(rows, config))
    assert not lengths(batch, "clicks").any()
    assert not lengths(batch, "hist__item").any()
    assert not batch.sequence_dense_features["hist__price"].lengths().any()
    assert torch.equal(lengths(batch, "tags"), lengths(make_batch(config, rows), "tags"))
