"""Batches for tests of models: example rows, turned into a Batch as training turns them, and rows that lack values."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from tzrec_core.data import Batch, DataParser
from tzrec_core.features import BaseFeature, create_features
from tzrec_core.testing.tables import make_rows


def make_batch(
    config: Any, rows: pa.Table | int = 16, *, seed: int = 0, features: Sequence[BaseFeature] | None = None
) -> Batch:
    """A batch with labels and sample weights that the model of a config can read.

    Args:
        config: an EasyRecConfig.
        rows: a table such as `make_rows` gives, or how many rows to draw.
        seed: of rows that are drawn.
        features: those of the config; None = they are made.

    Raises:
        ConfigError: the features are wrong.
        DataError: a row cannot be read.
    """
    parser = make_parser(config, features)
    table = make_rows(config, rows, seed=seed) if isinstance(rows, int) else rows
    return parser.to_batch(parser.parse(table))


def make_parser(config: Any, features: Sequence[BaseFeature] | None = None) -> DataParser:
    """What reads the rows of a config; arguments as for `make_batch`."""
    if features is None:
        features = create_features(config.feature_configs, config.data_config)
    data_config = config.data_config
    return DataParser(features, list(data_config.label_fields), list(data_config.sample_weight_fields))


def with_nulls(rows: pa.Table, config: Any) -> pa.Table:
    """The rows, with a null in every column of a feature; labels and sample weights stay."""
    for feature in _features(config):
        for name in feature.inputs:
            rows = _replaced(rows, name, None)
    return rows


def with_empty_bags(rows: pa.Table, config: Any) -> pa.Table:
    """The rows, without an id in the id features that are texts or lists and no sequences."""
    for feature in _features(config):
        if feature.is_sparse and not feature.is_sequence:
            rows = _emptied(rows, feature)
    return rows


def with_empty_sequences(rows: pa.Table, config: Any) -> pa.Table:
    """The rows, without a step in their sequences."""
    for feature in _features(config):
        if feature.is_sequence:
            rows = _emptied(rows, feature)
    return rows


def _features(config: Any) -> list[BaseFeature]:
    return create_features(config.feature_configs, config.data_config)


def _emptied(rows: pa.Table, feature: BaseFeature) -> pa.Table:
    for name in feature.inputs:
        kind = rows.schema.field(name).type
        if pa.types.is_string(kind):
            rows = _replaced(rows, name, "")
        elif pa.types.is_list(kind):
            rows = _replaced(rows, name, [])
    return rows


def _replaced(rows: pa.Table, name: str, value: Any) -> pa.Table:
    column = pa.array([value] * rows.num_rows, rows.schema.field(name).type)
    return rows.set_column(rows.column_names.index(name), name, column)
