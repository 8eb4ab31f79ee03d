"""What stands in a table's columns: for `tzrec init`, which writes a config from it, and `tzrec validate --data`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from tzrec_core.data.readers import BaseReader, Shuffle
from tzrec_core.errors import DataError
from tzrec_core.features.rows import Place, cut_rows, is_list, is_text
from tzrec_core.plugins import Output

_SEPARATORS = ("\x1d", "\x03", "|", ";", ",")
_TIME_WORDS = {"time", "timestamp", "ts", "date", "datetime", "day", "dt"}
_TIME_RANGES = (  # 1990 to 2050, in seconds and finer, and as 19900101
    *((6.3e8 * unit, 2.6e9 * unit) for unit in (1, 1e3, 1e6, 1e9)),
    (19900101, 20501231),
)
_LARGEST = float(np.finfo(np.float32).max)
_NUM_BINS = 100
_FEWEST = 5  # rows of each class that a measured AUC rests on


@dataclass(frozen=True)
class Column:
    """A column of a table, cut into values.

    Args:
        name: the column's.
        type: as the reader gives it.
        kind: text, flag, integer or number, that of the single values; empty when features cannot read them.
        problem: why features cannot read it.
        depth: 0 = a value per row, or a text of several; 1 = a list; 2 = a list of lists.
        is_map: rows hold keys with weights; the values are the keys.
        separator: what joins the values of a text; empty = a text is one value.
        lengths: values per row, of lists of lists the inner lists, (rows,) int64.
        values: of all rows together, without what is missing.
        missing: rows without a value (null, an empty text or list, NaN), (rows,) bool.
    """

    name: str
    type: pa.DataType
    kind: str
    problem: str
    depth: int
    is_map: bool
    separator: str
    lengths: np.ndarray
    values: pl.Series
    missing: np.ndarray

    @property
    def null_share(self) -> float:
        """Rows without a value, in [0, 1]."""
        return float(self.missing.mean()) if len(self.missing) else 0.0

    @cached_property
    def num_distinct(self) -> int:
        """Different values."""
        return self.values.n_unique()

    @property
    def is_single(self) -> bool:
        """Whether a row has one value, or none."""
        return not (self.depth or self.separator or self.is_map)

    @property
    def is_constant(self) -> bool:
        """Whether all rows are alike, those without a value included."""
        if self.num_distinct == 1:
            return not self.missing.any() and bool((self.lengths == self.lengths[0]).all())
        return not self.num_distinct

    @property
    def words(self) -> list[str]:
        """The parts of the column's name, in small letters: `userId_2` has user, id and 2."""
        return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", self.name)]

    @property
    def is_time(self) -> bool:
        """Whether it holds points in time as integers, to go by its name and range."""
        if self.kind != "integer" or not self.is_single or not set(self.words) & _TIME_WORDS:
            return False
        low, high = self.values.min(), self.values.max()
        return any(start <= low and high <= end for start, end in _TIME_RANGES)  # type: ignore[operator]

    @property
    def is_unique(self) -> bool:
        """Whether hardly any value comes twice."""
        return len(self.values) >= 20 and self.num_distinct >= 0.95 * len(self.values)

    def summary(self) -> str:
        """In a few words, such as `943 distinct, 0% null, 1..943`."""
        parts = [f"{self.num_distinct:,} distinct", f"{percent(self.null_share)} null"]
        if not len(self.values):
            return parts[1]
        if self.kind in ("integer", "number"):
            low, middle, high = (float(self.values.quantile(share, "nearest") or 0) for share in (0, 0.5, 1))
            parts.append(f"{number(low)}..{number(high)}")
            if high - middle > 20 * (middle - low) and high > 100:
                parts.append(f"skewed: half are at most {number(middle)}")
        common = self.values.value_counts(sort=True)
        if self.num_distinct > 1 and common[0, 1] > len(self.values) / 2:
            shown = str(common[0, 0])
            parts.append(f"{percent(common[0, 1] / len(self.values))} are {shown[:20]!r}")
        if not self.is_single:
            parts.append(f"{self.lengths.min()} to {self.lengths.max()} in a row, {self.lengths.mean():.1f} on average")
        return ", ".join(parts)


