"""Rows and configs for the tiny model."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

MANIFEST = str(Path(__file__).with_name("tiny.py"))

CONFIG = """
train_input_path: "%(folder)s/train.parquet"
eval_input_path: "%(folder)s/eval.parquet"
model_dir: "%(folder)s/run"
train_config {
  sparse_optimizer { adam_optimizer { lr: 0.02 } }
  dense_optimizer { adam_optimizer { lr: 0.02 } }
  seed: 7
  use_tensorboard: false
}
data_config {
  batch_size: 16
  dataset_type: ParquetDataset
  fg_mode: FG_NORMAL
  label_fields: "click"
  num_workers: 0
}
feature_configs { id_feature { feature_name: "user" expression: "user:user" num_buckets: 20 embedding_dim: 4 } }
feature_configs { id_feature { feature_name: "item" expression: "item:item" num_buckets: 10 embedding_dim: 4 } }
feature_configs { raw_feature { feature_name: "price" expression: "item:price" } }
model_config {
  feature_groups { group_name: "deep" feature_names: ["user", "item", "price"] group_type: DEEP }
  tiny { }
  metrics { auc {} }
  losses { binary_cross_entropy {} }
}
"""


def table(num_rows: int, seed: int) -> pa.Table:
    """Rows whose label follows the user and the item."""
    rng = np.random.default_rng(seed)
    user, item = rng.integers(0, 20, num_rows), rng.integers(0, 10, num_rows)
    price = rng.random(num_rows).astype(np.float32)
    chance = 1 / (1 + np.exp(-3.0 * ((user % 2) * 2 - 1) - 2.0 * ((item % 3) - 1)))
    return pa.table(
        {
            "user": user,
            "item": item,
            "price": price,
            "click": (rng.random(num_rows) < chance).astype(np.int64),
            "weight": rng.random(num_rows).astype(np.float32),
            "row": np.arange(num_rows),
        }
    )


def write_tables(folder: Path, num_train: int = 72, num_eval: int = 40) -> str:
    """Write the tables of `CONFIG` and return its text; 72 rows are five batches, the last one of 8."""
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(table(num_train, 1), folder / "train.parquet", row_group_size=20)
    pq.write_table(table(num_eval, 2), folder / "eval.parquet", row_group_size=16)
    return CONFIG % {"folder": folder}
