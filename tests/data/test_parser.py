import pickle
import random
import sys

import pyarrow as pa
import pytest
import torch
from google.protobuf import text_format

from tzrec_core.data.parser import DataParser
from tzrec_core.errors import DataError
from tzrec_core.features import create_features
from tzrec_core.protos import pipeline_pb2

_CONFIG = """
feature_configs { id_feature {
  feature_name: "user" expression: "user:user" num_buckets: 20 embedding_dim: 4 } }
feature_configs { id_feature {
  feature_name: "tags" expression: "user:tags" hash_bucket_size: 50 embedding_dim: 4 separator: "|" } }
feature_configs { id_feature {
  feature_name: "city" expression: "user:city" vocab_list: ["a", "b"] embedding_dim: 4 value_dim: 1 } }
feature_configs { raw_feature { feature_name: "age" expression: "user:age" } }
feature_configs { raw_feature { feature_name: "emb" expression: "user:emb" value_dim: 3 separator: "|" } }
feature_configs { raw_feature {
  feature_name: "level" expression: "user:level" boundaries: [1, 2] embedding_dim: 4 } }
feature_configs { sequence_feature { sequence_name: "hist" sequence_length: 4 sequence_delim: ";"
  features { id_feature { feature_name: "item" expression: "item:item" num_buckets: 20 embedding_dim: 4 } }
  features { id_feature {
    feature_name: "tags" expression: "item:tags" num_buckets: 20 embedding_dim: 4 value_dim: 0
    separator: "|" } }
  features { raw_feature { feature_name: "time" expression: "item:time" } } } }
feature_configs { sequence_id_feature {
  feature_name: "words" expression: "user:words" hash_bucket_size: 9 embedding_dim: 4 } }
"""
_WEIGHTED = """
feature_configs { id_feature {
  feature_name: "kv" expression: "user:kv" num_buckets: 20 embedding_dim: 4 weighted: true separator: "|" } }
"""


def _parser(config, data_config="", **columns):
    message = pipeline_pb2.EasyRecConfig()
    text_format.Parse(f"{config} data_config {{ {data_config} }}", message, allow_unknown_field=False)
    return DataParser(create_features(message.feature_configs, message.data_config), **columns)


def _columns(repeat=1, sep="|", encoded=False):
    texts = {
        "user": [3, None, 19],
        "tags": [["7", "8"], [], None] if encoded else ["x|y", "", None],
        "city": ["2", "3", None] if encoded else ["a", "b", None],
        "age": [0.5, 30.0, None],
        "emb": [f"1{sep}2{sep}3", None, f"4{sep}5{sep}6"],
        "level": [0, 2, None] if encoded else [0.5, 2.0, None],
        "hist__item": ["1;2", "", "3"],
        "hist__tags": [f"1{sep}2;", "", f"4{sep}5{sep}6"],
        "hist__time": ["10;20", "", "30"],
        "words": ["1;2;3", None, "4"] if encoded else ["b;a;b", None, "d"],
        "click": [1, 0, 1],
        "rating": [4.5, 1.0, 3.0],
        "watch": [[1, 2], [], [3]],
        "w": [1.0, 0.5, 2],
    }
    return {name: pa.array(values * repeat) for name, values in texts.items()}


def _lists(flat):
    return {name: tensor.tolist() for name, tensor in flat.items()}


