"""From Arrow columns to tensors, and from tensors to a Batch."""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torchrec import JaggedTensor, KeyedJaggedTensor, KeyedTensor

from tzrec_core.data.batch import Batch
from tzrec_core.features import BaseFeature
from tzrec_core.features.rows import Cells, Parsed, Place, cut_rows, is_integer, is_list, to_floats, to_ids


class DataParser:
    """Reads what a model needs from columns, without Python code per row.

    Args:
        features: the features that the model reads, in the order of the batch. Those with `stub_type`, which
            only feed other features, are left out.
        labels: label columns; integers become int64, other numbers float32, lists jagged labels.
        sample_weights: weight columns, float32.

    Attributes:
        input_columns: the columns that `parse` reads, in order, each once.
    """

    def __init__(
        self, features: Sequence[BaseFeature], labels: Sequence[str] = (), sample_weights: Sequence[str] = ()
    ) -> None:
        self.features = [feature for feature in features if not feature.stub_type]
        self.labels = list(labels)
        self.sample_weights = list(sample_weights)
        inputs = [column for feature in self.features for column in feature.inputs]
        self.input_columns = list(dict.fromkeys([*inputs, *self.labels, *self.sample_weights]))

    def readers_of(self, column: str) -> list[str]:
        """Who reads a column, such as `feature 'age'`, for messages."""
        readers = [f"feature {feature.name!r}" for feature in self.features if column in feature.inputs]
        readers += ["data_config.label_fields"] if column in self.labels else []
        return readers + (["data_config.sample_weight_fields"] if column in self.sample_weights else [])

    def parse(
        self,
        columns: pa.RecordBatch | pa.Table | Mapping[str, pa.Array],
        *,
        source: str = "",
        first_row: int | None = 0,
    ) -> dict[str, Tensor]:
        """Parses rows into flat tensors, which travel between processes well.

        Args:
            columns: at least `input_columns`.
            source: the file, for messages.
            first_row: index in the file of the first row, for messages; None = messages name no row, and the
                caller adds it from the error's `row`, which counts from the first row of `columns`.

        Returns:
            Tensors named `<feature>.<part>`. Dense: `values` (B, value_dim). Ids: `values` (N,),
            `lengths` (B,) and, when weighted, `weights` (N,). Multi-value sequence: `values` (N,),
            `key_lengths` (steps,), `seq_lengths` (B,). Dense sequence: `values` (steps, value_dim),
            `lengths` (B,). Labels and sample weights: (B,) under their names; jagged labels as
            `<label>.values`, `<label>.lengths`.

        Raises:
            DataError: names file, column, row and feature of the first value that cannot be used.
        """
        if not isinstance(columns, Mapping):
            columns = dict(zip(columns.schema.names, columns.columns))
        flat: dict[str, Tensor] = {}
        first_in_sequence: dict[str, tuple[BaseFeature, Parsed]] = {}
        for feature in self.features:
            with np.errstate(over="ignore"):
                parsed = feature.parse(columns, source=source, first_row=first_row)
            _check_range(feature, parsed, source, first_row)
            if feature.sequence_name is not None:
                first = first_in_sequence.setdefault(feature.sequence_name, (feature, parsed))
                _check_steps(first, (feature, parsed), Place("", "", source, first_row))
            flat.update(_feature_tensors(feature, parsed))
        for name in self.labels:
            flat.update(_label_tensors(name, columns, Place(name, "label", source, first_row)))
        for name in self.sample_weights:
            place = Place(name, "sample weight", source, first_row)
            cells = cut_rows(place.fetch(columns), None, place)
            weights = _float32(_filled(cells, place), cells, place)
            if (weights < 0).any():
                bad = int(np.argmax(weights < 0))
                raise place.error(cells.row_of_value(bad), f"{weights[bad]:g} is negative. Use 0 to leave a row out.")
            flat[name] = _tensor(weights)
        return flat

    def to_batch(self, data: Mapping[str, Tensor]) -> Batch:
        """Arranges flat tensors, named as `parse` names them, as a model reads them.

        Without labels it is made of plain tensor operations, so that torch.fx can trace it.
        """
        labels, jagged_labels = {}, {}
        for name in self.labels:
            if f"{name}.values" in data:
                jagged_labels[name] = JaggedTensor(data[f"{name}.values"], lengths=data[f"{name}.lengths"])
            else:
                labels[name] = data[name]
        dense, sparse, mulval = {}, {}, {}
        for group in dict.fromkeys(feature.data_group for feature in self.features):
            features = [feature for feature in self.features if feature.data_group == group]
            rows = [f for f in features if not f.is_sparse and not f.is_sequence]
            ids = [f for f in features if f.is_sparse]
            steps = [f for f in ids if f.is_multi_value_sequence]
            if rows:
                dense[group] = _dense(rows, data)
            if ids:
                sparse[group] = _sparse(ids, data)
            if steps:
                mulval[group] = _keyed([f.name for f in steps], data, ".key_lengths", ".seq_lengths")
        sequences = [f for f in self.features if not f.is_sparse and f.is_sequence]
        return Batch(
            dense_features=dense,
            sparse_features=sparse,
            sequence_mulval_lengths=mulval,
            sequence_dense_features={
                f.name: JaggedTensor(data[f"{f.name}.values"], lengths=data[f"{f.name}.lengths"]) for f in sequences
            },
            labels=labels,
            jagged_labels=jagged_labels,
            sample_weights={name: data[name] for name in self.sample_weights},
        )


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))