def percent(share: float) -> str:
    """A share for people: 0%, <0.1%, 0.3%, 12%, never 100% of what is not all."""
    if share in (0, 1):
        return f"{share:.0%}"
    return "<0.1%" if share < 0.001 else ">99.9%" if share > 0.999 else f"{100 * share:.3g}%"


def number(value: float) -> str:
    """A number of at most six digits, large ones in full where they are whole."""
    return f"{value:.0f}" if value == int(value) and abs(value) < 1e15 else f"{value:.6g}"


def read_sample(reader: BaseReader, num_rows: int) -> pa.Table:
    """At most `num_rows` rows: all of a smaller table, else those of units drawn at random, equal at each call.

    Raises:
        DataError: a file cannot be read, or there are no rows.
    """
    total = reader.num_rows
    if not total:
        raise DataError(f"{reader.name} has no rows")
    shuffle = Shuffle(seed=0, epoch=0, window_rows=num_rows) if total > num_rows else None
    blocks = reader.read_rows(0, min(num_rows, total), shuffle=shuffle)
    return pa.Table.from_batches([block.table for block in blocks], reader.schema)


def inspect_column(name: str, column: pa.ChunkedArray) -> Column:
    """Cut a column into values; whatever its type, it raises nothing."""
    rows, place = column.combine_chunks(), Place(name, "")
    is_map = pa.types.is_map(rows.type)
    depth, inner, steps = 0, rows.type, None
    while is_list(inner):
        depth, inner = depth + 1, inner.value_type
    if is_map:
        rows = rows.cast(pa.list_(pa.struct([("key", inner.key_type), ("value", inner.item_type)])))
        lengths = pc.fill_null(pc.list_value_length(rows), 0)
        keys = pc.struct_field(pc.list_flatten(rows), "key")
        rows = pa.ListArray.from_arrays(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32), keys)
    if depth == 2:
        steps = pc.fill_null(pc.list_value_length(rows), 0).to_numpy(zero_copy_only=False).astype(np.int64)
        rows = pc.list_flatten(rows)
    separator = ""
    try:
        if is_map and is_text(column.type.item_type):
            raise place.column_error("maps to texts. Map to numbers, the weights of the keys.")
        cells = cut_rows(rows, None, place).without_nulls()
        if not depth and not is_map and is_text(cells.values.type):
            separator = _find_separator(pl.Series(cells.values.unique()))
            cells = cut_rows(rows, separator, place).without_nulls() if separator else cells
        values = pl.Series(cells.values)
        if values.dtype.is_decimal():
            values = values.cast(pl.Float64)
        if values.dtype.is_float() and len(values) and values.abs().max() > _LARGEST:  # type: ignore[operator]
            raise place.column_error("holds numbers beyond 3.4e38, the largest float32, or infinite ones. Cap them.")
    except DataError as error:
        problem = str(error).partition(" () ")[2]  # without the column, which the reader of this knows
        nothing = np.zeros(len(column), np.int64)
        return Column(name, column.type, "", problem, depth, is_map, "", nothing, pl.Series([]), nothing == 0)
    lengths = cells.lengths if steps is None else steps
    kind = (
        "text" if values.dtype == pl.String
        else "flag" if values.dtype == pl.Boolean
        else "integer" if values.dtype.is_integer()
        else "number"
    )  # fmt: skip
    return Column(name, column.type, kind, "", depth, is_map, separator, lengths, values, lengths == 0)


def _find_separator(texts: pl.Series) -> str:
    """What joins several values in a text: it stands in many, and the parts come again in other texts."""
    for separator in _SEPARATORS:
        holds = texts.str.contains(separator, literal=True)
        if len(texts) and holds.mean() > 0.2:  # type: ignore[operator]
            parts = texts.str.split(separator).explode()
            if len(parts) >= 3 * parts.n_unique():
                return separator
    return ""


