"""Columns cut into rows, steps and values, and errors that know their place in the file."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tzrec_core.errors import DataError, did_you_mean


@dataclass(frozen=True)
class Place:
    """Where values come from, for messages.

    Args:
        column: the column's name; empty when several are meant.
        reader: what reads it, such as `feature 'age'`.
        source: the file; empty = unknown.
        first_row: index in the file of the column's first row; None = messages name no row.
    """

    column: str
    reader: str
    source: str = ""
    first_row: int | None = 0

    def error(self, row: int, text: str) -> DataError:
        """A DataError about a row, counted from the column's first one; `error.row` is that count."""
        parts = [f"column {self.column!r}"] if self.column else []
        parts += [f"row {self.first_row + row}"] if self.first_row is not None else []
        where = ", ".join(parts) + (f" ({self.reader})" if self.reader else "")
        error = DataError(f"{self._source}{where}: {text}" if where else f"{self._source}{text}")
        error.row = row
        return error

    def column_error(self, text: str) -> DataError:
        """A DataError about the whole column."""
        return DataError(f"{self._source}column {self.column!r} ({self.reader}) {text}")

    @property
    def _source(self) -> str:
        return f"{self.source}: " if self.source else ""

    def fetch(self, columns: Mapping[str, pa.Array]) -> pa.Array:
        """The column as one array.

        Raises:
            DataError: there is no such column.
        """
        if self.column not in columns:
            raise DataError(
                f"{self._source}there is no column {self.column!r} ({self.reader}). "
                f"Columns are: {', '.join(columns)}.{did_you_mean(self.column, columns)}"
            )
        column = columns[self.column]
        return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


@dataclass(frozen=True)
class Parsed:
    """A feature's columns, ready to become tensors.

    Args:
        values: ids (N,) int64; or floats (N, value_dim) float32.
        lengths: ids per row, or steps per row of a sequence, (B,) int64; None = dense.
        key_lengths: ids per step of a multi-value sequence, (sum of lengths,) int64; else None.
        weights: (N,) float32 of a weighted feature; else None.
    """

    values: np.ndarray
    lengths: np.ndarray | None = None
    key_lengths: np.ndarray | None = None
    weights: np.ndarray | None = None

    def take(self, rows: np.ndarray) -> "Parsed":
        """These rows, in this order; a row may come several times."""
        if self.lengths is None:
            return Parsed(self.values[rows])
        lengths = self.lengths[rows]
        key_lengths, counts = None, self.lengths
        if self.key_lengths is not None:
            counts = sum_by_cell(self.key_lengths, self.lengths)
            key_lengths = self.key_lengths[_spans(self.lengths, rows)]
        index = _spans(counts, rows)
        return Parsed(
            self.values[index],
            lengths,
            key_lengths,
            self.weights[index] if self.weights is not None else None,
        )


@dataclass(frozen=True)
class Cells:
    """Flat values, cut into cells: a cell is a row, or a step of a sequence.

    Args:
        values: all values, one after the other; may hold nulls where it is an Arrow array.
        lengths: values per cell.
        steps: cells per row of a sequence; None = each row is one cell.
        weights: one per value, where they are weighted.
    """

    values: pa.Array | np.ndarray
    lengths: np.ndarray
    steps: np.ndarray | None = None
    weights: np.ndarray | None = None

    def row_of_cell(self, cell: int) -> int:
        """The row that a cell stands in."""
        return cell if self.steps is None else _owner(self.steps, cell)

    def row_of_value(self, index: int) -> int:
        """The row that a value stands in."""
        return self.row_of_cell(_owner(self.lengths, index))

    def without_nulls(self) -> "Cells":
        """The cells without their null values, which may leave empty cells."""
        if not self.values.null_count:
            return self
        kept = self.values.is_valid().to_numpy(zero_copy_only=False)
        return replace(
            self,
            values=self.values.drop_null(),
            lengths=sum_by_cell(kept, self.lengths),
            weights=self.weights[kept] if self.weights is not None else None,
        )


