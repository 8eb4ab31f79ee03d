"""`id_feature`: categories, such as a user id or a list of tags."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tzrec_core.features.checks import id_problems
from tzrec_core.features.feature import IdLikeFeature
from tzrec_core.features.hashing import hash_texts
from tzrec_core.features.rows import (
    Cells,
    Parsed,
    Place,
    cut_rows,
    cut_weighted,
    is_text,
    to_ids,
)
from tzrec_core.features.sparse import cut_ids, finish_ids
from tzrec_core.features.vocab import Vocab, build_vocab
from tzrec_core.protos import data_pb2


class IdFeature(IdLikeFeature):
    """Categories of a row, as strings, integers or lists of them.

    In FG_NORMAL `hash_bucket_size` hashes the text (integers as decimal text) with XXH64; `num_buckets`
    takes the text as the id; a vocabulary counts its words from 2, with 0 for `default_value` and 1 for
    unseen words, or, with `default_bucketize_value`, from 0 with that id for unseen and missing ones.
    `default_value` stands in for a missing value; when it is empty, a row without values stays empty.

    In a sequence with one id per step, an empty step is the default value; when that is empty, it is 0 with a
    vocabulary, the hash of the empty text, or, with `num_buckets`, an error.
    """

    supports_fg_normal = True

    @cached_property
    def _vocab(self) -> Vocab:
        ids = [] if self.explicit("vocab_list") else list(self.setting("vocab_dict").values())
        return build_vocab(self.words, ids, self.setting("default_value"), self.explicit("default_bucketize_value"))

    def parse_raw(self, columns: Mapping[str, pa.Array], *, source: str = "", first_row: int | None = 0) -> Parsed:
        """See `BaseFeature.parse`."""
        return self._parse_input(columns, source, first_row, self._parse_column)

    def _parse_column(self, column: pa.Array, place: Place) -> Parsed:
        cells = cut_ids(self, column, self._separator, place)
        cells = replace(cells, values=self._encode(cells, place))
        default, step_default = self._default
        return finish_ids(self, cells, place, default=default, step_default=step_default)

    def _encode(self, cells: Cells, place: Place) -> np.ndarray:
        if self.encoding == "num_buckets":
            return to_ids(cells, place)
        texts = cells.values
        if pa.types.is_boolean(texts.type):
            texts = texts.cast(pa.int8())
        if pa.types.is_integer(texts.type):
            texts = pc.cast(texts, pa.string())
        if not is_text(texts.type):
            raise place.column_error(
                f"holds {texts.type}, but {self.encoding} takes strings or integers. Convert the column."
            )
        if self.encoding == "hash_bucket_size":
            return hash_texts(texts, self.num_embeddings)
        return self._vocab.encode(texts)

    @property
    def _separator(self) -> str | None:
        return self.setting("separator") if self.value_dim != 1 or self.is_weighted else None

    @cached_property
    def _default(self) -> tuple[Cells | None, int | None]:
        """What an empty row or step gets, and what a step that needs an id gets without it."""
        text = self.setting("default_value")
        if text:
            place = Place("", self.at("default_value"))
            cut = cut_weighted if self.is_weighted and ":" in text else cut_rows
            cells = cut(pa.array([text]), self._separator, place)
            return replace(cells, values=self._encode(cells, place)), None
        if self.encoding == "hash_bucket_size":
            return None, int(hash_texts(pa.array([""]), self.num_embeddings)[0])
        if self.encoding == "num_buckets":
            return None, None
        fallback = self.explicit("default_bucketize_value")
        return (None, 0) if fallback is None else (Cells(np.array([fallback]), np.ones(1, np.int64)), None)

    def problems(self) -> list[str]:
        """See `BaseFeature.problems`."""
        found = super().problems()
        if self.fg_mode != data_pb2.FG_NORMAL:
            return found
        separator, text = self.setting("separator"), self.setting("default_value")
        if self.has_dynamic_ids:
            found.append(f"{self.at(self.encoding)} is not supported yet in FG_NORMAL. Set hash_bucket_size.")
        if not separator:
            found.append(f"{self.at('separator')} is empty. Values need one, such as '|'.")
        elif self.encoding == "num_buckets" and text:
            found.extend(id_problems(self, "default_value", text, separator))
        return found