def label_score(column: Column, labels: np.ndarray, output: Output) -> float | None:
    """How well the column alone predicts the label, each value by the rows of one half that hold it.

    Numbers with many values are cut into 100 quantiles; what is missing counts as a value.

    Args:
        column: has one value per row.
        labels: (rows,) finite float64; 0 and 1 (BINARY), classes from 0 on (SOFTMAX), or any numbers (VALUE).
        output: which of these.

    Returns:
        on the other half of the rows: the AUC (BINARY), how much of the way from the commonest class to all right
        (SOFTMAX), or the explained share of the variance (VALUE); 1 = the label itself, and 0.5 or 0 = nothing. None
        when there are too few rows to tell, or columns have lists.
    """
    if not column.is_single or not column.kind:
        return None
    codes, is_known = _codes(column), np.random.default_rng(0).random(len(labels)) < 0.5
    known, held = labels[is_known], labels[~is_known]
    if min(len(known), len(held)) < 2 * _FEWEST:
        return None
    size = int(codes.max()) + 1
    counts = np.bincount(codes[is_known], minlength=size)
    seen = counts[codes[~is_known]] > 0
    if output is Output.SOFTMAX:
        table = np.zeros((size, int(labels.max()) + 1))
        np.add.at(table, (codes[is_known], known.astype(np.int64)), 1)
        commonest = np.bincount(known.astype(np.int64)).argmax()
        guess = np.where(seen, table.argmax(axis=1)[codes[~is_known]], commonest)
        base = float((held == commonest).mean())
        return None if base == 1 else (float((guess == held).mean()) - base) / (1 - base)
    means = np.bincount(codes[is_known], known, size) / np.maximum(counts, 1)
    guess = np.where(seen, means[codes[~is_known]], known.mean())
    if output is Output.BINARY:
        return _auc(guess, held > 0.5)
    return None if not held.std() else 1 - float(((guess - held) ** 2).mean() / held.var())


#: From here on a column gives the label away: no honest feature does so well alone.
GIVES_AWAY = 0.98


def score_name(output: Output) -> str:
    """What `label_score` measures, for messages."""
    return {Output.BINARY: "AUC", Output.SOFTMAX: "purity"}.get(output, "R2")


def _codes(column: Column) -> np.ndarray:
    """The value of each row as a number from 0 on, (rows,) int64; 0 = missing."""
    codes = np.zeros(len(column.missing), np.int64)
    if column.kind in ("integer", "number") and column.num_distinct > _NUM_BINS:
        values = column.values.cast(pl.Float64).to_numpy()
        edges = np.unique(np.quantile(values, np.linspace(0, 1, _NUM_BINS + 1)[1:-1]))
        found = np.searchsorted(edges, values, side="right")
        if column.kind == "integer" and 2 * column.num_distinct < len(values):  # they may be ids
            found = np.unique(values, return_inverse=True)[1]
    else:
        found = column.values.rank("dense").to_numpy() - 1
    codes[~column.missing] = found + 1
    return codes


def _auc(scores: np.ndarray, positive: np.ndarray) -> float | None:
    num_positive, num_negative = int(positive.sum()), int((~positive).sum())
    if min(num_positive, num_negative) < _FEWEST:
        return None
    ranks = pl.Series(scores).rank("average").to_numpy()
    wins = ranks[positive].sum() - num_positive * (num_positive + 1) / 2
    return float(wins / (num_positive * num_negative))


def quantile_boundaries(values: Sequence[float] | np.ndarray | pl.Series, num_bins: int = 10) -> list[float]:
    """Rising bounds between which about equally many of the values lie, of six digits, above the smallest value.

    Args:
        values: finite numbers, at least two of them different.
        num_bins: intervals; fewer come back where many values are equal.
    """
    numbers = np.asarray(values, np.float64)
    shares = [*np.linspace(0, 1, num_bins + 1)[1:-1], 0.95, 0.99]
    for candidates in (np.quantile(numbers, shares), np.unique(numbers)[1:][:num_bins]):
        rounded = np.unique([np.float32(f"{value:.6g}") for value in candidates])
        if len(bounds := rounded[rounded > np.float32(numbers.min())]):
            return [float(f"{value:.6g}") for value in bounds]
    return [float(np.nextafter(np.float32(numbers.min()), np.float32(np.inf)))]
