"""FG_NONE: columns that hold ids or numbers already."""

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from tzrec_core.features.dense import dense_rows, numbers_in
from tzrec_core.features.rows import Parsed, Place, cut_rows, cut_weighted, to_ids
from tzrec_core.features.sparse import cut_ids, finish_ids

if TYPE_CHECKING:
    from tzrec_core.features.feature import BaseFeature


def encoded_ids(feature: "BaseFeature", column: pa.Array, place: Place) -> Parsed:
    """Reads a column of ids: integers, strings of them joined by the multi-value separator, or lists.

    An empty row stays empty unless fg_encoded_default_value is set.

    Raises:
        DataError: names the row.
    """
    sep = None if feature.is_sequence and feature.value_dim == 1 else feature.multival_sep
    cells = cut_ids(feature, column, sep, place)
    cells = replace(cells, values=to_ids(cells, place))
    default = None
    if feature.encoded_default is not None:
        cut = cut_weighted if feature.is_weighted and ":" in feature.encoded_default else cut_rows
        default = cut(pa.array([feature.encoded_default]), feature.multival_sep, place)
        default = replace(default, values=to_ids(default.without_nulls(), place))
    return finish_ids(feature, cells, place, default=default, fill_rows=True)


def encoded_numbers(feature: "BaseFeature", column: pa.Array, place: Place) -> Parsed:
    """Reads a column of numbers: floats, strings of them joined by the multi-value separator, or lists.

    A missing number is 0 unless fg_encoded_default_value is set; an empty sequence stays empty.

    Raises:
        DataError: names the row.
    """
    text = feature.encoded_default
    default = numbers_in(text or "", feature.multival_sep, feature.value_dim)
    assert default is not None, "checked by BaseFeature.problems"
    numbers, steps = dense_rows(feature, column, feature.multival_sep, default, place, fill_rows=text is not None)
    return Parsed(numbers.astype(np.float32), steps)
