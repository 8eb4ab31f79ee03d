import numpy as np
import pyarrow as pa
import pytest

from tzrec_core.errors import DataError
from tzrec_core.features.rows import (
    Cells,
    Parsed,
    Place,
    by_dictionary,
    cut_rows,
    cut_steps,
    cut_weighted,
    to_floats,
    to_ids,
)

_PLACE = Place("col", "feature 'f'", "part-0.parquet", 100)


def _rows(cells):
    """The cells as Python lists: [row][value], or [row][step][value]."""
    values = iter(cells.values.to_pylist() if isinstance(cells.values, pa.Array) else cells.values.tolist())
    lists = [[next(values) for _ in range(n)] for n in cells.lengths]
    if cells.steps is None:
        return lists
    steps = iter(lists)
    return [[next(steps) for _ in range(n)] for n in cells.steps]


_TEXTS = ["a|b", None, "", "c", "|d|"]
_CUT = [["a", "b"], [], [], ["c"], ["d"]]


@pytest.mark.parametrize(
    "column",
    [
        pa.array(_TEXTS),
        pa.array(_TEXTS, pa.large_string()),
        pa.array(_TEXTS, pa.string_view()),
        pa.array([t and t.encode() for t in _TEXTS], pa.binary()),
        pa.array([t and t.encode() for t in _TEXTS], pa.large_binary()),
        pa.array(_TEXTS).dictionary_encode(),
        pa.array(["x|y", *_TEXTS, "z"]).slice(1, 5),
    ],
    ids=lambda column: str(column.type),
)
def test_text_of_any_type_is_cut_at_the_separator(column):
    assert _rows(cut_rows(column, "|", _PLACE).without_nulls()) == _CUT


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.int32()), pa.large_list(pa.int64()), pa.list_(pa.float64()), pa.list_(pa.uint8())]
)
def test_lists_of_any_type_are_rows_of_values(kind):
    column = pa.array([[9], [1, 2], None, [], [None, 3]], kind).slice(1)
    assert _rows(cut_rows(column, "|", _PLACE).without_nulls()) == [[1, 2], [], [], [3]]


def test_lists_of_a_fixed_size_are_rows_of_values():
    column = pa.array([[1, 2], None, [3, 4]], pa.list_(pa.int64(), 2))
    assert _rows(cut_rows(column, None, _PLACE)) == [[1, 2], [], [3, 4]]


def test_a_list_of_nothing_but_nulls_is_rows_without_values():
    assert _rows(cut_rows(pa.array([[None], [], None]), "|", _PLACE).without_nulls()) == [[], [], []]
    assert _rows(cut_rows(pa.nulls(2), "|", _PLACE).without_nulls()) == [[], []]


def test_nan_is_a_missing_value():
    assert _rows(cut_rows(pa.array([1.0, float("nan"), None]), None, _PLACE).without_nulls()) == [
        [1.0],
        [],
        [],
    ]


def test_without_a_separator_a_text_is_one_value():
    assert _rows(cut_rows(pa.array(["a|b", ""]), None, _PLACE).without_nulls()) == [["a|b"], []]


_STEPS = [[["1", "2"], ["3"]], [], [], [[], ["4"]]]


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["1|2;3", None, "", ";4"]),
        pa.array([["1|2", "3"], None, [], ["", "4"]]),
        pa.array([[["1", "2"], ["3"]], None, [], [[], ["4"]]]),
        pa.array([[["1", "2"], ["3"]], None, [], [None, ["4", None]]]),
    ],
    ids=["text", "list of text", "list of lists", "list of lists with nulls"],
)
def test_a_sequence_is_cut_into_steps_and_steps_into_values(column):
    assert _rows(cut_steps(column, ";", "|", 0, _PLACE).without_nulls()) == _STEPS


def test_a_column_of_numbers_is_a_sequence_of_one_step():
    assert _rows(cut_steps(pa.array([7, None]), ";", "|", 0, _PLACE)) == [[[7]], []]


def test_the_first_steps_are_kept():
    column = pa.array(["1;2;3;4", "", "5", "6;7;8"])
    assert _rows(cut_steps(column, ";", None, 2, _PLACE)) == [[["1"], ["2"]], [], [["5"]], [["6"], ["7"]]]


def test_weights_stand_behind_the_last_colon():
    cells = cut_weighted(pa.array(["a:0.5|b:c:2", None, ""]), "|", _PLACE)
    assert _rows(cells) == [["a", "b:c"], [], []]
    assert cells.weights.tolist() == [0.5, 2.0]


def test_a_map_holds_weighted_keys():
    column = pa.array([[("a", 1.0), ("b", 0.5)], None, []], pa.map_(pa.string(), pa.float64()))
    cells = cut_weighted(column, "|", _PLACE)
    assert _rows(cells) == [["a", "b"], [], []] and cells.weights.tolist() == [1.0, 0.5]


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (pa.array(["a:1", "b"]), "row 101 (feature 'f'): 'b' has no weight"),
        (pa.array(["a:1|b:x"]), "row 100 (feature 'f'): 'x' is not a number"),
        (pa.array(["a:1", "b:"]), "row 101 (feature 'f'): a weight is missing"),
        (pa.array([1, 2]), "is of type int64, but a weighted feature reads"),
    ],
)
def test_a_value_without_a_weight_is_named(column, words):
    with pytest.raises(DataError) as caught:
        cut_weighted(column, "|", _PLACE)
    assert words in str(caught.value)