def test_flat_tensors_have_the_names_that_models_are_fed_with():
    parser = _parser(_CONFIG, labels=["click", "rating", "watch"], sample_weights=["w"])
    flat = parser.parse(_columns(sep="\003", encoded=True))
    assert _lists(flat) == {
        "user.values": [3, 19],
        "user.lengths": [1, 0, 1],
        "tags.values": [7, 8],
        "tags.lengths": [2, 0, 0],
        "city.values": [2, 3],
        "city.lengths": [1, 1, 0],
        "age.values": [[0.5], [30.0], [0.0]],
        "emb.values": [[1, 2, 3], [0, 0, 0], [4, 5, 6]],
        "level.values": [0, 2],
        "level.lengths": [1, 1, 0],
        "hist__item.values": [1, 2, 3],
        "hist__item.lengths": [2, 0, 1],
        "hist__tags.values": [1, 2, 4, 5, 6],
        "hist__tags.key_lengths": [2, 0, 3],
        "hist__tags.seq_lengths": [2, 0, 1],
        "hist__time.values": [[10], [20], [30]],
        "hist__time.lengths": [2, 0, 1],
        "words.values": [1, 2, 3, 4],
        "words.lengths": [3, 0, 1],
        "click": [1, 0, 1],
        "rating": [4.5, 1.0, 3.0],
        "watch.values": [1, 2, 3],
        "watch.lengths": [2, 0, 1],
        "w": [1.0, 0.5, 2.0],
    }
    dtypes = {name: str(tensor.dtype) for name, tensor in flat.items()}
    ints = {name for name, dtype in dtypes.items() if dtype == "torch.int64"}
    floats = {name for name, dtype in dtypes.items() if dtype == "torch.float32"}
    assert floats == {"age.values", "emb.values", "hist__time.values", "rating", "w"}
    assert ints | floats == set(dtypes)


def test_raw_columns_give_the_same_names():
    parser = _parser(_CONFIG, "fg_mode: FG_NORMAL")
    flat = _lists(parser.parse(_columns()))
    assert flat["city.values"] == [2, 3] and flat["level.values"] == [0, 2, 0]
    assert flat["hist__tags.key_lengths"] == [2, 0, 3]
    assert set(flat) == set(_parser(_CONFIG).parse(_columns(sep="\003", encoded=True)))


@pytest.mark.parametrize("make", [pa.RecordBatch.from_pydict, pa.Table.from_pydict, dict])
def test_columns_come_as_batch_table_or_dict(make):
    parser = _parser(_CONFIG, "fg_mode: FG_NORMAL", labels=["click"])
    assert parser.parse(make(_columns()))["click"].tolist() == [1, 0, 1]


def test_input_columns_are_those_that_are_read_each_once():
    config = """
    feature_configs { id_feature { feature_name: "a" expression: "user:x" num_buckets: 9 embedding_dim: 4 } }
    feature_configs { raw_feature { feature_name: "b" expression: "user:x" } }"""
    assert _parser(config, labels=["y"], sample_weights=["w"]).input_columns == ["a", "b", "y", "w"]
    assert _parser(config, "fg_mode: FG_NORMAL", labels=["y"]).input_columns == ["x", "y"]


def test_a_batch_holds_the_flat_tensors_by_data_group():
    sampler = """negative_sampler {
        input_path: "p" num_sample: 1 attr_fields: "tags" attr_fields: "emb" item_id_field: "tags" }"""
    parser = _parser(_CONFIG, sampler, labels=["click", "watch"], sample_weights=["w"])
    flat = parser.parse(_columns(sep="\003", encoded=True))
    batch = parser.to_batch(flat)
    assert batch.sparse_features["__BASE__"].keys() == [
        "user",
        "city",
        "level",
        "hist__item",
        "hist__tags",
        "words",
    ]
    assert batch.sparse_features["__NEG__"].keys() == ["tags"]
    assert batch.dense_features["__BASE__"].keys() == ["age"]
    assert batch.dense_features["__NEG__"].keys() == ["emb"]
    assert batch.sequence_mulval_lengths["__BASE__"].keys() == ["hist__tags"]
    assert list(batch.sequence_dense_features) == ["hist__time"]
    assert list(batch.labels) == ["click"] and list(batch.jagged_labels) == ["watch"]
    assert _lists(batch.to_dict()) == _lists(flat)


def test_a_multi_value_sequence_counts_the_ids_of_a_row_over_its_steps():
    parser = _parser(_CONFIG)
    batch = parser.to_batch(parser.parse(_columns(sep="\003", encoded=True)))
    assert batch.sparse_features["__BASE__"]["hist__tags"].lengths().tolist() == [2, 0, 3]


