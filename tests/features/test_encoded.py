import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tzrec_core.errors import DataError

_SEP = "\003"


def _parse(make_features, settings_text, column, kind="id_feature", **options):
    size = "num_buckets: 100 embedding_dim: 4" if "id_feature" in kind else ""
    text = f'{kind} {{ feature_name: "f" expression: "user:c" {size} {settings_text} }}'
    (feature,) = make_features(text, options.pop("data_config", ""))
    return feature.parse({"f": column}, **options)


def _rows(parsed):
    values = iter(parsed.values.tolist())
    return [[next(values) for _ in range(n)] for n in parsed.lengths]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([f"1{_SEP}2", None, "", "3"]),
        pa.array([[1, 2], None, [], [3]]),
        pa.array([["1", "2"], None, [], ["3"]]),
        pa.array([[1.0, 2.0], None, [], [3.0, None]]),
    ],
)
def test_ids_come_as_joined_strings_or_lists_and_empty_rows_stay_empty(make_features, column):
    assert _rows(_parse(make_features, "", column)) == [[1, 2], [], [], [3]]


@pytest.mark.parametrize("column", [pa.array([5, None]), pa.array([5.0, float("nan")]), pa.array(["5", ""])])
@pytest.mark.parametrize("value_dim", [0, 1])
def test_single_ids_come_as_numbers_or_strings(make_features, column, value_dim):
    assert _rows(_parse(make_features, f"value_dim: {value_dim}", column)) == [[5], []]


def test_the_separator_is_that_of_the_data_config(make_features):
    found = _parse(make_features, "", pa.array(["1,2"]), data_config='fg_encoded_multival_sep: ","')
    assert _rows(found) == [[1, 2]]


def test_the_encoded_default_fills_empty_rows(make_features):
    column = pa.array(["1", None, "", "2"])
    default = f'fg_encoded_default_value: "7{_SEP}8"'.replace(_SEP, "\\003")
    assert _rows(_parse(make_features, default, column)) == [[1], [7, 8], [7, 8], [2]]


def test_weighted_ids_keep_their_weights_and_defaults_weigh_one(make_features):
    column = pa.array([f"1:0.5{_SEP}2:2", "", "3:0"])
    parsed = _parse(make_features, 'weighted: true fg_encoded_default_value: "9"', column)
    assert _rows(parsed) == [[1, 2], [9], [3]]
    assert parsed.weights.tolist() == [0.5, 2.0, 1.0, 0.0]


def test_a_default_may_have_a_weight(make_features):
    parsed = _parse(make_features, 'weighted: true fg_encoded_default_value: "9:0.25"', pa.array([None], pa.string()))
    assert parsed.values.tolist() == [9] and parsed.weights.tolist() == [0.25]


@pytest.mark.parametrize("bad", [-1, 100])
def test_an_id_outside_the_table_is_named(make_features, bad):
    with pytest.raises(DataError) as caught:
        _parse(make_features, "", pa.array([[1], [], [2, bad]]), source="a.parquet", first_row=40)
    text = str(caught.value)
    assert "a.parquet: column 'f', row 42 (feature 'f')" in text
    assert f"id {bad} is outside its table's rows, 0 to 99" in text


def test_a_table_of_dynamic_ids_takes_any_id(make_features):
    text = 'id_feature { feature_name: "f" expression: "user:c" embedding_dim: 4 zch { zch_size: 5 lfu {} } }'
    (feature,) = make_features(text)
    assert feature.parse({"f": pa.array([10**12])}).values.tolist() == [10**12]


def test_more_ids_than_value_dim_are_an_error(make_features):
    with pytest.raises(DataError, match=r"row 1 .*there are 2 ids, but value_dim is 1"):
        _parse(make_features, "value_dim: 1", pa.array([[1], [1, 2]]))


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["1;2", "", None, "3"]),
        pa.array([[1, 2], [], None, [3]]),
        pa.array([["1", "2"], [], None, ["3"]]),
    ],
)
def test_a_sequence_has_one_id_per_step(make_features, column):
    parsed = _parse(make_features, "", column, "sequence_id_feature")
    assert _rows(parsed) == [[1, 2], [], [], [3]] and parsed.key_lengths is None


