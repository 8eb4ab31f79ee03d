"""Ids from texts by a list of words."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tzrec_core.errors import ConfigError


@dataclass(frozen=True)
class Vocab:
    """Words and their ids.

    Args:
        words: when one stands there twice, its first place counts.
        ids: one per word, (W,) int64.
        unseen: the id of every other word.
    """

    words: pa.Array
    ids: np.ndarray
    unseen: int

    def encode(self, texts: pa.Array) -> np.ndarray:
        """The id of each text, (N,) int64; a null is an unseen word."""
        index = pc.index_in(texts.cast(pa.string()), value_set=self.words, skip_nulls=True)
        index = pc.fill_null(index, len(self.words)).to_numpy(zero_copy_only=False)
        return np.append(self.ids, self.unseen)[index]


def build_vocab(words: Sequence[str], ids: Sequence[int], default_value: str, fallback: int | None) -> Vocab:
    """The vocabulary of a feature.

    Args:
        ids: one per word, or empty = counted from 2, or from 0 with a fallback.
        default_value: gets id 0, unless it is empty or there is a fallback.
        fallback: the id of unseen words; None = 1.
    """
    first = 2 if fallback is None else 0
    words, ids = list(words), list(ids) or list(range(first, first + len(words)))
    if fallback is None and default_value:
        words, ids = [default_value, *words], [0, *ids]
    return Vocab(pa.array(words, pa.string()), np.array(ids, np.int64), 1 if fallback is None else fallback)


def read_words(where: str, path: str) -> list[str]:
    """The lines of a UTF-8 file, without empty ones.

    Args:
        where: the config field that names the file, for messages.

    Raises:
        ConfigError: the file cannot be read.
    """
    try:
        with open(os.path.expanduser(path), encoding="utf-8") as file:
            return [word for line in file if (word := line.rstrip("\r\n"))]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{where} {path!r} cannot be read: {error}.") from error
