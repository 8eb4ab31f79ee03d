"""`raw_feature`: numbers, such as a price or a precomputed vector."""

from collections.abc import Mapping
from functools import cached_property

import numpy as np
import pyarrow as pa

from tzrec_core.errors import ConfigError
from tzrec_core.features.checks import not_numbers
from tzrec_core.features.dense import dense_rows, numbers_in
from tzrec_core.features.feature import BaseFeature
from tzrec_core.features.normalize import Normalizer, parse_normalizer
from tzrec_core.features.rows import Parsed, Place
from tzrec_core.protos import data_pb2


class RawFeature(BaseFeature):
    """`value_dim` numbers of a row or a step.

    In FG_NORMAL a missing number is `default_value`; then the normalizer applies; then `boundaries`, if there
    are any, turn each number into the id of its bucket: how many boundaries are <= it, compared in float32.
    """

    supports_fg_normal = True

    @cached_property
    def _normalizer(self) -> Normalizer | None:
        text = self.explicit("normalizer")
        return parse_normalizer(text) if text else None

    def parse_raw(self, columns: Mapping[str, pa.Array], *, source: str = "", first_row: int | None = 0) -> Parsed:
        """See `BaseFeature.parse`."""
        return self._parse_input(columns, source, first_row, self._parse_column)

    def _parse_column(self, column: pa.Array, place: Place) -> Parsed:
        separator = self.setting("separator")
        default = numbers_in(self.setting("default_value"), separator, self.value_dim)
        assert default is not None, "checked by problems"
        numbers, steps = dense_rows(self, column, separator, default, place)
        if self._normalizer is not None:
            numbers = self._normalizer(numbers)
        numbers = numbers.astype(np.float32)
        if not self.is_sparse:
            return Parsed(numbers, steps)
        buckets = np.searchsorted(np.array(self.setting("boundaries"), np.float32), numbers.ravel(), side="right")
        per_cell = np.full(len(numbers), self.value_dim, np.int64)
        if steps is None:
            return Parsed(buckets.astype(np.int64), per_cell)
        return Parsed(buckets.astype(np.int64), steps, key_lengths=per_cell if self.value_dim != 1 else None)

    def problems(self) -> list[str]:
        """See `BaseFeature.problems`."""
        found = super().problems()
        if self.explicit("value_dim") == 0:
            found.append(f"{self.at('value_dim')} is 0. Set how many numbers a row has.")
        try:
            parse_normalizer(self.explicit("normalizer") or "method=log10")
        except ConfigError as error:
            found.append(f"{self.at('normalizer')} {error}")
        if self.fg_mode == data_pb2.FG_NORMAL:
            separator, text = self.setting("separator"), self.setting("default_value")
            if not separator:
                found.append(f"{self.at('separator')} is empty. Values need one, such as '|'.")
            elif numbers_in(text, separator, self.value_dim) is None:
                found.append(not_numbers(self, "default_value", text, separator))
        return found