@pytest.mark.parametrize(
    "column",
    [
        pa.array([f"1{_SEP}2;;3", "", "4"]),
        pa.array([[[1, 2], [], [3]], None, [[4]]]),
        pa.array([[f"1{_SEP}2", None, "3"], [], ["4"]]),
    ],
)
def test_a_multi_value_sequence_has_any_number_of_ids_per_step(make_features, column):
    parsed = _parse(make_features, "value_dim: 0", column, "sequence_id_feature")
    assert parsed.values.tolist() == [1, 2, 3, 4]
    assert parsed.key_lengths.tolist() == [2, 0, 1, 1]
    assert parsed.lengths.tolist() == [3, 0, 1]


def test_a_sequence_keeps_its_first_steps(make_features):
    parsed = _parse(make_features, "sequence_length: 2", pa.array(["1;2;3", "4"]), "sequence_id_feature")
    assert _rows(parsed) == [[1, 2], [4]]


def test_the_encoded_default_fills_empty_sequences_and_steps(make_features):
    parsed = _parse(make_features, 'fg_encoded_default_value: "9"', pa.array(["1;;2", None]), "sequence_id_feature")
    assert _rows(parsed) == [[1, 9, 2], [9]]


def test_an_empty_step_of_a_single_id_sequence_names_the_way_out(make_features):
    with pytest.raises(DataError, match=r"row 1 .*a step has 0 ids instead of one.*default value.*value_dim: 0"):
        _parse(make_features, "", pa.array(["1", "1;;2"]), "sequence_id_feature")


def test_two_ids_in_a_step_of_a_single_id_sequence_are_an_error(make_features):
    with pytest.raises(DataError, match=r"row 0 .*a step has 2 ids"):
        _parse(make_features, "", pa.array([[[1, 2]]]), "sequence_id_feature")


@pytest.mark.parametrize("column", [pa.array([0.5, None, 2]), pa.array(["0.5", "", "2"]), pa.array([[0.5], [], [2.0]])])
def test_numbers_come_in_any_shape_and_a_missing_one_is_zero(make_features, column):
    parsed = _parse(make_features, "", column, "raw_feature")
    assert parsed.values.tolist() == [[0.5], [0.0], [2.0]] and parsed.lengths is None
    assert parsed.values.dtype.name == "float32"


def test_the_encoded_default_of_numbers_is_one_for_all_or_one_each(make_features):
    column = pa.array([[1.0, None], None])
    one = _parse(make_features, 'value_dim: 2 fg_encoded_default_value: "7"', column, "raw_feature")
    each = _parse(make_features, 'value_dim: 2 fg_encoded_default_value: "7\\0038"', column, "raw_feature")
    assert one.values.tolist() == [[1, 7], [7, 7]]
    assert each.values.tolist() == [[1, 8], [7, 8]]


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (pa.array([[1.0, 2.0], [1.0]]), "row 1 (feature 'f'): there are 1 values, but value_dim is 2"),
        (pa.array([f"1{_SEP}2{_SEP}3"]), "row 0 (feature 'f'): there are 3 values"),
        (pa.array([f"1{_SEP}2", f"1{_SEP}abc"]), "row 1 (feature 'f'): 'abc' is not a number"),
        (pa.array([[1.0, float("inf")]]), "inf is not a finite number"),
    ],
)
def test_a_wrong_row_of_numbers_is_named(make_features, column, words):
    with pytest.raises(DataError) as caught:
        _parse(make_features, "value_dim: 2", column, "raw_feature")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "column",
    [
        pa.array([f"1{_SEP}2;3{_SEP}4", "", f";5{_SEP}6"]),
        pa.array([[[1, 2], [3, 4]], None, [[], [5, 6]]]),
    ],
)
def test_a_sequence_of_numbers_has_value_dim_of_them_per_step(make_features, column):
    parsed = _parse(make_features, "value_dim: 2", column, "sequence_raw_feature")
    assert parsed.values.tolist() == [[1, 2], [3, 4], [0, 0], [5, 6]]
    assert parsed.lengths.tolist() == [2, 0, 2]


