"""A feature type."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tzrec_core.features import BaseFeature, Parsed


class TextLength(BaseFeature):
    """How many characters a text has, as a number; times `operator_params.scale`."""

    supports_fg_normal = True

    def parse_raw(self, columns: Mapping[str, pa.Array], *, source: str = "", first_row: int | None = 0) -> Parsed:
        """Lengths (B, 1) of the texts of the one column."""
        lengths = pc.fill_null(pc.utf8_length(columns[self.inputs[0]]), 0)
        scale = dict(self.setting("operator_params")).get("scale", 1.0)
        return Parsed(lengths.to_numpy(zero_copy_only=False).astype(np.float32)[:, None] * np.float32(scale))
