"""Criteo-shaped rows, the two nets of the benchmark as configs, and the same nets written by hand on torchrec."""

# B batch, F fields, D embedding dim, P pairs of vectors

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.streamable import Pipelineable

DENSE = [f"I{i}" for i in range(1, 14)]
IDS = [f"C{i}" for i in range(1, 27)]
DIM, WIDE_DIM = 16, 4
MLP_UNITS = (512, 256, 128)
BOTTOM_UNITS = (512, 256, DIM)
ZIPF_EXPONENT = 1.05
SPARSE_LR, DENSE_LR, EPS = 0.02, 0.001, 1e-8
NETS = ("deepfm", "dlrm")
DLRM_PLUGIN = str(Path(__file__).parent / "dlrm_shaped" / "dlrm_shaped.py")


def table(num_rows: int, num_ids: int, seed: int = 1) -> pa.Table:
    """Rows with a label, 13 numbers and 26 ids.

    An id's frequency falls with its rank as rank ** -1.05; ranks are scattered over the table, as hashing scatters
    them. The label follows some of the numbers and ids.

    Args:
        num_rows: rows.
        num_ids: of each of the 26 features: rows of its embedding table.
        seed: of everything.
    """
    rng = np.random.default_rng(seed)
    steps = np.cumsum(np.arange(1, num_ids + 1) ** -ZIPF_EXPONENT)
    dense = np.log1p(rng.lognormal(1.0, 1.5, (len(DENSE), num_rows))).astype(np.float32)
    logit = 0.5 * (dense[0] - dense[1]) - 1.0
    columns: dict[str, np.ndarray] = dict(zip(DENSE, dense))
    for index, name in enumerate(IDS):
        rank = np.searchsorted(steps, rng.random(num_rows) * steps[-1])
        columns[name] = ((rank * 2654435761 + index * 7919) % num_ids).astype(np.int64)
        if index < 4:
            logit = logit + 0.6 * ((rank * 40503 % 1024) / 512 - 1)
    label = (rng.random(num_rows) < 1 / (1 + np.exp(-logit))).astype(np.int64)
    return pa.table({"label": label, **columns})


def config_text(
    net: str, *, num_ids: int, batch_size: int, folder: Path = Path("criteo_shaped"), num_workers: int = 0
) -> str:
    """The config of a net of `NETS`: row-wise Adagrad for the tables, Adam for the rest."""
    dense = " ".join(f'feature_names: "{name}"' for name in DENSE)
    ids = " ".join(f'feature_names: "{name}"' for name in IDS)
    units = " ".join(f"hidden_units: {width}" for width in MLP_UNITS)
    if net == "deepfm":
        model = f"""
  feature_groups {{ group_name: "wide" group_type: WIDE {ids} }}
  feature_groups {{ group_name: "fm" group_type: DEEP {ids} }}
  feature_groups {{ group_name: "deep" group_type: DEEP {dense} {ids} }}
  deepfm {{ wide_embedding_dim: {WIDE_DIM} deep {{ {units} }} }}"""
    else:
        top = " ".join(f"top: {width}" for width in MLP_UNITS)
        bottom = " ".join(f"bottom: {width}" for width in BOTTOM_UNITS)
        model = f"""
  feature_groups {{ group_name: "dense" group_type: DEEP {dense} }}
  feature_groups {{ group_name: "sparse" group_type: DEEP {ids} }}
  dlrm_shaped {{ {bottom} {top} }}"""
    features = [f'raw_feature {{ feature_name: "{name}" expression: "user:{name}" }}' for name in DENSE]
    features += [
        f'id_feature {{ feature_name: "{name}" expression: "user:{name}" num_buckets: {num_ids} embedding_dim: {DIM} }}'
        for name in IDS
    ]
    return f"""
train_input_path: "{folder}/*.parquet"
eval_input_path: ""
model_dir: "{folder}/run"
train_config {{
  sparse_optimizer {{ rowwise_adagrad_optimizer {{ lr: {SPARSE_LR} }} }}
  dense_optimizer {{ adam_optimizer {{ lr: {DENSE_LR} }} }}
  num_epochs: 1
  save_checkpoints_steps: 0
  use_tensorboard: false
  seed: 1
}}
data_config {{
  dataset_type: ParquetDataset
  fg_mode: FG_NORMAL
  label_fields: "label"
  batch_size: {batch_size}
  num_workers: {num_workers}
  drop_remainder: true
}}
{"".join(f"feature_configs {{ {feature} }}{chr(10)}" for feature in features)}
model_config {{{model}
  losses {{ binary_cross_entropy {{}} }}
}}
"""


@dataclass
class HandBatch(Pipelineable):
    """What a hand-written loop reads: numbers (B, 13), ids, labels (B,) float32."""

    dense: Tensor
    sparse: KeyedJaggedTensor
    labels: Tensor

    def to(self, device: torch.device, non_blocking: bool = False) -> "HandBatch":
        return replace(
            self,
            dense=self.dense.to(device, non_blocking=non_blocking),
            sparse=self.sparse.to(device, non_blocking=non_blocking),
            labels=self.labels.to(device, non_blocking=non_blocking),
        )

    def record_stream(self, stream: torch.Stream) -> None:
        self.dense.record_stream(stream)
        self.sparse.record_stream(stream)
        self.labels.record_stream(stream)

    def pin_memory(self) -> "HandBatch":
        return HandBatch(self.dense.pin_memory(), self.sparse.pin_memory(), self.labels.pin_memory())