def _feature_tensors(feature: BaseFeature, parsed: Parsed) -> dict[str, Tensor]:
    names = (
        ".values",
        ".seq_lengths" if parsed.key_lengths is not None else ".lengths",
        ".key_lengths",
        ".weights",
    )
    arrays = (parsed.values, parsed.lengths, parsed.key_lengths, parsed.weights)
    return {feature.name + name: _tensor(array) for name, array in zip(names, arrays) if array is not None}


def _check_range(feature: BaseFeature, parsed: Parsed, source: str, first_row: int | None) -> None:
    """Numbers that float64 holds, but not float32, which models compute with."""
    if feature.is_sparse or not np.isinf(parsed.values).any():
        return
    bad = int(np.argmax(np.isinf(parsed.values.reshape(len(parsed.values), -1)).any(axis=1)))
    row = bad if parsed.lengths is None else int(np.searchsorted(np.cumsum(parsed.lengths), bad, side="right"))
    place = Place(", ".join(feature.inputs), f"feature {feature.name!r}", source, first_row)
    raise place.error(row, "a value is beyond 3.4e38, the largest float32. Scale the column, or set a normalizer.")


def _float32(values: np.ndarray, cells: Cells, place: Place) -> np.ndarray:
    with np.errstate(over="ignore"):
        numbers = values.astype(np.float32)
    if np.isinf(numbers).any():
        bad = int(np.argmax(np.isinf(numbers)))
        raise place.error(cells.row_of_value(bad), f"{values[bad]:g} is beyond 3.4e38, the largest float32.")
    return numbers


def _check_steps(first: tuple[BaseFeature, Parsed], other: tuple[BaseFeature, Parsed], place: Place) -> None:
    steps, other_steps = first[1].lengths, other[1].lengths
    assert steps is not None and other_steps is not None
    if (steps != other_steps).any():
        row = int(np.argmax(steps != other_steps))
        raise place.error(
            row,
            f"features {first[0].name!r} and {other[0].name!r} of sequence {first[0].sequence_name!r} "
            f"have {steps[row]} and {other_steps[row]} steps.",
        )


def _label_tensors(name: str, columns: Mapping[str, pa.Array], place: Place) -> dict[str, Tensor]:
    column = place.fetch(columns)
    cells = cut_rows(column, None, place)
    integers = is_integer(cells.values.type)
    values = _filled(cells, place, integers=integers)
    values = values if integers else _float32(values, cells, place)
    if is_list(column.type):
        return {f"{name}.values": _tensor(values), f"{name}.lengths": _tensor(cells.lengths)}
    return {name: _tensor(values)}


def _filled(cells: Cells, place: Place, *, integers: bool = False) -> np.ndarray:
    """The values, every one of them a number."""
    if cells.values.null_count:
        bad = int(np.argmax(cells.values.is_null().to_numpy(zero_copy_only=False)))
        raise place.error(cells.row_of_value(bad), f"a {place.reader} is missing (null, empty or NaN).")
    values = to_ids(cells, place) if integers else to_floats(cells, place)
    if not integers and np.isnan(values).any():
        bad = int(np.argmax(np.isnan(values)))
        raise place.error(cells.row_of_value(bad), f"{cells.values[bad].as_py()!r} is not a number.")
    return values


def _dense(features: list[BaseFeature], data: Mapping[str, Tensor]) -> KeyedTensor:
    return KeyedTensor(
        keys=[f.name for f in features],
        length_per_key=[f.value_dim for f in features],
        values=torch.cat([data[f"{f.name}.values"] for f in features], dim=1),
    )


def _keyed(names: list[str], data: Mapping[str, Tensor], values: str, lengths: str) -> KeyedJaggedTensor:
    return KeyedJaggedTensor(
        keys=names,
        values=torch.cat([data[name + values] for name in names]),
        lengths=torch.cat([data[name + lengths] for name in names]),
    )


def _sparse(features: list[BaseFeature], data: Mapping[str, Tensor]) -> KeyedJaggedTensor:
    weights = None
    if any(f.is_weighted for f in features):
        weights = torch.cat([_weights(f, data) for f in features])
    return KeyedJaggedTensor(
        keys=[f.name for f in features],
        values=torch.cat([data[f"{f.name}.values"] for f in features]),
        lengths=torch.cat([_ids_per_row(f, data) for f in features]),
        weights=weights,
    )


def _weights(feature: BaseFeature, data: Mapping[str, Tensor]) -> Tensor:
    if feature.is_weighted:
        return data[f"{feature.name}.weights"]
    return torch.ones_like(data[f"{feature.name}.values"], dtype=torch.float32)


def _ids_per_row(feature: BaseFeature, data: Mapping[str, Tensor]) -> Tensor:
    if not feature.is_multi_value_sequence:
        return data[f"{feature.name}.lengths"]
    key_lengths, seq_lengths = data[f"{feature.name}.key_lengths"], data[f"{feature.name}.seq_lengths"]
    totals = torch.cat([key_lengths.new_zeros(1), key_lengths.cumsum(0)])
    ends = seq_lengths.cumsum(0)
    return totals[ends] - totals[ends - seq_lengths]
