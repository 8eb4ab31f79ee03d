"""One batch, as models read it."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any

import pyarrow as pa
import torch
from torchrec import JaggedTensor, KeyedJaggedTensor, KeyedTensor
from torchrec.streamable import Pipelineable


@dataclass
class Batch(Pipelineable):
    """What a model reads in one step; every field may be empty.

    B rows. Features live in data groups: `__BASE__` has B rows, `__NEG__` also the sampled ones.

    Args:
        dense_features: by data group; values (B, sum of value_dims), float32.
        sparse_features: by data group; ids int64, `lengths` per row. A multi-value sequence counts a
            row's ids over all its steps. With weights when any feature of the group is weighted; 1.0 for
            those that are not.
        sequence_mulval_lengths: by data group; one key per multi-value sequence: values = ids per step,
            lengths = steps per row.
        sequence_dense_features: by feature; values (sum of steps, value_dim), lengths (B,).
        labels: by name, (B,), int64 or float32.
        jagged_labels: by name, for labels that are lists.
        reserves: columns to write beside the predictions.
        tile_size: how often the user rows repeat in inference; -1 = never.
        sample_weights: by name, (B,), float32.
        additional_infos: what a sampler adds, such as `hard_neg_indices` (n, 2).
    """

    dense_features: dict[str, KeyedTensor] = field(default_factory=dict)
    sparse_features: dict[str, KeyedJaggedTensor] = field(default_factory=dict)
    sequence_mulval_lengths: dict[str, KeyedJaggedTensor] = field(default_factory=dict)
    sequence_dense_features: dict[str, JaggedTensor] = field(default_factory=dict)
    labels: dict[str, torch.Tensor] = field(default_factory=dict)
    jagged_labels: dict[str, JaggedTensor] = field(default_factory=dict)
    reserves: pa.RecordBatch | None = None
    tile_size: int = -1
    sample_weights: dict[str, torch.Tensor] = field(default_factory=dict)
    additional_infos: dict[str, torch.Tensor] = field(default_factory=dict)

    # Any: tensors and torchrec's jagged and keyed ones.
    def _tensor_fields(self) -> dict[str, dict[str, Any]]:
        return {f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), dict)}

    def _with_each(self, change: Callable[[Any], Any]) -> "Batch":
        changed = {
            name: {key: change(value) for key, value in group.items()} for name, group in self._tensor_fields().items()
        }
        return replace(self, **changed)

    def to(self, device: torch.device, non_blocking: bool = False) -> "Batch":
        """A batch whose tensors are on `device`."""
        return self._with_each(lambda value: value.to(device, non_blocking=non_blocking))

    def record_stream(self, stream: torch.Stream) -> None:
        """Tells the allocator that `stream` uses the tensors."""
        for group in self._tensor_fields().values():
            for value in group.values():
                value.record_stream(stream)

    def pin_memory(self) -> "Batch":
        """A batch in page-locked memory, for copies to a GPU that overlap with compute."""
        return self._with_each(_pin)

    def to_dict(self) -> dict[str, torch.Tensor]:
        """The batch as flat tensors, under the names that `DataParser.parse` gives.

        Returns:
            `<feature>.values`, `.lengths`, `.weights`, `.key_lengths`, `.seq_lengths`, and labels, sample
            weights and additional infos under their own names (`<label>.values` and `.lengths` for a
            jagged one).
        """
        flat: dict[str, torch.Tensor] = {}
        for keyed in self.dense_features.values():
            flat.update({f"{k}.values": v for k, v in keyed.to_dict().items()})
        mulval = {k: v for group in self.sequence_mulval_lengths.values() for k, v in group.to_dict().items()}
        for group in self.sparse_features.values():
            for name, jagged in group.to_dict().items():
                flat[f"{name}.values"] = jagged.values()
                if name in mulval:
                    flat[f"{name}.key_lengths"] = mulval[name].values()
                    flat[f"{name}.seq_lengths"] = mulval[name].lengths()
                else:
                    flat[f"{name}.lengths"] = jagged.lengths()
                if jagged.weights_or_none() is not None:
                    flat[f"{name}.weights"] = jagged.weights()
        for name, jagged in (*self.sequence_dense_features.items(), *self.jagged_labels.items()):
            flat[f"{name}.values"] = jagged.values()
            flat[f"{name}.lengths"] = jagged.lengths()
        return {**flat, **self.labels, **self.sample_weights, **self.additional_infos}


def _pin(value: Any) -> Any:  # Any: a tensor or one of torchrec's
    if isinstance(value, KeyedTensor):  # this and the next have no pin_memory of their own
        return KeyedTensor(value.keys(), value.length_per_key(), value.values().pin_memory(), value.key_dim())
    if isinstance(value, JaggedTensor):
        return JaggedTensor(value.values().pin_memory(), lengths=value.lengths().pin_memory())
    return value.pin_memory()