def test_unweighted_ids_weigh_one_beside_weighted_ones():
    parser = _parser(_CONFIG + _WEIGHTED, "fg_mode: FG_NORMAL")
    columns = {**_columns(), "kv": pa.array(["1:0.5|2:2", "", "3:0.25"])}
    sparse = parser.to_batch(parser.parse(columns)).sparse_features["__BASE__"]
    assert sparse["kv"].weights().tolist() == [0.5, 2.0, 0.25]
    assert sparse["user"].weights().tolist() == [1.0, 1.0]


def test_no_rows_make_an_empty_batch():
    parser = _parser(_CONFIG, labels=["click", "watch"], sample_weights=["w"])
    columns = {name: column.slice(0, 0) for name, column in _columns().items()}
    batch = parser.to_batch(parser.parse(columns))
    assert batch.sparse_features["__BASE__"].values().tolist() == []
    assert batch.dense_features["__BASE__"].values().shape == (0, 4)
    assert batch.labels["click"].shape == (0,)


def test_columns_that_no_feature_reads_are_left_alone():
    parser = _parser(_CONFIG, "fg_mode: FG_NORMAL")
    columns = {**_columns(), "odd": pa.array([{"a": 1}] * 3)}
    assert "odd" not in parser.parse(columns)


def test_a_parser_travels_to_a_worker_process():
    parser = pickle.loads(pickle.dumps(_parser(_CONFIG, "fg_mode: FG_NORMAL", labels=["click"])))
    assert parser.parse(_columns())["click"].tolist() == [1, 0, 1]


def test_torch_fx_traces_the_way_to_a_batch():
    parser = _parser(_CONFIG + _WEIGHTED, "fg_mode: FG_NORMAL")

    class Model(torch.nn.Module):
        def forward(self, data: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            batch = parser.to_batch(data)
            sparse, dense = batch.sparse_features["__BASE__"], batch.dense_features["__BASE__"]
            return {"ids": sparse.values(), "lengths": sparse.lengths(), "dense": dense.values()}

    traced = torch.fx.symbolic_trace(Model())
    for repeat in (1, 4):
        kv = pa.array(["1:0.5|2:2", "", "3:0.25"] * repeat)
        data = parser.parse({**_columns(repeat), "kv": kv})
        expected, found = Model()(data), traced(data)
        assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("column", "dtype", "values"),
    [
        (pa.array([1, 0], pa.int8()), torch.int64, [1, 0]),
        (pa.array([True, False]), torch.int64, [1, 0]),
        (pa.array([0.5, 1], pa.float64()), torch.float32, [0.5, 1]),
        (pa.array(["0.5", "1"]), torch.float32, [0.5, 1]),
        (pa.array([1, 0]).dictionary_encode(), torch.int64, [1, 0]),
    ],
)
def test_the_type_of_a_label_is_that_of_its_column(column, dtype, values):
    label = DataParser([], labels=["y"]).parse({"y": column})["y"]
    assert label.dtype == dtype and label.tolist() == values


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (pa.array([1, None]), "row 8 (label): a label is missing"),
        (pa.array([1.0, float("nan")]), "row 8 (label): a label is missing"),
        (pa.array(["1", "yes"]), "row 8 (label): 'yes' is not a number"),
        (pa.array(["1", ""]), "row 8 (label): a label is missing"),
        (pa.array(["1", "nan"]), "row 8 (label): 'nan' is not a number"),
        (pa.array([[1], [2, None]]), "row 8 (label): a label is missing"),
        (pa.array([1.0, float("-inf")]), "row 8 (label): -inf is not a finite number"),
    ],
)
def test_a_label_that_is_no_number_is_named_with_file_and_row(column, words):
    with pytest.raises(DataError) as caught:
        DataParser([], labels=["y"]).parse({"y": column}, source="a.parquet", first_row=7)
    assert str(caught.value).startswith("a.parquet: column 'y', ") and words in str(caught.value)
    assert caught.value.row == 1


