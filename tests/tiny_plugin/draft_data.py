"""A table with a column of every type, for the tests of `tzrec init` and `tzrec validate --data`."""

from datetime import datetime, timedelta
from decimal import Decimal

import numpy as np
import pyarrow as pa


def every_type(num_rows: int = 400, seed: int = 0) -> pa.Table:
    """Rows with labels `click` (0 and 1), `stars` (0 to 3) and `price` (a number), which the columns hint at."""
    rng = np.random.default_rng(seed)
    user, item = rng.integers(1000, 1040, num_rows), rng.integers(0, 30, num_rows)
    score = (user % 5 - 2) + (item % 3 - 1) + rng.normal(size=num_rows)
    steps = rng.integers(0, 6, num_rows)

    def lists(draw, lengths=steps):
        return [[draw() for _ in range(length)] for length in lengths]

    def gaps(values, share=0.1):
        return [None if gap else value for value, gap in zip(values, rng.random(num_rows) < share)]

    tags = np.array(["rock", "jazz", "pop", "folk's"])
    start = datetime(2024, 1, 1)
    return pa.table(
        {
            "user_id": user,
            "item_id": [f"film {i}" for i in item],
            "gender": gaps(rng.choice(["f", "m"], num_rows).tolist()),
            "is_new": pa.array(rng.random(num_rows) < 0.3),
            "age": pa.array(gaps(rng.integers(18, 70, num_rows).tolist()), pa.int32()),
            "income": np.exp(rng.normal(10, 1, num_rows)),
            "ratio": rng.random(num_rows).astype(np.float16),
            "cost": pa.array([Decimal(int(v)) / 100 for v in rng.integers(0, 9999, num_rows)], pa.decimal128(8, 2)),
            "brand": pa.array([f"b{i % 7}" for i in item]).dictionary_encode(),
            "genres": ["|".join(rng.choice(tags, rng.integers(1, 4), replace=False)) for _ in range(num_rows)],
            "topics": pa.array(lists(lambda: str(rng.choice(tags)))),
            "vector": pa.array(rng.normal(100, 30, (num_rows, 4)).tolist(), pa.list_(pa.float32())),
            "fixed": pa.FixedSizeListArray.from_arrays(pa.array(rng.random(num_rows * 2)), 2),
            "likes": pa.array(
                [[(str(tag), 0.5) for tag in tags[: n % 4]] for n in steps], pa.map_(pa.string(), pa.float32())
            ),
            "hist__item_id": pa.array(lists(lambda: f"film {rng.integers(0, 30)}")),
            "hist__dwell": pa.array(lists(lambda: float(rng.exponential())), pa.list_(pa.float64())),
            "nested": pa.array(lists(lambda: [int(rng.integers(5)), 7]), pa.list_(pa.list_(pa.int64()))),
            "bytes": pa.array([f"w{i % 11}".encode() for i in item], pa.binary()),
            "row_id": np.arange(num_rows),
            "token": [f"{rng.integers(1 << 60):x}" for _ in range(num_rows)],
            "float_id": user.astype(np.float64),
            "country": ["nl"] * num_rows,
            "nothing": pa.nulls(num_rows),
            "event_time": 1_700_000_000 + rng.integers(0, 10**7, num_rows),
            "seen_at": [start + timedelta(seconds=int(s)) for s in rng.integers(0, 10**6, num_rows)],
            "point": [{"x": 1, "y": int(i)} for i in item],
            "click": (score > 0).astype(np.int64),
            "twin": np.where(score > 0, "yes", "no"),
            "stars": np.digitize(score, [-1, 0, 1]),
            "price": score.astype(np.float32),
        }
    )  # fmt: skip


LEFT_OUT = {
    "row_id": "400 of 400 values are distinct",
    "token": "400 of 400 values are distinct",
    "float_id": "ids stored as double",
    "country": "the same in every row",
    "nothing": "no row has a value",
    "event_time": "looks like the time of the row",
    "seen_at": "is of type timestamp",
    "point": "is of type struct",
    "twin": "gives the label away (AUC 1.000 by itself)",
    "price": "gives the label away (AUC 0.99",
    "stars": "gives the label away (AUC 1.000 by itself)",
}
