"""From cells of numbers to rows of `value_dim` floats."""

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from tzrec_core.features.rows import Cells, Place, cut_rows, cut_steps, to_floats

if TYPE_CHECKING:
    from tzrec_core.features.feature import BaseFeature


def dense_rows(
    feature: "BaseFeature",
    column: pa.Array,
    sep: str,
    default: np.ndarray,
    place: Place,
    *,
    fill_rows: bool = False,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Reads a column of numbers.

    Args:
        column: strings, numbers or lists.
        sep: separates the numbers of a string when value_dim > 1.
        default: (value_dim,), put where a number is missing.
        fill_rows: a sequence without steps gets one step of the default.

    Returns:
        (rows or steps, value_dim) float64, and steps per row (B,) of a sequence.

    Raises:
        DataError: a value is not a finite number, or a row has a wrong number of them.
    """
    split = sep if feature.value_dim > 1 else None
    if feature.sequence_delim is None:
        cells = cut_rows(column, split, place)
    else:
        cells = cut_steps(column, feature.sequence_delim, split, feature.sequence_length, place)
    numbers, steps = _rectangle(cells, to_floats(cells, place), default, place), cells.steps
    if fill_rows and steps is not None and not steps.all():
        starts = np.cumsum(steps) - steps
        numbers = np.insert(numbers, starts[steps == 0], default, axis=0)
        steps = np.maximum(steps, 1)
    return numbers, steps


def _rectangle(cells: Cells, numbers: np.ndarray, default: np.ndarray, place: Place) -> np.ndarray:
    empty, width = cells.lengths == 0, len(default)
    wrong = ~empty & (cells.lengths != width)
    if wrong.any():
        bad = int(np.argmax(wrong))
        raise place.error(cells.row_of_cell(bad), f"there are {cells.lengths[bad]} values, but value_dim is {width}.")
    rows = numbers.reshape(-1, width)
    rows = np.where(np.isnan(rows), default, rows)
    if not empty.any():
        return rows
    filled = np.tile(default, (len(empty), 1))
    filled[~empty] = rows
    return filled


def numbers_in(text: str, sep: str, width: int) -> np.ndarray | None:
    """A default value as (width,) floats: one number for all, or one for each; None when it is neither."""
    try:
        numbers = np.array([float(part) for part in text.split(sep)] if text else [0.0])
    except ValueError:
        return None
    if not np.isfinite(numbers).all():
        return None
    return np.broadcast_to(numbers, (width,)).copy() if len(numbers) in (1, width) else None