def test_a_sample_weight_that_is_missing_is_named():
    with pytest.raises(DataError, match=r"column 'w', row 0 \(sample weight\): a sample weight is missing"):
        DataParser([], sample_weights=["w"]).parse({"w": pa.array([None, 1.0])})


def test_a_missing_column_names_its_feature_and_the_nearest_column():
    columns = _columns()
    columns["usr"] = columns.pop("user")
    with pytest.raises(DataError, match=r"no column 'user' \(feature 'user'\).*Did you mean 'usr'\?"):
        _parser(_CONFIG).parse(columns)


def test_members_of_a_sequence_with_different_steps_are_both_named():
    columns = {**_columns(), "hist__time": pa.array(["10;20", "", "30;40"])}
    with pytest.raises(DataError) as caught:
        _parser(_CONFIG, "fg_mode: FG_NORMAL").parse(columns, source="a.csv", first_row=10)
    text = str(caught.value)
    assert "a.csv: row 12: features 'hist__item' and 'hist__time' of sequence 'hist'" in text
    assert "1 and 2 steps" in text


def _calls(parser, columns):
    count = 0

    def profile(frame, event, arg):
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(profile)
    try:
        parser.to_batch(parser.parse(columns))
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("as_dictionary", [False, True])
@pytest.mark.parametrize("mode", ["FG_NONE", "FG_NORMAL"])
def test_python_does_no_work_per_row(mode, as_dictionary):
    encoded = mode == "FG_NONE"
    parser = _parser(_CONFIG + _WEIGHTED, f"fg_mode: {mode}", labels=["click", "rating", "watch"], sample_weights=["w"])
    sep = "\003" if encoded else "|"

    def columns(repeat):
        found = {**_columns(repeat, sep, encoded), "kv": pa.array([f"1:0.5{sep}2:2", "", "3:0.25"] * repeat)}
        if as_dictionary:
            found = {n: c.dictionary_encode() if pa.types.is_string(c.type) else c for n, c in found.items()}
        return found

    parser.parse(columns(1))
    small, large = _calls(parser, columns(20)), _calls(parser, columns(200))
    assert large <= 1.05 * small


def test_ids_stay_with_their_rows_when_rows_are_shuffled():
    parser = _parser(_CONFIG, "fg_mode: FG_NORMAL")
    columns = _columns(5)
    order = random.Random(0).sample(range(15), 15)
    shuffled = {name: column.take(pa.array(order)) for name, column in columns.items()}
    batch, other = (parser.to_batch(parser.parse(c)) for c in (columns, shuffled))
    features = batch.sparse_features["__BASE__"].to_dict()
    for name, ids in other.sparse_features["__BASE__"].to_dict().items():
        rows = [row.tolist() for row in features[name].to_dense()]
        assert [row.tolist() for row in ids.to_dense()] == [rows[i] for i in order]


def test_a_negative_sample_weight_is_named():
    with pytest.raises(DataError, match=r"column 'w', row 1 \(sample weight\): -0.5 is negative"):
        DataParser([], sample_weights=["w"]).parse({"w": pa.array([1.0, -0.5])})


def test_numbers_beyond_float32_are_named_with_row_and_feature(recwarn):
    with pytest.raises(DataError, match=r"column 'age', row 2 \(feature 'age'\): a value is beyond 3.4e38"):
        _parser(_CONFIG, "fg_mode: FG_NORMAL").parse({**_columns(), "age": pa.array([0.5, 3.4e38, 1e39])})
    with pytest.raises(DataError, match=r"column 'hist__time', row 2 \(feature .*time'\): a value is beyond"):
        _parser(_CONFIG, "fg_mode: FG_NORMAL").parse({**_columns(), "hist__time": pa.array(["10;20", "", "1e300"])})
    with pytest.raises(DataError, match=r"column 'y', row 1 \(label\): 1e\+300 is beyond"):
        DataParser([], labels=["y"]).parse({"y": pa.array([1.0, 1e300])})
    assert not [w for w in recwarn if "overflow" in str(w.message)]