def sum_by_cell(counts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Sums `counts`, one per value, over each cell of `lengths` values."""
    totals = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    ends = np.cumsum(lengths)
    return totals[ends] - totals[ends - lengths]


def positions(lengths: np.ndarray) -> np.ndarray:
    """0, 1, 2, ... within each cell of `lengths` values."""
    starts = np.cumsum(lengths) - lengths
    return np.arange(lengths.sum()) - np.repeat(starts, lengths)


def _owner(lengths: np.ndarray, index: int) -> int:
    return int(np.searchsorted(np.cumsum(lengths), index, side="right"))


def _spans(lengths: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Indices of the values of `rows`, one row after the other."""
    starts = np.cumsum(lengths) - lengths
    return np.repeat(starts[rows], lengths[rows]) + positions(lengths[rows])


def by_dictionary(column: pa.Array, parse: Callable[[pa.Array], Parsed]) -> Parsed:
    """Parses a column; of a dictionary-encoded one only the distinct values, where that is less work."""
    if not pa.types.is_dictionary(column.type):
        return parse(column)
    if 2 * len(column.dictionary) > len(column):
        return parse(column.dictionary_decode())
    distinct = pa.concat_arrays([column.dictionary, pa.nulls(1, column.dictionary.type)])
    try:
        parsed = parse(distinct)
    except DataError:  # names the row of the column; and an entry that no row uses is no mistake
        return parse(column.dictionary_decode())
    return parsed.take(pc.fill_null(pc.cast(column.indices, pa.int64()), len(distinct) - 1).to_numpy())


def is_text(kind: pa.DataType) -> bool:
    """Whether values of this type are strings."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def is_integer(kind: pa.DataType) -> bool:
    """Whether values of this type are integers or booleans."""
    return pa.types.is_integer(kind) or pa.types.is_boolean(kind)


def _is_number(kind: pa.DataType) -> bool:
    return (
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_decimal(kind)
    )


def is_list(kind: pa.DataType) -> bool:
    """Whether values of this type are lists."""
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _plain(values: pa.Array, place: Place) -> pa.Array:
    """Binary text, string views and all-null values as strings; an empty string or a NaN is a null.

    Raises:
        DataError: binary values are not UTF-8.
    """
    kind = values.type
    if pa.types.is_dictionary(kind):
        values = values.dictionary_decode()
    elif pa.types.is_string_view(kind) or pa.types.is_binary(kind) or pa.types.is_null(kind):
        values = _as_text(values, pa.string(), place)
    elif pa.types.is_large_binary(kind):
        values = _as_text(values, pa.large_string(), place)
    elif pa.types.is_float16(kind):
        values = values.cast(pa.float32())
    if is_text(values.type):
        return _nulls_where(pc.equal(values, pa.scalar("", values.type)), values)
    if pa.types.is_floating(values.type):
        return _nulls_where(pc.is_nan(values), values)
    return values


def _nulls_where(missing: pa.Array, values: pa.Array) -> pa.Array:
    if not pc.any(missing).as_py():  # most columns: what follows copies them
        return values
    return pc.if_else(missing, pa.scalar(None, values.type), values)


def _as_text(values: pa.Array, kind: pa.DataType, place: Place) -> pa.Array:
    try:
        return values.cast(kind)
    except pa.ArrowInvalid:
        bad = values[_first_bad(values, kind, True)].as_py()
        shown = f"{bad[:40]!r}" + ("..." if len(bad) > 40 else "")
        raise place.column_error(f"holds bytes that are not UTF-8 text: {shown}. Write it as text.") from None


def _explode(lists: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """The values of a list column and how many each row has; a null list has none."""
    lengths = pc.fill_null(pc.cast(pc.list_value_length(lists), pa.int64()), 0)
    return pc.list_flatten(lists), lengths.to_numpy(zero_copy_only=False)


def cut_rows(column: pa.Array, sep: str | None, place: Place) -> Cells:
    """Cuts each row into values.

    Args:
        column: strings, numbers, or lists of them.
        sep: separates the values in a string; None = a string is one value.

    Returns:
        Cells whose values are strings or numbers; null, "" and NaN all are nulls.

    Raises:
        DataError: values of this type cannot be read, or bytes are not UTF-8.
    """
    column = _plain(column, place)
    if is_list(column.type):
        values, lengths = _explode(column)
        values = _plain(values, place)
    elif is_text(column.type) and sep is not None:
        values, lengths = _explode(pc.split_pattern(column, sep))
        values = _plain(values, place)
    else:
        values, lengths = column, np.ones(len(column), np.int64)
    if not is_text(values.type) and not _is_number(values.type):
        raise place.column_error(
            f"is of type {column.type}, which cannot be read. Use numbers, strings or lists of them."
        )
    return Cells(values, lengths)


def cut_steps(column: pa.Array, delim: str, sep: str | None, limit: int, place: Place) -> Cells:
    """Cuts each row into steps and each step into values; keeps the first `limit` steps (0 = all).

    Args:
        column: strings, lists, lists of lists, or numbers (one step each).
        delim: separates the steps of a string.
        sep: separates the values in a step; None = a string is one value.

    Raises:
        DataError: values of this type cannot be read, or bytes are not UTF-8.
    """
    column = _plain(column, place)
    if is_text(column.type):
        column = pc.split_pattern(column, delim)
    if is_list(column.type):
        elements, steps = _explode(column)
    else:
        elements, steps = (
            column.drop_null(),
            column.is_valid().to_numpy(zero_copy_only=False).astype(np.int64),
        )
    if limit and len(steps) and steps.max() > limit:
        elements = elements.filter(pa.array(positions(steps) < limit))
        steps = np.minimum(steps, limit)
    return replace(cut_rows(elements, sep, place), steps=steps)


def cut_weighted(column: pa.Array, sep: str, place: Place) -> Cells:
    """Cuts each row of `key:weight` strings, lists of them, or a map column into weighted keys.

    Raises:
        DataError: a value has no weight, or one that is not a number.
    """
    if pa.types.is_map(column.type):
        struct = pa.struct([("key", column.type.key_type), ("value", column.type.item_type)])
        pairs, lengths = _explode(column.cast(pa.list_(struct)))
        keys, weights = _plain(pc.struct_field(pairs, "key"), place), _plain(pc.struct_field(pairs, "value"), place)
        cells = Cells(keys, lengths)
    else:
        cells = cut_rows(column, sep, place).without_nulls()
        if not is_text(cells.values.type):
            raise place.column_error(
                f"is of type {column.type}, but a weighted feature reads 'key:weight' strings or a map."
            )
        pairs, counts = _explode(pc.split_pattern(cells.values, ":", max_splits=1, reverse=True))
        if (counts != 2).any():
            bad = int(np.argmax(counts != 2))
            raise place.error(
                cells.row_of_value(bad), f"{cells.values[bad].as_py()!r} has no weight. Write 'key:weight'."
            )
        keys, weights = _plain(pairs[0::2], place), _plain(pairs[1::2], place)
        cells = replace(cells, values=keys)
    numbers = to_floats(replace(cells, values=weights), place)
    if np.isnan(numbers).any():
        raise place.error(cells.row_of_value(int(np.argmax(np.isnan(numbers)))), "a weight is missing.")
    return replace(cells, weights=numbers.astype(np.float32))


def to_ids(cells: Cells, place: Place) -> np.ndarray:
    """The values, none of them null, as int64.

    Raises:
        DataError: a value is not an integer.
    """
    return _cast(cells, pa.int64(), "an integer id", place).to_numpy(zero_copy_only=False)


def to_floats(cells: Cells, place: Place) -> np.ndarray:
    """The values as float64; nulls become NaN.

    Raises:
        DataError: a value is not a finite number.
    """
    numbers = _cast(cells, pa.float64(), "a number", place).to_numpy(zero_copy_only=False)
    if np.isinf(numbers).any():
        bad = int(np.argmax(np.isinf(numbers)))
        raise place.error(cells.row_of_value(bad), f"{cells.values[bad].as_py()!r} is not a finite number.")
    return numbers


def _cast(cells: Cells, kind: pa.DataType, what: str, place: Place) -> pa.Array:
    values = cells.values
    safe = pa.types.is_integer(kind)  # 2**53 + 1 as a float is near enough, 1.5 as an id is not
    try:
        return pc.cast(values, kind, safe=safe)
    except pa.ArrowInvalid:
        if is_text(values.type):
            values = pc.utf8_trim_whitespace(values)
    try:
        return pc.cast(values, kind, safe=safe)
    except pa.ArrowInvalid:
        bad = _first_bad(values, kind, safe)
        raise place.error(cells.row_of_value(bad), f"{cells.values[bad].as_py()!r} is not {what}.") from None


def _first_bad(values: pa.Array, kind: pa.DataType, safe: bool) -> int:
    low, high = 0, len(values)
    while high - low > 1:
        middle = (low + high) // 2
        try:
            pc.cast(values.slice(low, middle - low), kind, safe=safe)
            low = middle
        except pa.ArrowInvalid:
            high = middle
    return low