def test_the_encoded_default_fills_an_empty_sequence_of_numbers(make_features):
    column = pa.array(["1;2", None, "3"])
    parsed = _parse(make_features, 'fg_encoded_default_value: "9"', column, "sequence_raw_feature")
    assert parsed.values.ravel().tolist() == [1, 2, 9, 3] and parsed.lengths.tolist() == [2, 1, 1]


def test_a_number_with_boundaries_arrives_as_ids(make_features):
    parsed = _parse(make_features, "boundaries: [0.1, 0.2] embedding_dim: 4", pa.array([0, 2]), "raw_feature")
    assert _rows(parsed) == [[0], [2]]


@pytest.mark.parametrize(
    "config",
    [
        'combo_feature { expression: ["user:a", "user:b"] hash_bucket_size: 20',
        'bool_mask_feature { expression: ["user:a", "user:b"] hash_bucket_size: 9',
        'lookup_feature { map: "user:m" key: "item:k" hash_bucket_size: 20',
        'match_feature { nested_map: "user:m" pkey: "item:k" skey: "item:s" num_buckets: 9',
    ],
)
def test_other_types_of_ids_are_read_encoded(make_features, config):
    (feature,) = make_features(f'{config} feature_name: "f" embedding_dim: 4 }}')
    assert _rows(feature.parse({"f": pa.array([[1, 2], []])})) == [[1, 2], []]


@pytest.mark.parametrize(
    "config",
    [
        'lookup_feature { feature_name: "f" map: "user:m" key: "item:k" }',
        'match_feature { feature_name: "f" nested_map: "user:m" pkey: "item:k" skey: "item:s" }',
        'expr_feature { feature_name: "f" expression: "a+b" variables: ["user:a", "item:b"] }',
        'overlap_feature { feature_name: "f" query: "user:q" title: "item:t" method: "query_common_ratio" }',
        'kv_dot_product { feature_name: "f" query: "user:q" document: "item:t" }',
        'combine_feature { feature_name: "f" expression: "user:a" }',
        'custom_feature { feature_name: "f" operator_name: "Op" expression: "user:a" }',
    ],
)
def test_other_types_of_numbers_are_read_encoded(make_features, config):
    (feature,) = make_features(config)
    assert feature.parse({"f": pa.array([1.5, None])}).values.tolist() == [[1.5], [0.0]]


def test_no_rows_are_no_mistake(make_features):
    for kind, settings_text in (
        ("id_feature", ""),
        ("sequence_id_feature", "value_dim: 0"),
        ("raw_feature", "value_dim: 3"),
    ):
        for empty in (pa.array([], pa.string()), pa.array([], pa.list_(pa.int64())), pa.nulls(0)):
            parsed = _parse(make_features, settings_text, empty, kind)
            assert len(parsed.values) == 0


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.none() | st.lists(st.lists(st.integers(0, 99), max_size=3), max_size=4), max_size=6))
def test_strings_and_lists_of_the_same_sequences_read_the_same(make_features, rows):
    texts = [None if row is None else ";".join(_SEP.join(map(str, step)) for step in row) for row in rows]
    rows = [None if text == "" else row for row, text in zip(rows, texts)]  # "" has no steps, [[]] has one
    config = "value_dim: 0 sequence_length: 3"
    by_text = _parse(make_features, config, pa.array(texts, pa.string()), "sequence_id_feature")
    by_list = _parse(make_features, config, pa.array(rows, pa.list_(pa.list_(pa.int64()))), "sequence_id_feature")
    kept = [(row or [])[:3] for row in rows]
    for parsed in (by_text, by_list):
        assert parsed.lengths.tolist() == [len(row) for row in kept]
        assert parsed.key_lengths.tolist() == [len(step) for row in kept for step in row]
        assert parsed.values.tolist() == [value for row in kept for step in row for value in step]