def test_a_type_that_holds_no_values_is_named():
    with pytest.raises(DataError, match=r"column 'col' \(feature 'f'\) is of type struct"):
        cut_rows(pa.array([{"a": 1}]), None, _PLACE)


def test_ids_come_from_integers_texts_whole_floats_and_booleans():
    for column in (
        pa.array([1, 0], pa.int8()),
        pa.array(["1", " 0 "]),
        pa.array([1.0, 0.0]),
        pa.array([True, False]),
    ):
        assert to_ids(cut_rows(column, None, _PLACE), _PLACE).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("column", "bad"),
    [
        (pa.array(["1", "2", "x7"]), "row 102 (feature 'f'): 'x7' is not an integer id"),
        (pa.array(["1", "2.0"]), "row 101 (feature 'f'): '2.0'"),
        (pa.array([1.0, 1.5]), "row 101 (feature 'f'): 1.5"),
        (pa.array([2**63], pa.uint64()), "9223372036854775808"),
        (pa.array([["1", "2"], [], ["3", "bad", "4"]]), "row 102 (feature 'f'): 'bad'"),
    ],
)
def test_a_value_that_is_no_id_is_named_with_its_place(column, bad):
    with pytest.raises(DataError) as caught:
        to_ids(cut_rows(column, None, _PLACE), _PLACE)
    assert bad in str(caught.value)
    assert str(caught.value).startswith("part-0.parquet: column 'col', ")


def test_numbers_come_from_any_number_and_large_integers_are_rounded():
    assert to_floats(cut_rows(pa.array([2**53 + 1]), None, _PLACE), _PLACE).tolist() == [float(2**53)]
    assert to_floats(cut_rows(pa.array(["1e3", "-.5"]), None, _PLACE), _PLACE).tolist() == [1000.0, -0.5]


@pytest.mark.parametrize("text", ["abc", "inf", "1,5"])
def test_a_value_that_is_no_number_is_named_with_its_row(text):
    with pytest.raises(DataError, match=f"row 102 .*'{text}' is not a"):
        to_floats(cut_rows(pa.array(["1", "2", text]), None, _PLACE), _PLACE)


def test_an_error_in_a_sequence_counts_rows_not_steps():
    cells = cut_steps(pa.array(["1;2", "", "3;x"]), ";", None, 0, _PLACE)
    with pytest.raises(DataError, match="row 102 ") as caught:
        to_ids(cells, _PLACE)
    assert caught.value.row == 2


def test_the_caller_may_add_the_row_itself():
    place = Place("col", "label", first_row=None)
    error = place.error(7, "is bad")
    assert str(error) == "column 'col' (label): is bad" and error.row == 7


def test_a_missing_column_names_the_nearest_one():
    with pytest.raises(DataError, match=r"no column 'col'.*Did you mean 'cool'\?"):
        _PLACE.fetch({"cool": pa.array([1]), "other": pa.array([2])})


def test_chunks_are_joined():
    assert _PLACE.fetch({"col": pa.chunked_array([[1], [2]])}).to_pylist() == [1, 2]


def test_taking_rows_takes_their_steps_values_and_weights():
    cells = cut_steps(pa.array(["1|2;3", "", "4"]), ";", "|", 0, _PLACE)
    parsed = Parsed(to_ids(cells, _PLACE), cells.steps, cells.lengths, np.arange(4.0))
    taken = parsed.take(np.array([2, 0, 1, 0]))
    assert taken.lengths.tolist() == [1, 2, 0, 2]
    assert taken.key_lengths.tolist() == [1, 2, 1, 2, 1]
    assert taken.values.tolist() == [4, 1, 2, 3, 1, 2, 3]
    assert taken.weights.tolist() == [3, 0, 1, 2, 0, 1, 2]


def _parse(column):
    cells = cut_rows(column, "|", _PLACE).without_nulls()
    return Parsed(to_ids(cells, _PLACE), cells.lengths)


def test_a_dictionary_column_is_read_as_its_plain_text():
    column = pa.array(["1|2", None, "3", "1|2", "", "3", "1|2"])
    read, plain = by_dictionary(column.dictionary_encode(), _parse), _parse(column)
    assert read.values.tolist() == plain.values.tolist() and read.lengths.tolist() == plain.lengths.tolist()


def test_a_bad_dictionary_entry_is_an_error_only_where_a_row_uses_it():
    column = pa.array(["x", "1", "1", "1", "1"]).dictionary_encode()
    assert by_dictionary(column.slice(1), _parse).values.tolist() == [1, 1, 1, 1]
    with pytest.raises(DataError, match="row 100 "):
        by_dictionary(column, _parse)


def test_rows_of_values_are_found_across_empty_cells():
    cells = Cells(np.arange(3), np.array([0, 2, 0, 1]), np.array([1, 0, 3]))
    assert [cells.row_of_value(i) for i in range(3)] == [2, 2, 2]
    assert [cells.row_of_cell(i) for i in range(4)] == [0, 2, 2, 2]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_bytes_that_are_no_text_name_their_column(kind):
    for column in (pa.array([b"a", b"\xff\xfe"], kind), pa.array([[b"a"], [b"\xff\xfe"]], pa.list_(kind))):
        with pytest.raises(
            DataError, match=r"column 'col' \(feature 'f'\) holds bytes that are not UTF-8 text: b'.xff"
        ):
            cut_rows(column, None, _PLACE)
