"""From cells of ids to a feature's ids: defaults filled in, ranges and counts checked."""

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from tzrec_core.features.rows import Cells, Parsed, Place, cut_rows, cut_steps, cut_weighted

if TYPE_CHECKING:
    from tzrec_core.features.feature import BaseFeature


def cut_ids(feature: "BaseFeature", column: pa.Array, sep: str | None, place: Place) -> Cells:
    """Cuts a column of ids as the feature asks for, without its empty values.

    Args:
        sep: separates the ids of a row or a step; None = one id, whatever its text.
    """
    if feature.is_weighted:
        return cut_weighted(column, sep or "", place).without_nulls()
    if feature.sequence_delim is not None:
        return cut_steps(column, feature.sequence_delim, sep, feature.sequence_length, place).without_nulls()
    return cut_rows(column, sep, place).without_nulls()


def finish_ids(
    feature: "BaseFeature",
    cells: Cells,
    place: Place,
    *,
    default: Cells | None = None,
    step_default: int | None = None,
    fill_rows: bool = False,
) -> Parsed:
    """Fills empty cells and checks ids.

    Args:
        cells: int64 ids as numpy array.
        default: one cell of ids, put where a cell is empty; None = it stays empty.
        step_default: in its place where there is none and a step needs exactly one id.
        fill_rows: a sequence without steps gets one step of the default.

    Raises:
        DataError: an id is outside the table, or a row or step has a wrong number of ids.
    """
    if default is None and step_default is not None and feature.is_sequence and feature.value_dim == 1:
        default = Cells(np.array([step_default]), np.ones(1, np.int64))
    if default is not None and len(default.values):
        cells = _fill(_with_steps(cells) if fill_rows else cells, default)
    _check_range(feature, cells, place)
    _check_counts(feature, cells, place)
    if cells.steps is None:
        return Parsed(cells.values, cells.lengths, weights=cells.weights)
    if feature.value_dim == 1:
        return Parsed(cells.values, cells.steps)
    return Parsed(cells.values, cells.steps, key_lengths=cells.lengths)


def _with_steps(cells: Cells) -> Cells:
    """Sequences without a step get an empty one."""
    if cells.steps is None or cells.steps.all():
        return cells
    starts = np.cumsum(cells.steps) - cells.steps
    lengths = np.insert(cells.lengths, starts[cells.steps == 0], 0)
    return replace(cells, lengths=lengths, steps=np.maximum(cells.steps, 1))


def _fill(cells: Cells, default: Cells) -> Cells:
    empty = cells.lengths == 0
    if not empty.any():
        return cells
    width, count = len(default.values), int(empty.sum())
    where = np.repeat((np.cumsum(cells.lengths) - cells.lengths)[empty], width)
    weights = cells.weights
    if weights is not None:
        own = default.weights if default.weights is not None else np.ones(width, np.float32)
        weights = np.insert(weights, where, np.tile(own, count))
    return replace(
        cells,
        values=np.insert(cells.values, where, np.tile(default.values, count)),
        lengths=np.where(empty, width, cells.lengths),
        weights=weights,
    )


def _check_range(feature: "BaseFeature", cells: Cells, place: Place) -> None:
    if feature.has_dynamic_ids:
        return
    outside = (cells.values < 0) | (cells.values >= feature.num_embeddings)
    if outside.any():
        bad = int(np.argmax(outside))
        raise place.error(
            cells.row_of_value(bad),
            f"id {cells.values[bad]} is outside its table's rows, 0 to {feature.num_embeddings - 1}.",
        )


def _check_counts(feature: "BaseFeature", cells: Cells, place: Place) -> None:
    if feature.is_sequence and feature.value_dim == 1:
        if (cells.lengths != 1).any():
            bad = int(np.argmax(cells.lengths != 1))
            advice = "Set a default value, or value_dim: 0 for steps of any number of ids."
            raise place.error(
                cells.row_of_cell(bad),
                f"a step has {cells.lengths[bad]} ids instead of one (value_dim is 1). {advice}",
            )
    elif feature.max_ids and len(cells.lengths) and cells.lengths.max() > feature.max_ids:
        bad = int(np.argmax(cells.lengths > feature.max_ids))
        raise place.error(
            cells.row_of_cell(bad),
            f"there are {cells.lengths[bad]} ids, but value_dim is {feature.max_ids}. Set value_dim: 0.",
        )