def hand_batches(rows: pa.Table, batch_size: int) -> list[HandBatch]:
    """The full batches of a table, as tensors."""
    batches = []
    for start in range(0, rows.num_rows - batch_size + 1, batch_size):
        part = rows.slice(start, batch_size)
        numbers = np.stack([part[name].to_numpy() for name in DENSE], axis=1)
        ids = np.concatenate([part[name].to_numpy() for name in IDS])
        sparse = KeyedJaggedTensor.from_lengths_sync(
            keys=IDS,
            values=torch.from_numpy(ids),
            lengths=torch.ones(len(IDS) * batch_size, dtype=torch.int64),
        )
        labels = torch.from_numpy(part["label"].to_numpy().astype(np.float32))
        batches.append(HandBatch(torch.from_numpy(np.ascontiguousarray(numbers)), sparse, labels))
    return batches


def _tables(prefix: str, dim: int, num_ids: int, device: torch.device) -> EmbeddingBagCollection:
    return EmbeddingBagCollection(
        tables=[
            EmbeddingBagConfig(name=f"{prefix}_{name}", embedding_dim=dim, num_embeddings=num_ids, feature_names=[name])
            for name in IDS
        ],
        device=device,
    )


def _mlp(num_in: int, units: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in units:
        layers += [nn.Linear(num_in, width), nn.ReLU()]
        num_in = width
    return nn.Sequential(*layers)


def _loss(logits_B: Tensor, batch: HandBatch) -> tuple[Tensor, Tensor]:
    loss = F.binary_cross_entropy_with_logits(logits_B, batch.labels)
    return loss, loss.detach()


class HandDeepFM(nn.Module):
    """DeepFM on torchrec; `forward(batch) -> (loss, loss without gradient)`."""

    def __init__(self, num_ids: int, device: torch.device) -> None:
        super().__init__()
        self.wide = _tables("wide", WIDE_DIM, num_ids, device)
        self.deep = _tables("deep", DIM, num_ids, device)
        self.mlp = _mlp(len(DENSE) + len(IDS) * DIM, MLP_UNITS)
        self.output = nn.Linear(MLP_UNITS[-1], 1)

    def forward(self, batch: HandBatch) -> tuple[Tensor, Tensor]:
        wide_BW = self.wide(batch.sparse).values()
        deep_BE = self.deep(batch.sparse).values()
        fields_BFD = deep_BE.view(-1, len(IDS), DIM)
        square_of_sum_BD = fields_BFD.sum(dim=1).square()
        sum_of_squares_BD = fields_BFD.square().sum(dim=1)
        fm_B1 = 0.5 * (square_of_sum_BD - sum_of_squares_BD).sum(dim=1, keepdim=True)
        deep_B1 = self.output(self.mlp(torch.cat([batch.dense, deep_BE], dim=1)))
        logits_B = (wide_BW.sum(dim=1, keepdim=True) + fm_B1 + deep_B1).squeeze(1)
        return _loss(logits_B, batch)


class HandDLRM(nn.Module):
    """DLRM on torchrec; `forward(batch) -> (loss, loss without gradient)`."""

    def __init__(self, num_ids: int, device: torch.device) -> None:
        super().__init__()
        self.deep = _tables("deep", DIM, num_ids, device)
        self._num_vectors = len(IDS) + 1
        row_P, column_P = torch.tril_indices(self._num_vectors, self._num_vectors, -1)
        self.register_buffer("pairs_P", row_P * self._num_vectors + column_P, persistent=False)
        self.bottom = _mlp(len(DENSE), BOTTOM_UNITS)
        self.mlp = _mlp(DIM + len(row_P), MLP_UNITS)
        self.output = nn.Linear(MLP_UNITS[-1], 1)

    def forward(self, batch: HandBatch) -> tuple[Tensor, Tensor]:
        bottom_BD = self.bottom(batch.dense)
        vectors_BFD = torch.cat([bottom_BD, self.deep(batch.sparse).values()], dim=1).view(-1, self._num_vectors, DIM)
        products_BFF = torch.bmm(vectors_BFD, vectors_BFD.transpose(1, 2))
        products_BP = products_BFF.flatten(1).index_select(1, self.pairs_P)
        logits_B = self.output(self.mlp(torch.cat([bottom_BD, products_BP], dim=1))).squeeze(1)
        return _loss(logits_B, batch)


HAND_NETS = {"deepfm": HandDeepFM, "dlrm": HandDLRM}


def hand_name(name: str) -> str:
    """The name that a parameter of our model has in the hand-written net.

    Args:
        name: as in the model's own `state_dict`, such as `deep_mlp.mlp.0.perceptron.0.weight`.
    """
    parts = name.split(".")
    if parts[0] == "embedding_group":
        feature, _, wide = parts[-2].partition("_emb")
        group = "wide" if wide else "deep"
        return f"{group}.embedding_bags.{group}_{feature}.weight"
    if parts[1] == "mlp":  # a ReLU stands between two of the hand's layers
        net = "bottom" if parts[0] == "bottom" else "mlp"
        return f"{net}.{2 * int(parts[2])}.{parts[-1]}"
    return f"output.{parts[-1]}"
