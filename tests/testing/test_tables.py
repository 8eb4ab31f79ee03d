import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tzrec_core.config import parse_config
from tzrec_core.data.loader import create_dataloader
from tzrec_core.errors import ConfigError
from tzrec_core.features import create_features
from tzrec_core.testing.tables import make_rows, write_example_tables

FEATURES = """
feature_configs { id_feature { feature_name: "hashed" expression: "user:hashed" hash_bucket_size: 9 embedding_dim: 2 } }
feature_configs { id_feature { feature_name: "number" expression: "user:number" num_buckets: 7 embedding_dim: 2 } }
feature_configs { id_feature { feature_name: "one" expression: "user:one" num_buckets: 7 embedding_dim: 2 value_dim: 1 } }
feature_configs { id_feature { feature_name: "word" expression: "user:word" vocab_list: ["x", "y"] embedding_dim: 2 } }
feature_configs { id_feature { feature_name: "code" expression: "user:code" embedding_dim: 2
  vocab_dict { key: "p" value: 2 } vocab_dict { key: "q" value: 9 } } }
feature_configs { id_feature { feature_name: "tags" expression: "item:tags" separator: "|" hash_bucket_size: 9 embedding_dim: 2 } }
feature_configs { id_feature { feature_name: "scored" expression: "item:scored" weighted: true hash_bucket_size: 9 embedding_dim: 2 } }
feature_configs { raw_feature { feature_name: "price" expression: "item:price" normalizer: "method=log10" } }
feature_configs { raw_feature { feature_name: "vector" expression: "item:vector" value_dim: 3 } }
feature_configs { raw_feature { feature_name: "age" expression: "user:age" boundaries: [18, 30] embedding_dim: 2 } }
feature_configs { sequence_id_feature { feature_name: "clicks" expression: "user:clicks" sequence_length: 3
  num_buckets: 7 embedding_dim: 2 } }
feature_configs { sequence_raw_feature { feature_name: "times" expression: "user:times" sequence_length: 9 } }
feature_configs { sequence_feature { sequence_name: "hist" sequence_length: 4 sequence_delim: ";"
  features { id_feature { feature_name: "item" expression: "item:item" hash_bucket_size: 9 embedding_dim: 2 } }
  features { id_feature { feature_name: "tags" expression: "item:tags" value_dim: 0 separator: "|" hash_bucket_size: 9 embedding_dim: 2 } }
  features { raw_feature { feature_name: "price" expression: "item:price" } }
  features { raw_feature { feature_name: "pair" expression: "item:pair" value_dim: 2 separator: "," } }
} }
"""  # noqa: E501


def config_of(fg_mode="FG_NORMAL", *, features=FEATURES, paths=("train.parquet", "eval.parquet"), model="", data=""):
    train, evaluation = paths
    return parse_config(
        f"""train_input_path: "{train}" eval_input_path: "{evaluation}" model_dir: "m"
        data_config {{ dataset_type: ParquetDataset fg_mode: {fg_mode} batch_size: 50 num_workers: 0
          label_fields: "label" sample_weight_fields: "w" {data} }}
        {features} model_config {{ {model} }}""",
        partial=True,
    )


def tables(config, folder, **kwargs):
    return {name: pq.read_table(path) for name, path in write_example_tables(config, folder, **kwargs).items()}


@pytest.mark.parametrize("fg_mode", ["FG_NORMAL", "FG_NONE"])
def test_the_loader_reads_every_row_of_both_tables(fg_mode, tmp_path):
    config = config_of(fg_mode)
    features = create_features(config.feature_configs, config.data_config)
    paths = write_example_tables(config, tmp_path, num_rows=120)
    assert paths == {"train_input_path": tmp_path / "train.parquet", "eval_input_path": tmp_path / "eval.parquet"}
    for mode, path in zip(("train", "eval"), paths.values()):
        batches = list(create_dataloader(config.data_config, features, str(path), mode=mode))
        assert [len(batch.labels["label"]) for batch in batches] == [50, 50, 20]
        assert all((batch.sample_weights["w"] > 0).all() for batch in batches)
        assert set(batches[0].sequence_dense_features) == {"times", "hist__price", "hist__pair"}
        sparse = batches[0].sparse_features["__BASE__"]
        assert (sparse["tags"].lengths() == 0).any()
        assert (sparse["tags"].lengths() > 1).any()


@pytest.mark.parametrize("fg_mode", ["FG_NORMAL", "FG_NONE"])
def test_nulls_and_empty_rows_are_among_the_values(fg_mode, tmp_path):
    table = tables(config_of(fg_mode), tmp_path)["train_input_path"]
    assert all(table[name].null_count for name in table.schema.names if name not in ("label", "w"))
    empty = "" if fg_mode == "FG_NORMAL" else []
    for name in ("tags", "clicks", "hist__item"):
        assert empty in table[name].to_pylist()


def test_the_members_of_a_sequence_have_equally_many_steps(tmp_path):
    table = tables(config_of(), tmp_path)["train_input_path"]
    for row in table.select(["hist__item", "hist__tags", "hist__price", "hist__pair"]).to_pylist():
        assert len({len(text.split(";")) if text else 0 for text in row.values()}) == 1


def test_columns_have_the_types_of_raw_and_of_encoded_data(tmp_path):
    raw = tables(config_of("FG_NORMAL"), tmp_path)["train_input_path"].schema
    assert [raw.field(name).type for name in ("hashed", "number", "tags", "price", "vector", "hist__item")] == [
        pa.string(), pa.int64(), pa.string(), pa.float32(), pa.list_(pa.float32()), pa.string()
    ]  # fmt: skip
    encoded = tables(config_of("FG_NONE"), tmp_path)["train_input_path"].schema
    assert [encoded.field(name).type for name in ("one", "tags", "price", "clicks", "hist__tags", "hist__pair")] == [
        pa.int64(), pa.list_(pa.int64()), pa.float32(), pa.list_(pa.int64()), pa.list_(pa.list_(pa.int64())),
        pa.list_(pa.list_(pa.float32())),
    ]  # fmt: skip


