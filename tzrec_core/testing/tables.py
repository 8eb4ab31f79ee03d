"""Example tables: rows that a config reads, with labels that can be learnt from them."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tzrec_core.config import spec_of
from tzrec_core.errors import ConfigError
from tzrec_core.features import BaseFeature, create_features
from tzrec_core.plugins import LossSpec, Output, Task
from tzrec_core.protos import data_pb2
from tzrec_core.testing.layout import task_of, towers

_MAX_DISTINCT = 20  # of ids and words in a column: each comes often enough to be learnt
_NUM_PAIRS = 64  # different pairs of a user and an item: as many rows one after the other have no item twice
_NO_PAIR = -1
_MAX_STEPS = 5
_NULL_SHARE = 0.05


def write_example_tables(config: Any, folder: str | Path, *, num_rows: int = 512, seed: int = 0) -> dict[str, Path]:
    """Write the Parquet tables that a config trains and evaluates on.

    Every column that a feature reads is there, encoded for FG_NONE and raw for FG_NORMAL, with nulls and empty rows
    among its values. Labels follow from the columns, up to some noise; in a matching model's rows, the item from the
    user.

    Args:
        config: an EasyRecConfig; its input paths are taken relative to `folder`.
        folder: where the tables go.
        num_rows: rows of each table; > 0.
        seed: equal seeds give equal tables.

    Returns:
        the files, by the config's fields `train_input_path` and `eval_input_path`.

    Raises:
        ConfigError: the config does not read one Parquet file for each, or its features are wrong.
    """
    written = {}
    for part, field in enumerate(("train_input_path", "eval_input_path")):
        path = _file(config, field, Path(folder))
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(make_rows(config, num_rows, seed=seed, part=part), path)
        written[field] = path
    return written


@dataclass(frozen=True)
class _Style:
    """What kind of values rows have; see `make_rows`."""

    has_gaps: bool
    is_unseen: bool
    are_pairs: bool


def make_rows(
    config: Any, num_rows: int = 16, *, seed: int = 0, part: int = 0, gaps: bool = True, unseen: bool = False
) -> pa.Table:
    """Draw rows that a config can train on: the columns of its features, labels and sample weights.

    The labels of several tasks fit one another: outside of the space of a task its label is 0. The rows of a matching
    model are positive pairs, with the label 1; every column follows from the pair, and 64 rows have no pair twice.

    Args:
        config: an EasyRecConfig.
        num_rows: > 0.
        seed: equal seeds give equal rows; it also fixes what each value does to the label.
        part: different parts are different rows in which values do the same to the label, such as those for training
            and those for evaluation.
        gaps: have nulls, rows without ids and sequences without steps among the values.
        unseen: have ids that rows are not made of otherwise: other words, and the last rows of a table.

    Raises:
        ConfigError: the features are wrong.
    """
    features = create_features(config.feature_configs, config.data_config)
    rng = np.random.default_rng((seed, part))
    return _table(config, features, num_rows, seed, rng, _Style(gaps, unseen, task_of(config) is Task.MATCH))


def _file(config: Any, field: str, folder: Path) -> Path:
    path: str = getattr(config, field)
    if config.data_config.dataset_type != data_pb2.ParquetDataset or not path.endswith(".parquet"):
        raise ConfigError(f"{field} = {path!r}: example tables are Parquet files; name one, such as 'train.parquet'")
    if Path(path).is_absolute() or any(sign in path for sign in "*?[,"):
        raise ConfigError(f"{field} = {path!r}: name one file, relative to the folder of the example")
    return folder / path


def _table(
    config: Any, features: Sequence[BaseFeature], num_rows: int, seed: int, rng: np.random.Generator, style: _Style
) -> pa.Table:
    columns: dict[str, pa.Array] = {}
    score = np.zeros(num_rows)
    pairs = _draw_pairs(num_rows, rng) if style.are_pairs else np.full(num_rows, _NO_PAIR)
    steps: dict[str, np.ndarray] = {}
    for feature in sorted(features, key=_how_strict):
        for name in feature.inputs:
            if name in columns:  # two features of one column
                continue
            if feature.is_sequence:
                longest = min(feature.sequence_length or _MAX_STEPS, _MAX_STEPS)
                drawn = rng.integers(0 if style.has_gaps else 1, longest + 1, num_rows)
                num_steps = steps.setdefault(feature.sequence_name or name, drawn)
                per_step = np.repeat(pairs, num_steps)
                per_step[1::2] = _NO_PAIR  # or a sequence would be one id, many times
                per_row = _draw_cells(feature, per_step, (seed, zlib.crc32(name.encode())), rng, style)
                columns[name] = _sequence_column(feature, per_row, num_steps, rng)
                owner = np.repeat(np.arange(num_rows), num_steps)
                effects = np.bincount(owner, per_row.effects, num_rows) / np.maximum(num_steps, 1)
            else:
                per_row = _draw_cells(feature, pairs, (seed, zlib.crc32(name.encode())), rng, style)
                is_null = rng.random(num_rows) < (_NULL_SHARE if style.has_gaps else 0)
                cells = [None if null else cell for cell, null in zip(per_row.cells, is_null)]
                columns[name] = _column(feature, cells)
                effects = np.where(is_null, 0.0, per_row.effects)
            score += effects
    columns |= _labels(config, score, rng)
    for name in config.data_config.sample_weight_fields:
        columns[name] = pa.array(rng.uniform(0.5, 1.5, num_rows), pa.float32())
    return pa.table({name: columns[name] for name in sorted(columns)})


def _draw_pairs(num_rows: int, rng: np.random.Generator) -> np.ndarray:
    """The number of the pair that each row shows, all once before one comes again."""
    num_rounds = -(-num_rows // _NUM_PAIRS)
    return np.concatenate([rng.permutation(_NUM_PAIRS) for _ in range(num_rounds)])[:num_rows]


def _how_strict(feature: BaseFeature) -> tuple[int, int]:
    """Of several features that read one column, the first by this key decides what stands there."""
    order = ("num_buckets", "vocab_list", "vocab_dict", "vocab_file", "boundaries", "")
    return (order.index(feature.encoding) if feature.encoding in order else len(order), feature.num_embeddings)


@dataclass(frozen=True)
class _Cells:
    """Values of rows or steps, and what each adds to the score of its row."""

    cells: list[list[Any]]
    effects: np.ndarray


def _draw_cells(
    feature: BaseFeature, pairs: np.ndarray, taste_seed: tuple[int, int], rng: np.random.Generator, style: _Style
) -> _Cells:
    """Values for rows or steps.

    Args:
        feature: what reads them.
        pairs: for each row or step the pair that its first value follows from, or _NO_PAIR.
        taste_seed: fixes what values do to the label, and what pairs do to values, equally in every table.
        rng: of the values.
        style: of the values.
    """
    taste, pair_taste = np.random.default_rng(taste_seed), np.random.default_rng((*taste_seed, 1))
    num_cells = len(pairs)
    counts = _num_values(feature, num_cells, rng, style)
    total = int(counts.sum())
    is_paired = (pairs != _NO_PAIR) & (counts > 0)
    paired, pairs = (np.cumsum(counts) - counts)[is_paired], pairs[is_paired]
    if _is_number(feature):
        boundaries = list(feature.setting("boundaries", ())) or [0.0, 1.0]
        low, high = boundaries[0] - 0.5 * (len(boundaries) == 1), boundaries[-1] + 0.5 * (len(boundaries) == 1)
        margin = 0.0 if low == 0 else 0.2 * (high - low)  # numbers stay positive where a logarithm may follow
        drawn = rng.uniform(low - margin, high + margin, total)
        drawn[paired] = pair_taste.uniform(low, high, _NUM_PAIRS)[pairs]
        values: list[Any] = np.round(drawn, 3).tolist()
        effects = taste.choice([-2.0, 2.0]) * (drawn - (low + high) / 2) / (high - low)
    else:
        max_distinct = _NUM_PAIRS if style.are_pairs else _MAX_DISTINCT
        drawn_from = (_unseen if style.is_unseen else _ids_or_words)(feature, max_distinct)
        index = rng.integers(0, len(drawn_from), total)
        index[paired] = pair_taste.permutation(_NUM_PAIRS)[pairs] % len(drawn_from)
        values = [drawn_from[i] for i in index]
        effects = taste.normal(size=len(drawn_from))[index]
    if feature.is_weighted:
        weights = np.round(rng.uniform(0.5, 2.0, total), 2)
        values = [f"{value}:{weight}" for value, weight in zip(values, weights)]
    ends = np.cumsum(counts).tolist()
    cells = [values[end - count : end] for end, count in zip(ends, counts.tolist())]
    owner = np.repeat(np.arange(num_cells), counts)
    return _Cells(cells, np.bincount(owner, effects, num_cells) / np.maximum(counts, 1))


def _is_number(feature: BaseFeature) -> bool:
    return not feature.is_sparse or (feature.encoding == "boundaries" and _is_raw(feature))


def _is_raw(feature: BaseFeature) -> bool:
    return feature.fg_mode == data_pb2.FG_NORMAL


def _is_multi_value(feature: BaseFeature) -> bool:
    """Whether a row, or a step, may hold any number of ids.

    A raw feature that says neither value_dim nor separator most likely holds one id, though it may hold more.
    """
    if _is_number(feature) or feature.value_dim == 1:
        return False
    return not _is_raw(feature) or feature.is_sequence or feature.is_weighted or _says_several(feature)


def _says_several(feature: BaseFeature) -> bool:
    return feature.explicit("value_dim") is not None or feature.explicit("separator") is not None


def _num_values(feature: BaseFeature, num_cells: int, rng: np.random.Generator, style: _Style) -> np.ndarray:
    if _is_number(feature):
        return np.full(num_cells, feature.value_dim)
    if not _is_multi_value(feature):
        return np.ones(num_cells, np.int64)
    # A text cannot tell a row of one empty step from a row without steps.
    fewest = 1 if not style.has_gaps or (feature.is_sequence and _is_raw(feature)) else 0
    return rng.integers(fewest, min(feature.max_ids or 3, 3) + 1, num_cells)


def _ids_or_words(feature: BaseFeature, max_distinct: int) -> list[Any]:
    if not _is_raw(feature) or feature.encoding == "num_buckets":
        return list(range(min(feature.num_embeddings, max_distinct)))
    if feature.words:
        return [*feature.words[:max_distinct], "a word that is in no vocabulary"]
    return [f"{feature.name} {i}" for i in range(max_distinct)]


def _unseen(feature: BaseFeature, max_distinct: int) -> list[Any]:
    if not _is_raw(feature) or feature.encoding == "num_buckets":
        return list(range(max(feature.num_embeddings - max_distinct, 0), feature.num_embeddings))
    return [f"an unseen {feature.name} {i}" for i in range(max_distinct)]


def _column(feature: BaseFeature, cells: list[list[Any] | None]) -> pa.Array:
    """Rows as they are stored: one value, a text of several, or a list."""
    if _is_multi_value(feature) and _is_raw(feature) and not _is_number(feature):
        return pa.array([None if cell is None else _join(feature, cell) for cell in cells], pa.string())
    if _is_multi_value(feature) or (_is_number(feature) and feature.value_dim > 1):
        return pa.array(cells, pa.list_(_value_type(feature)))
    return pa.array([None if cell is None else cell[0] for cell in cells], _value_type(feature))


def _sequence_column(
    feature: BaseFeature, per_step: _Cells, num_steps: np.ndarray, rng: np.random.Generator
) -> pa.Array:
    """Rows of steps: a text when raw, else lists; a row without steps is empty or null."""
    ends = np.cumsum(num_steps).tolist()
    rows: list[Any] = []
    for end, count in zip(ends, num_steps.tolist()):
        row = per_step.cells[end - count : end]
        rows.append(None if not row and rng.random() < 0.5 else row)
    if _is_raw(feature):
        delim = feature.sequence_delim or ""
        texts = [None if row is None else delim.join(_join(feature, step) for step in row) for row in rows]
        return pa.array(texts, pa.string())
    if _is_multi_value(feature) or feature.value_dim > 1:
        return pa.array(rows, pa.list_(pa.list_(_value_type(feature))))
    return pa.array(
        [None if row is None else [step[0] for step in row] for row in rows], pa.list_(_value_type(feature))
    )


def _join(feature: BaseFeature, values: list[Any]) -> str:
    return str(feature.setting("separator", "\x1d")).join(str(value) for value in values)


def _value_type(feature: BaseFeature) -> pa.DataType:
    if feature.is_weighted:
        return pa.string()
    if _is_number(feature):
        return pa.float32()
    return pa.int64() if not _is_raw(feature) or feature.encoding == "num_buckets" else pa.string()


def _labels(config: Any, score: np.ndarray, rng: np.random.Generator) -> dict[str, pa.Array]:
    names, task = list(config.data_config.label_fields), task_of(config)
    if task is Task.MATCH:
        return {name: pa.array(np.ones(len(score), np.int64)) for name in names}
    tasks = towers(config) if task is Task.MULTITASK else []
    labels = {}
    for name in names:
        readers = [tower for tower in tasks if tower.label_name == name] if tasks else [config.model_config]
        labels[name] = _label(readers, score, rng)
    for tower in tasks:
        space = getattr(tower, "task_space_indicator_label", "")
        if space:
            labels[tower.label_name] = np.where(labels[space] > 0, labels[tower.label_name], 0)
    return {name: pa.array(label) for name, label in labels.items()}


def _label(readers: Sequence[Any], score: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Numbers for a loss on numbers, classes for one on classes, else 0 and 1.

    Args:
        readers: the model_config or the towers that hold the losses that read the label.
        score: what the label follows from.
        rng: of the noise.
    """
    noisy = (score - score.mean()) / (score.std() or 1.0) + rng.normal(scale=0.5, size=len(score))
    outputs = {_output(loss) for reader in readers for loss in reader.losses}
    if outputs == {Output.VALUE}:
        return noisy.astype(np.float32)
    num_class = max(reader.num_class for reader in readers) if Output.SOFTMAX in outputs else 2
    rank = noisy.argsort().argsort()
    return rank * num_class // len(rank)


def _output(loss_config: Any) -> Output:
    member = loss_config.WhichOneof("loss")
    return spec_of(LossSpec, member, getattr(loss_config, member))[0].spec.output
