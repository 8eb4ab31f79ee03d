import math

import numpy as np
import pyarrow as pa
import pytest

from tzrec_core.errors import DataError


def _parse(make_features, settings_text, column, kind="raw_feature"):
    text = f'{kind} {{ feature_name: "f" expression: "user:c" separator: "|" {settings_text} }}'
    (feature,) = make_features(text, "fg_mode: FG_NORMAL")
    return feature.parse({"c": column})


@pytest.mark.parametrize("column", [pa.array([1.5, None]), pa.array(["1.5", ""]), pa.array([[1.5], []])])
def test_a_missing_number_is_the_default_value(make_features, column):
    assert _parse(make_features, "", column).values.tolist() == [[1.5], [0.0]]
    assert _parse(make_features, 'default_value: "-3"', column).values.tolist() == [[1.5], [-3.0]]


@pytest.mark.parametrize("column", [pa.array(["1|2", None, "|4"]), pa.array([[1, 2], [], [None, 4]])])
def test_value_dim_numbers_are_separated_or_listed(make_features, column):
    parsed = _parse(make_features, 'value_dim: 2 default_value: "7|8"', column)
    assert parsed.values.tolist() == [[1, 2], [7, 8], [7, 4]]


def test_a_wrong_number_of_values_is_named(make_features):
    with pytest.raises(DataError, match=r"column 'c', row 1 \(feature 'f'\): there are 3 values, but value_dim is 2"):
        _parse(make_features, "value_dim: 2", pa.array(["1|2", "1|2|3"]))


def test_a_number_on_a_boundary_belongs_to_the_bucket_on_its_right(make_features):
    config = "boundaries: [0.1, 0.2, 0.3] embedding_dim: 4"
    parsed = _parse(make_features, config, pa.array([0.0, 0.1, 0.15, 0.2, 0.3, 9.0, -math.pi, None]))
    assert parsed.values.tolist() == [0, 1, 1, 2, 3, 3, 0, 0]
    assert parsed.lengths.tolist() == [1] * 8


def test_each_of_several_numbers_gets_a_bucket(make_features):
    parsed = _parse(make_features, "value_dim: 2 boundaries: [1] embedding_dim: 4", pa.array(["0|5", "1|0"]))
    assert parsed.values.tolist() == [0, 1, 1, 0] and parsed.lengths.tolist() == [2, 2]


def test_the_normalizer_comes_before_the_boundaries(make_features):
    config = 'normalizer: "method=minmax,min=0,max=10" boundaries: [0.5] embedding_dim: 4'
    assert _parse(make_features, config, pa.array([4.0, 5.0])).values.tolist() == [0, 1]


def test_the_normalizer_applies_to_the_default_value(make_features):
    config = 'normalizer: "method=zscore,mean=1,standard_deviation=2" default_value: "3"'
    assert _parse(make_features, config, pa.array([5.0, None])).values.tolist() == [[2.0], [1.0]]


def test_numbers_are_float32_of_the_float64_result(make_features):
    numbers = [0.1, 123456.789, 1e-12]
    parsed = _parse(make_features, 'normalizer: "method=log10,threshold=1e-10,default=-10"', pa.array(numbers))
    expected = np.array([[math.log10(0.1)], [math.log10(123456.789)], [-10.0]], np.float32)
    assert parsed.values.dtype == np.float32 and (parsed.values == expected).all()


def test_a_sequence_has_value_dim_numbers_per_step_and_an_empty_one_no_steps(make_features):
    parsed = _parse(
        make_features,
        "value_dim: 2 sequence_length: 2",
        pa.array(["1|2;3|4;5|6", None, ""]),
        "sequence_raw_feature",
    )
    assert parsed.values.tolist() == [[1, 2], [3, 4]] and parsed.lengths.tolist() == [2, 0, 0]


def test_an_empty_step_is_the_default_value(make_features):
    parsed = _parse(make_features, 'default_value: "9"', pa.array(["1;;2", None]), "sequence_raw_feature")
    assert parsed.values.ravel().tolist() == [1, 9, 2] and parsed.lengths.tolist() == [3, 0]


def test_a_sequence_of_buckets_has_one_or_value_dim_ids_per_step(make_features):
    one = _parse(make_features, "boundaries: [1] embedding_dim: 4", pa.array(["0;5", "1"]), "sequence_raw_feature")
    assert one.values.tolist() == [0, 1, 1] and one.lengths.tolist() == [2, 1] and one.key_lengths is None
    two = _parse(
        make_features,
        "value_dim: 2 boundaries: [1] embedding_dim: 4",
        pa.array(["0|5;1|1", ""]),
        "sequence_raw_feature",
    )
    assert two.values.tolist() == [0, 1, 1, 1]
    assert two.key_lengths.tolist() == [2, 2] and two.lengths.tolist() == [2, 0]


def test_a_text_that_is_no_number_is_named(make_features):
    with pytest.raises(DataError, match=r"column 'c', row 1 \(feature 'f'\): 'abc' is not a number"):
        _parse(make_features, "", pa.array(["1", "abc"]))
