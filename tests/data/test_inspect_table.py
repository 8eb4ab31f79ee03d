"""What is seen in a table's columns."""

import numpy as np
import pyarrow as pa
import pytest

from tzrec_core.data.inspect_table import inspect_column, label_score, percent, quantile_boundaries, read_sample
from tzrec_core.data.readers.table import TableReader
from tzrec_core.errors import DataError
from tzrec_core.plugins import Output


def column(values, kind=None, name="x"):
    return inspect_column(name, pa.chunked_array([pa.array(values, kind)]))


@pytest.mark.parametrize(
    ("values", "kind", "seen"),
    [
        ([3, 1, None, 1], pa.int64(), "2 distinct, 25% null, 1..3, 66.7% are '1'"),
        ([0.5, float("nan"), 2.0, 4.0], pa.float32(), "3 distinct, 25% null, 0.5..4"),
        (["a", "", None, "b", "c"], pa.string(), "3 distinct, 40% null"),
        ([[1], [], None, [2, 2]], pa.list_(pa.int8()), "2 distinct, 50% null, 1..2, 66.7% are '2', "
         "0 to 2 in a row, 0.8 on average"),
        ([None, None], pa.null(), "100% null"),
    ],
)  # fmt: skip
def test_a_column_is_summed_up_in_a_few_words(values, kind, seen):
    assert column(values, kind).summary() == seen


def test_skew_is_told():
    assert "skewed: half are at most 5" in column([*range(10), 5000]).summary()
    assert "skewed" not in column(list(range(1000))).summary()


def test_a_separator_is_one_whose_parts_come_again():
    several = ["a|b", "b|c", "c|a", "a", "b|a|c", "c|b"]
    assert column(several).separator == "|"
    assert column([text.replace("|", ",") for text in several]).separator == ","
    titles = [f"Story {number}, The" for number in range(4)] + ["Alone"]
    assert column(titles).separator == ""
    assert column(["2024|1", "x"]).separator == ""


def test_a_column_that_features_cannot_read_says_why():
    seen = column([{"a": 1}], pa.struct([("a", pa.int64())]))
    assert (seen.kind, seen.problem[:15]) == ("", "is of type stru")


def test_a_constant_column_counts_what_is_missing():
    assert column([1, 1]).is_constant
    assert column([None, None], pa.int64()).is_constant
    assert not column([1, None]).is_constant
    assert not column([[1], [1, 1]]).is_constant


def test_the_time_of_a_row_needs_both_name_and_range():
    assert column([1_700_000_000, 1_700_000_001], name="event_time").is_time
    assert column([1_700_000_000_000], name="createdTs").is_time
    assert column([20240131], name="date").is_time
    assert not column([1_700_000_000], name="user_id").is_time
    assert not column([3, 4], name="time_spent").is_time


def test_shares_are_never_rounded_to_all_or_nothing():
    assert [percent(share) for share in (0, 1e-5, 0.0031, 0.5, 0.99999, 1)] == [
        "0%", "<0.1%", "0.31%", "50%", ">99.9%", "100%",
    ]  # fmt: skip


def test_boundaries_rise_and_leave_rows_on_either_side():
    assert quantile_boundaries(np.arange(101), 4) == [25, 50, 75, 95, 99]
    mostly_zero = [0.0] * 99 + [7.0]
    (bound,) = quantile_boundaries(mostly_zero)
    assert 0 < bound <= 7


def test_a_small_table_is_read_whole_and_in_order():
    reader = TableReader(pa.table({"x": list(range(10))}), batch_size=4)
    assert read_sample(reader, 10)["x"].to_pylist() == list(range(10))


def test_a_sample_is_drawn_from_all_units():
    chunks = pa.chunked_array([[unit] * 10 for unit in range(50)])
    reader = TableReader(pa.table({"x": chunks}), batch_size=4)
    sample = read_sample(reader, 100)["x"].to_pylist()
    assert len(sample) == 100
    assert len(set(sample)) == 10
    assert max(sample) > 20
    assert sample == read_sample(reader, 100)["x"].to_pylist()


def test_an_empty_table_is_an_error():
    with pytest.raises(DataError, match="has no rows"):
        read_sample(TableReader(pa.table({"x": pa.array([], pa.int64())}), batch_size=4), 10)


# label_score

RNG = np.random.default_rng(0)
BINARY = RNG.integers(0, 2, 2000).astype(float)


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [
        (BINARY * 7 + 1, 1, 1),
        (np.where(BINARY > 0, "yes", "no"), 1, 1),
        ([None if value else 3 for value in BINARY], 1, 1),
        (np.abs(RNG.normal(size=2000)) * np.where(BINARY > 0, -1, 1), 0.98, 1),
        (BINARY + RNG.normal(size=2000), 0.6, 0.9),
        (RNG.normal(size=2000), 0.4, 0.6),
        (np.arange(2000), 0.4, 0.6),
        ([f"u{number}" for number in range(2000)], 0.5, 0.5),
    ],
)
def test_how_well_a_column_tells_a_label_of_0_and_1_is_an_auc_on_held_out_rows(values, low, high):
    score = label_score(column(values), BINARY, Output.BINARY)
    assert low - 1e-9 <= score <= high + 1e-9


def test_a_value_that_came_once_tells_nothing_of_the_held_out_rows():
    many = [f"u{number % 1000}" for number in range(2000)]
    assert abs(label_score(column(many), BINARY, Output.BINARY) - 0.5) < 0.1


def test_classes_are_scored_from_the_commonest_to_all_right():
    classes = RNG.integers(0, 4, 1000).astype(float)
    assert label_score(column([f"c{value}" for value in classes]), classes, Output.SOFTMAX) == 1
    assert abs(label_score(column(RNG.integers(0, 4, 1000)), classes, Output.SOFTMAX)) < 0.1


def test_numbers_are_scored_by_the_variance_that_is_explained():
    target = RNG.normal(size=2000)
    assert label_score(column(-3 * target), target, Output.VALUE) > 0.98
    assert label_score(column(RNG.normal(size=2000)), target, Output.VALUE) < 0.1


def test_too_few_rows_or_lists_have_no_score():
    assert label_score(column([0, 1, 0, 1]), np.array([0.0, 1, 0, 1]), Output.BINARY) is None
    assert label_score(column(BINARY), np.zeros(2000), Output.BINARY) is None
    assert label_score(column([[1]] * 2000), BINARY, Output.BINARY) is None
