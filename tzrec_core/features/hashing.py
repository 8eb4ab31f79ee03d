"""Ids from texts by XXH64 (seed 0) of their UTF-8 bytes, the same in every version and language."""

import numpy as np
import polars as pl
import polars_hash
import pyarrow as pa


def hash_texts(texts: pa.Array, num_buckets: int) -> np.ndarray:
    """XXH64 of each text, unsigned, modulo `num_buckets`.

    Args:
        texts: strings without nulls.
        num_buckets: > 0.

    Returns:
        (N,) int64 in [0, num_buckets).
    """
    column = pl.from_arrow(texts)
    assert isinstance(column, pl.Series)
    hashes = column.rename("text").to_frame().select(polars_hash.col("text").nchash.xxhash64())
    return (hashes.to_series().to_numpy() % np.uint64(num_buckets)).astype(np.int64)
