import pyarrow as pa
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from tzrec_core.errors import DataError

_VOCAB = 'vocab_list: ["a", "b", "c"]'


def _parse(make_features, settings_text, column, kind="id_feature", **options):
    text = f'{kind} {{ feature_name: "f" expression: "user:c" embedding_dim: 4 separator: "|" {settings_text} }}'
    (feature,) = make_features(text, "fg_mode: FG_NORMAL")
    return feature.parse({"c": column}, **options)


def _rows(parsed):
    values = iter(parsed.values.tolist())
    return [[next(values) for _ in range(n)] for n in parsed.lengths]


def _hash(text, buckets=1000):
    return xxhash.xxh64_intdigest(text.encode()) % buckets


def test_a_text_is_hashed_with_xxh64(make_features):
    column = pa.array(["x", "日本|y", None, ""])
    assert _rows(_parse(make_features, "hash_bucket_size: 1000", column)) == [
        [_hash("x")],
        [_hash("日本"), _hash("y")],
        [],
        [],
    ]


@pytest.mark.parametrize("kind", [pa.int8(), pa.int64(), pa.uint32()])
def test_an_integer_is_hashed_as_its_decimal_text(make_features, kind):
    column = pa.array([7, None, 123], kind)
    assert _rows(_parse(make_features, "hash_bucket_size: 1000", column)) == [
        [_hash("7")],
        [],
        [_hash("123")],
    ]
    lists = pa.array([[7, 123]], pa.list_(kind))
    assert _rows(_parse(make_features, "hash_bucket_size: 1000", lists)) == [[_hash("7"), _hash("123")]]


def test_value_dim_1_takes_the_whole_text_as_one_value(make_features):
    parsed = _parse(make_features, "hash_bucket_size: 1000 value_dim: 1", pa.array(["a|b", ""]))
    assert _rows(parsed) == [[_hash("a|b")], []]


def test_num_buckets_takes_the_text_as_the_id(make_features):
    assert _rows(_parse(make_features, "num_buckets: 10", pa.array(["3|4", "", "9"]))) == [[3, 4], [], [9]]
    assert _rows(_parse(make_features, "num_buckets: 10", pa.array([3, None]))) == [[3], []]


@pytest.mark.parametrize("bad", ["10", "-1", "x"])
def test_a_text_that_is_no_bucket_is_named(make_features, bad):
    with pytest.raises(DataError, match=r"x.csv: column 'c', row 6 \(feature 'f'\): .*" + bad):
        _parse(make_features, "num_buckets: 10", pa.array(["1", f"2|{bad}"]), source="x.csv", first_row=5)


def test_a_vocab_list_counts_from_2(make_features):
    assert _rows(_parse(make_features, _VOCAB, pa.array(["a|c", "z", "", "b"]))) == [[2, 4], [1], [], [3]]


def test_a_missing_value_is_the_default_value_and_that_is_id_0(make_features):
    assert _rows(_parse(make_features, f'{_VOCAB} default_value: "none"', pa.array([None, "", "a", "none"]))) == [
        [0],
        [0],
        [2],
        [0],
    ]


def test_a_default_value_may_be_a_word_of_the_list(make_features):
    found = _parse(make_features, f'{_VOCAB} default_value: "b" default_bucketize_value: 2', pa.array([None, "z", "a"]))
    assert _rows(found) == [[1], [2], [0]]


def test_default_bucketize_value_takes_unseen_and_missing_values(make_features):
    assert _rows(_parse(make_features, f"{_VOCAB} default_bucketize_value: 1", pa.array([None, "", "z|a", "c"]))) == [
        [1],
        [1],
        [1, 0],
        [2],
    ]


def test_a_vocab_dict_gives_its_own_ids(make_features):
    config = 'vocab_dict { key: "a" value: 7 } vocab_dict { key: "b" value: 2 }'
    assert _rows(_parse(make_features, config, pa.array(["a|b", "z", None]))) == [[7, 2], [1], []]
    fallback = 'vocab_dict { key: "a" value: 0 } vocab_dict { key: "b" value: 1 } default_bucketize_value: 1'
    assert _rows(_parse(make_features, fallback, pa.array(["a|b", "z", None]))) == [[0, 1], [1], [1]]


def test_a_vocab_file_has_a_word_a_line(make_features, tmp_path):
    (tmp_path / "words").write_text("b\na\n")
    assert _rows(_parse(make_features, f'vocab_file: "{tmp_path}/words"', pa.array(["a", "b", "c"]))) == [
        [3],
        [2],
        [1],
    ]


def test_integers_are_looked_up_as_text(make_features):
    assert _rows(_parse(make_features, 'vocab_list: ["10", "20"]', pa.array([20, 30]))) == [[3], [1]]