def test_equal_seeds_give_equal_tables_and_both_tables_follow_one_rule(tmp_path):
    config = config_of(features=FEATURES.splitlines()[4])  # one word: its effect is the label, up to noise
    first = tables(config, tmp_path / "a", seed=3)
    again = tables(config, tmp_path / "b", seed=3)
    other = tables(config, tmp_path / "c", seed=4)
    assert first == again
    assert first["train_input_path"] != other["train_input_path"]
    assert first["train_input_path"] != first["eval_input_path"]
    means = [table.group_by("word").aggregate([("label", "mean")]).sort_by("word") for table in first.values()]
    assert means[0]["word"] == means[1]["word"]
    for left, right in zip(*(mean["label_mean"].to_pylist() for mean in means)):
        assert abs(left - right) < 0.2


@pytest.mark.parametrize(
    ("model", "kind", "values"),
    [
        ("losses { binary_cross_entropy {} }", pa.int64(), 2),
        ("losses { softmax_cross_entropy {} } num_class: 3", pa.int64(), 3),
        ("losses { l2_loss {} }", pa.float32(), None),
        ("", pa.int64(), 2),
    ],
)
def test_the_label_fits_the_loss(model, kind, values, tmp_path):
    label = tables(config_of(model=model), tmp_path)["train_input_path"]["label"]
    assert label.type == kind
    assert label.null_count == 0
    assert values is None or sorted(label.unique().to_pylist()) == list(range(values))


def test_features_that_share_a_column_can_all_read_it(tmp_path):
    shared = """
    feature_configs { id_feature { feature_name: "h" expression: "user:age" hash_bucket_size: 9 embedding_dim: 2 } }
    feature_configs { id_feature { feature_name: "n" expression: "user:age" num_buckets: 5 embedding_dim: 2 } }
    feature_configs { raw_feature { feature_name: "r" expression: "user:age" } }"""
    config = config_of(features=shared)
    features = create_features(config.feature_configs, config.data_config)
    path = str(write_example_tables(config, tmp_path)["train_input_path"])
    assert len(list(create_dataloader(config.data_config, features, path))) == 11


@pytest.mark.parametrize("path", ["/abs/train.parquet", "part-*.parquet", "a.parquet,b.parquet", "train.csv"])
def test_paths_that_are_not_one_relative_parquet_file_are_refused(path, tmp_path):
    with pytest.raises(ConfigError, match=r"train_input_path = .*name one"):
        write_example_tables(config_of(paths=(path, "eval.parquet")), tmp_path)


TASKS = """two_tasks {
  task_towers { tower_name: "click" label_name: "click" losses { binary_cross_entropy {} } }
  task_towers { tower_name: "buy" label_name: "buy" losses { softmax_cross_entropy {} } num_class: 3
    task_space_indicator_label: "click" }
  task_towers { tower_name: "spent" label_name: "spent" losses { l2_loss {} } task_space_indicator_label: "buy" } }"""


def test_the_labels_of_several_tasks_fit_the_losses_of_their_towers_and_the_spaces_of_their_tasks(use_plugins):
    use_plugins("acme-zoo")
    config = config_of(model=TASKS, data='label_fields: ["click", "buy", "spent"]')
    rows = make_rows(config, 64).to_pydict()
    assert set(rows["click"]) == set(rows["label"]) == {0, 1}  # no tower reads `label`
    assert set(rows["buy"]) == {0, 1, 2}
    assert len(set(rows["spent"])) > 20
    assert any(click and not buy for click, buy in zip(rows["click"], rows["buy"]))
    assert not any(buy and not click for click, buy in zip(rows["click"], rows["buy"]))
    assert not any(spent and not buy for buy, spent in zip(rows["buy"], rows["spent"]))


PAIR = """
feature_configs { id_feature { feature_name: "user" expression: "user:user" hash_bucket_size: 99 embedding_dim: 2 } }
feature_configs { id_feature { feature_name: "item" expression: "item:item" num_buckets: 99 embedding_dim: 2 } }
feature_configs { id_feature { feature_name: "kind" expression: "item:kind" num_buckets: 7 embedding_dim: 2 } }
feature_configs { raw_feature { feature_name: "price" expression: "item:price" } }
feature_configs { sequence_id_feature { feature_name: "seen" expression: "user:seen" sequence_length: 5
  num_buckets: 99 embedding_dim: 2 } }
"""


def test_64_rows_of_a_matching_model_hold_each_item_once_and_in_all_tables_the_item_follows_from_the_user(use_plugins):
    use_plugins("acme-zoo")
    model = 'two_towers { user_tower { input: "user" } item_tower { input: "item" } }'
    config = config_of(features=PAIR, model=model)
    train, evaluation = (make_rows(config, 64, part=part, gaps=False) for part in (0, 1))
    assert train["label"].to_pylist() == [1] * 64
    assert sorted(train["item"].to_pylist()) == list(range(64))
    assert len(set(train["user"].to_pylist())) == 64
    assert set(train["kind"].to_pylist()) == set(range(7))
    assert len(set(train["seen"].to_pylist())) > 32
    assert train["item"] != evaluation["item"]
    item, kind, price = (
        dict(zip(train["user"].to_pylist(), train[name].to_pylist())) for name in ("item", "kind", "price")
    )
    for row in evaluation.to_pylist():
        assert (row["item"], row["kind"], row["price"]) == (item[row["user"]], kind[row["user"]], price[row["user"]])