@pytest.mark.parametrize("config", ["hash_bucket_size: 10", _VOCAB])
def test_floats_have_no_text(make_features, config):
    with pytest.raises(DataError, match=r"column 'c' \(feature 'f'\) holds double, but .* takes strings or integers"):
        _parse(make_features, config, pa.array([1.0]))


def test_hash_bucket_size_wins_over_num_buckets(make_features):
    assert _rows(_parse(make_features, "hash_bucket_size: 33 num_buckets: 10", pa.array(["x"]))) == [[_hash("x", 33)]]


def test_default_values_are_encoded_like_values(make_features):
    assert _rows(
        _parse(make_features, 'hash_bucket_size: 1000 default_value: "u|v"', pa.array([None]).cast(pa.string()))
    ) == [[_hash("u"), _hash("v")]]
    assert _rows(_parse(make_features, 'num_buckets: 10 default_value: "4"', pa.array([None, 5]))) == [
        [4],
        [5],
    ]


def test_weighted_values_are_keys_and_weights(make_features):
    parsed = _parse(make_features, "hash_bucket_size: 1000 weighted: true", pa.array(["k1:0.5|k2:2", None]))
    assert _rows(parsed) == [[_hash("k1"), _hash("k2")], []] and parsed.weights.tolist() == [0.5, 2.0]


def test_a_weighted_map_column_is_read(make_features):
    column = pa.array([[("a", 0.5)], None], pa.map_(pa.string(), pa.float32()))
    parsed = _parse(make_features, f"{_VOCAB} weighted: true", column)
    assert _rows(parsed) == [[2], []] and parsed.weights.tolist() == [0.5]


def test_a_sequence_has_one_id_per_step(make_features):
    parsed = _parse(make_features, "hash_bucket_size: 1000", pa.array(["a|b;c", "", None]), "sequence_id_feature")
    assert _rows(parsed) == [[_hash("a|b"), _hash("c")], [], []]


def test_a_multi_value_sequence_splits_its_steps(make_features):
    parsed = _parse(
        make_features,
        f"{_VOCAB} value_dim: 0 sequence_length: 2",
        pa.array(["a|b;;c", "c"]),
        "sequence_id_feature",
    )
    assert parsed.values.tolist() == [2, 3, 4]
    assert parsed.key_lengths.tolist() == [2, 0, 1] and parsed.lengths.tolist() == [2, 1]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("hash_bucket_size: 1000", _hash("")),
        (_VOCAB, 0),
        (f"{_VOCAB} default_bucketize_value: 2", 2),
        (f'{_VOCAB} default_value: "a"', 0),
        ('num_buckets: 10 default_value: "6"', 6),
    ],
)
def test_an_empty_step_of_a_sequence_gets_one_id_and_an_empty_row_none(make_features, config, expected):
    column = pa.array([["", None], None, []], pa.list_(pa.string()))
    assert _rows(_parse(make_features, config, column, "sequence_id_feature")) == [
        [expected, expected],
        [],
        [],
    ]


def test_an_empty_step_without_an_id_is_an_error(make_features):
    with pytest.raises(DataError, match=r"row 1 .*Set a default value"):
        _parse(make_features, "num_buckets: 10", pa.array(["1", "1;"]), "sequence_id_feature")


def _slowly(rows, default, vocab, buckets):
    """Row by row, as one would explain it."""
    found = []
    for row in rows:
        values = [v for v in (row.split("|") if isinstance(row, str) else row or []) if v]
        values = values or ([default] if default else [])
        if vocab is None:
            found.append([_hash(v, buckets) for v in values])
        else:
            found.append([0 if v == default else vocab.index(v) + 2 if v in vocab else 1 for v in values])
    return found


_WORDS = st.sampled_from(["a", "b", "c", "dd", "日本", "e e", "0", "-5", ""])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    rows=st.lists(st.none() | st.lists(_WORDS, max_size=4), max_size=8),
    default=st.sampled_from(["", "none", "b"]),
    use_vocab=st.booleans(),
    as_list=st.booleans(),
)
def test_columns_agree_with_a_reading_row_by_row(make_features, rows, default, use_vocab, as_list):
    config = f'{_VOCAB if use_vocab else "hash_bucket_size: 97"} default_value: "{default}"'
    texts = [row if row is None else "|".join(row) for row in rows]
    column = pa.array(rows, pa.list_(pa.string())) if as_list else pa.array(texts, pa.string())
    expected = _slowly(rows if as_list else texts, default, ["a", "b", "c"] if use_vocab else None, 97)
    assert _rows(_parse(make_features, config, column)) == expected
    if not as_list:
        assert _rows(_parse(make_features, config, column.dictionary_encode())) == expected
