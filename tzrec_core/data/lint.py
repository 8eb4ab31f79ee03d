"""What a table says about a config: `tzrec validate --data`."""

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from tzrec_core.config import model_name, model_offer, spec_of
from tzrec_core.config.tasks import towers_in
from tzrec_core.config.walk import messages_in
from tzrec_core.data.draft_features import quoted
from tzrec_core.data.inspect_table import (
    GIVES_AWAY,
    Column,
    inspect_column,
    label_score,
    number,
    percent,
    quantile_boundaries,
    read_sample,
    score_name,
)
from tzrec_core.data.loader import reader_class
from tzrec_core.data.parser import DataParser
from tzrec_core.data.readers.columns import MissingColumnError
from tzrec_core.errors import DataError, nearest
from tzrec_core.features import BaseFeature, create_features
from tzrec_core.plugins import LossSpec, MetricSpec, Output, Task
from tzrec_core.protos.data_pb2 import FG_NONE

MAX_ROWS = 100_000
_NO_BOUND = 2**62
_LARGE = 100.0
_MANY_ROWS = 100_000  # of a table: smaller ones cost nothing
_MANY_NULLS = 0.5
_MANY_UNSEEN = 0.1


class Level(StrEnum):
    """How bad a finding is: with an error, training fails or learns another thing than meant."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True)
class Finding:
    """Something that the data says about the config.

    Args:
        level: error or warning.
        feature: the feature, or the label, weight or sequence; empty = none of them.
        what: for people, with the number.
        number: the number that it rests on; None where there is none.
        fix: a line for the config, or what to do about the data.
    """

    level: Level
    feature: str
    what: str
    number: float | None
    fix: str


@dataclass(frozen=True)
class LintReport:
    """All findings, errors first.

    Args:
        findings: what was found.
        num_rows: rows of the table.
        num_read: rows that were looked at.
    """

    findings: list[Finding]
    num_rows: int
    num_read: int

    @property
    def has_errors(self) -> bool:
        """Whether a finding is an error."""
        return any(finding.level is Level.ERROR for finding in self.findings)


def lint_data(config: Any, data: str = "") -> LintReport:
    """Look at up to 100,000 rows of a table for what makes a config fail or learn badly.

    Args:
        config: a valid EasyRecConfig.
        data: the table; empty = the config's `train_input_path`.

    Raises:
        ConfigError: the features are wrong.
        DataError: a file is missing or damaged.
    """
    data_config = config.data_config
    features = create_features(config.feature_configs, data_config)
    parser = DataParser(features, list(data_config.label_fields), list(data_config.sample_weight_fields))
    path = data or config.train_input_path
    reader = reader_class(data_config)(path, batch_size=data_config.batch_size, data_config=data_config)
    sample = read_sample(reader, MAX_ROWS)
    columns = {name: inspect_column(name, sample.column(name)) for name in sample.column_names}
    lint = _Lint(config, parser, sample, columns, path)
    findings = [*lint.missing_columns(), *lint.labels(), *lint.weights()]
    for feature in parser.features:
        findings += lint.feature(feature)
    findings += [*lint.sequences(), *lint.unused()]
    findings.sort(key=lambda finding: finding.level is Level.WARNING)
    return LintReport(findings, reader.num_rows, sample.num_rows)


class _Lint:
    def __init__(
        self, config: Any, parser: DataParser, sample: pa.Table, columns: dict[str, Column], path: str
    ) -> None:
        self._config, self._parser, self._columns, self._path = config, parser, columns, path
        self._arrays = {name: sample.column(name).combine_chunks() for name in sample.column_names}
        self._failed: set[str] = set()  # features that cannot be parsed
        self._targets = list(self._find_targets())

    def missing_columns(self) -> Iterator[Finding]:
        for name in self._parser.input_columns:
            if name not in self._columns:
                error = MissingColumnError(self._path, name, list(self._columns), self._parser.readers_of(name))
                readers = [feature for feature in self._parser.features if name in feature.inputs]
                self._failed.update(feature.name for feature in readers)
                near = nearest(name, self._columns)
                fix = "add the column, or remove what reads it"
                if near and readers and readers[0].fg_mode != FG_NONE:
                    side = next(side for side, column in readers[0].side_inputs if column == name)
                    fix = f"expression: {quoted(f'{side}:{near}')}"
                yield Finding(Level.ERROR, readers[0].name if readers else name, str(error), None, fix)

    # label and weights

    def labels(self) -> Iterator[Finding]:
        for name in self._config.data_config.label_fields:
            if name in self._columns:
                problem = self._parse_problem(DataParser([], [name]))
                column = self._columns[name]
                if problem:
                    yield Finding(Level.ERROR, name, problem, None, "leave these rows out, or mend the column")
                elif column.num_distinct == 1:
                    value = float(column.values[0])
                    what = f"the label is {number(value)} in all rows that were read: nothing can be learnt"
                    yield Finding(Level.WARNING, name, what, value, "data_config { label_fields: ... }")
        for target in list(self._targets):
            found = list(self._label_range(target))
            yield from found
            if any(finding.level is Level.ERROR for finding in found):
                self._targets.remove(target)  # what gives it away cannot be measured

    def _label_range(self, target: "_Target") -> Iterator[Finding]:
        name, labels, num_class = target.name, target.values, target.num_class
        low, high = float(labels.min()), float(labels.max())
        if target.output is Output.BINARY and (low < 0 or high > 1):
            what = f"labels from {number(low)} to {number(high)}, but the loss reads 0 and 1"
            whole, classes = (labels == np.floor(labels)).all() and low >= 0, int(high) + 1
            fix = "losses { l2_loss {} }"
            if whole and classes <= 100:
                fix = f"num_class: {classes} losses {{ softmax_cross_entropy {{}} }}"
            yield Finding(Level.ERROR, name, what, high if high > 1 else low, fix)
        if target.output is Output.SOFTMAX:
            outside = (labels < 0) | (labels >= num_class) | (labels != np.floor(labels))
            if outside.any():
                what = (
                    f"labels from {number(low)} to {number(high)}, {percent(outside.mean())} of them not among the "
                    f"classes 0 to {num_class - 1}"
                )
                fix = f"num_class: {int(high) + 1}" if low >= 0 else "write classes from 0 on"
                yield Finding(Level.ERROR, name, what, high if high >= num_class else low, fix)
        if target.output is Output.VALUE and (spread := float(labels.std())) > _LARGE:
            what = f"the label has a standard deviation of {number(spread)}: its squared error swamps all else"
            yield Finding(Level.WARNING, name, what, spread, "write its logarithm, or a fraction of it")

    def _find_targets(self) -> Iterator["_Target"]:
        """What the losses of a ranking model, or of its tasks, are about, where all is well with the label."""
        for name, holder in _holders_of_losses(self._config):
            column, output = self._columns.get(name), _output(holder)
            if column is None or output is None or column.missing.any() or not column.is_single:
                continue
            if column.kind not in ("", "text"):
                yield _Target(name, column.values.cast(pl.Float64).to_numpy(), output, holder.num_class)

    def weights(self) -> Iterator[Finding]:
        for name in self._config.data_config.sample_weight_fields:
            if name in self._columns and (problem := self._parse_problem(DataParser([], [], [name]))):
                yield Finding(Level.ERROR, name, problem, None, "write weights of 0 and more")

    def _parse_problem(self, parser: DataParser) -> str:
        try:
            parser.parse(self._arrays, source=self._path, first_row=None)
        except DataError as error:
            return str(error)
        return ""

    # features

    def feature(self, feature: BaseFeature) -> Iterator[Finding]:
        if feature.name in self._failed:
            return
        try:
            parsed = DataParser([feature]).parse(self._arrays, source=self._path, first_row=None)
        except DataError as error:
            self._failed.add(feature.name)
            yield self._outside(feature) or Finding(
                Level.ERROR, feature.name, str(error), None, _type_fix(feature, self._columns[feature.inputs[0]])
            )
            return
        for name in feature.inputs:
            yield from self._column(feature, self._columns[name])
        values = parsed[f"{feature.name}.values"].numpy()
        if feature.is_sparse:
            yield from self._table(feature, values)
        elif feature.dense_emb_config is None and len(values):
            yield from _scale(feature, values)

    def _outside(self, feature: BaseFeature) -> Finding | None:
        """Ids beyond the end of the table, when that is why a feature cannot be parsed."""
        if not feature.is_sparse:
            return None
        try:
            ids = self._unbound_ids(feature)
        except DataError:
            return None
        size, high = feature.num_embeddings, int(ids.max())
        share = percent(float((ids >= size).mean()))
        what = f"ids from {ids.min()} to {high}, {share} of them outside the table's rows, 0 to {size - 1}"
        return Finding(Level.ERROR, feature.name, what, float(high), f"{feature.encoding}: {high + 1}")

    def _unbound_ids(self, feature: BaseFeature) -> np.ndarray:
        """The ids of a feature as though its table had no end: hashed ones without collisions."""
        unbound = copy.copy(feature)
        unbound.__dict__["num_embeddings"] = _NO_BOUND  # where the cached size stands
        parsed = DataParser([unbound]).parse(self._arrays, source=self._path, first_row=None)
        return parsed[f"{feature.name}.values"].numpy()

    def _column(self, feature: BaseFeature, column: Column) -> Iterator[Finding]:
        if not column.kind:
            return
        if column.is_constant:
            what = f"column {column.name!r} is the same in all rows that were read"
            yield Finding(Level.WARNING, feature.name, what, float(column.num_distinct), _removal(feature))
        elif column.null_share >= _MANY_NULLS:
            what = f"column {column.name!r} has no value in {percent(column.null_share)} of the rows"
            yield Finding(Level.WARNING, feature.name, what, column.null_share, _removal(feature))
        for target in self._targets:
            score = label_score(column, target.values, target.output)
            if score is not None and score >= GIVES_AWAY:
                label = "the label" if len(self._targets) == 1 else f"the label {target.name!r}"
                what = (
                    f"column {column.name!r} gives {label} away: {score_name(target.output)} {score:.3f} by itself, "
                    "on rows held out"
                )
                yield Finding(Level.WARNING, feature.name, what, score, _removal(feature))

    def _table(self, feature: BaseFeature, values: np.ndarray) -> Iterator[Finding]:
        size = feature.num_embeddings
        if feature.encoding in ("vocab_list", "vocab_dict", "vocab_file"):
            fallback = feature.explicit("default_bucketize_value")
            unseen = float((values == (1 if fallback is None else fallback)).mean()) if len(values) else 0.0
            if unseen > _MANY_UNSEEN:
                what = f"{percent(unseen)} of the values are not in {feature.encoding} and share one row"
                yield Finding(Level.WARNING, feature.name, what, unseen, f"add them to {feature.encoding}")
        if feature.encoding not in ("hash_bucket_size", "num_buckets") or not len(values):
            return
        distinct = len(np.unique(self._unbound_ids(feature)))
        if feature.encoding == "hash_bucket_size" and size < distinct and feature.fg_mode != FG_NONE:
            alone = (1 - 1 / size) ** (distinct - 1)
            what = (
                f"{distinct:,} distinct values in {size:,} rows: {percent(1 - alone)} of them share a row with another"
            )
            yield Finding(Level.WARNING, feature.name, what, float(distinct), f"hash_bucket_size: {4 * distinct}")
        used = int(values.max()) + 1 if feature.encoding == "num_buckets" else distinct
        if size > max(_MANY_ROWS, 100 * used):
            what = f"{size:,} rows for {distinct:,} distinct values: most of the table is never read"
            enough = used if feature.encoding == "num_buckets" else max(100, 10 * distinct)
            yield Finding(Level.WARNING, feature.name, what, float(distinct), f"{feature.encoding}: {enough}")

    # what belongs to several features, or to none

    def sequences(self) -> Iterator[Finding]:
        for name in dict.fromkeys(f.sequence_name for f in self._parser.features if f.sequence_name):
            members = [f for f in self._parser.features if f.sequence_name == name and f.name not in self._failed]
            if members and (problem := self._parse_problem(DataParser(members))):
                fix = "write as many steps into each column of a sequence"
                yield Finding(Level.ERROR, str(name), problem, None, fix)

    def unused(self) -> Iterator[Finding]:
        read = set(_used_features(self._config))
        for feature in self._parser.features:
            if feature.name not in read and read:
                fix = f"feature_groups {{ ... feature_names: {quoted(feature.name)} }}"
                yield Finding(
                    Level.WARNING, feature.name, "is in no feature group: it is parsed for nothing", None, fix
                )
        unread = [name for name in self._columns if name not in self._parser.input_columns]
        if unread:
            more = f" and {len(unread) - 8} more" if len(unread) > 8 else ""
            what = f"columns that nothing reads: {', '.join(unread[:8])}{more}"
            yield Finding(Level.WARNING, "", what, float(len(unread)), "add features of what the model may know")


@dataclass(frozen=True)
class _Target:
    """A label, (rows,) float64, and what a model of so many classes puts out for it."""

    name: str
    values: np.ndarray
    output: Output
    num_class: int


def _holders_of_losses(config: Any) -> list[tuple[str, Any]]:
    """Label and what has the losses: the model_config of a ranking model, or the towers of one with several tasks."""
    model_config, task = config.model_config, model_offer(config.model_config).spec.task
    if task is Task.RANK:
        return [(name, model_config) for name in config.data_config.label_fields[:1]]
    if task is Task.MULTITASK:
        return [(tower.label_name, tower) for _, tower in towers_in(getattr(model_config, model_name(model_config)))]
    return []


def _output(holder: Any) -> Output | None:
    """What losses make a model put out; None for losses that disagree."""
    members = [(loss, loss.WhichOneof("loss")) for loss in holder.losses]
    outputs = {spec_of(LossSpec, member, getattr(loss, member))[0].spec.output for loss, member in members if member}
    return outputs.pop() if len(outputs) == 1 else None


def _used_features(config: Any) -> Iterator[str]:
    """The features that groups name, and those by which losses and metrics group rows."""
    model_config = config.model_config
    for group in model_config.feature_groups:
        yield from group.feature_names
        for member in group.sequence_groups:
            yield from member.feature_names
    specs: dict[str, tuple[type[LossSpec] | type[MetricSpec], str]] = {
        "tzrec_core.protos.LossConfig": (LossSpec, "loss"),
        "tzrec_core.protos.MetricConfig": (MetricSpec, "metric"),
        "tzrec_core.protos.TrainMetricConfig": (MetricSpec, "metric"),
    }
    for _, message in messages_in(model_config):
        kind, oneof = specs.get(message.DESCRIPTOR.full_name, (None, ""))
        if kind is not None and (member := message.WhichOneof(oneof)):
            offer, settings = spec_of(kind, member, getattr(message, member))
            if offer.spec.grouping_field:
                yield getattr(settings, offer.spec.grouping_field)


def _removal(feature: BaseFeature) -> str:
    return f"remove {re.sub('^sequence_', '', feature.kind)} {feature.name!r}, also from feature_groups"


def _type_fix(feature: BaseFeature, column: Column) -> str:
    """What to write instead for a column whose values the feature cannot take."""
    if feature.is_sparse and feature.fg_mode != FG_NONE and column.kind in ("text", "flag", "integer"):
        return f"hash_bucket_size: {max(100, 10 * column.num_distinct)}"
    if column.kind == "text":
        head = f"feature_name: {quoted(feature.name)} expression: {quoted(f'user:{column.name}')}"
        return f"id_feature {{ {head} hash_bucket_size: {max(100, 10 * column.num_distinct)} embedding_dim: 16 }}"
    lengths = set(column.lengths[~column.missing].tolist())
    if column.kind and len(lengths) == 1 and not feature.is_sparse:
        return f"value_dim: {lengths.pop()}"
    return "mend the column"


def _scale(feature: BaseFeature, values: np.ndarray) -> Iterator[Finding]:
    """A number that enters the model as it is, and dwarfs the others."""
    numbers = values.ravel().astype(np.float64)
    large = float(np.quantile(np.abs(numbers), 0.99))
    if large <= _LARGE:
        return
    what = f"numbers of up to {number(large)} (99th percentile) enter the model as they are"
    if feature.explicit("normalizer"):
        what = f"numbers of up to {number(large)} (99th percentile) enter the model, after the normalizer"
    mean, spread = numbers.mean(), numbers.std()
    if feature.value_dim == 1 and spread and not feature.explicit("normalizer"):
        bounds = ", ".join(map(number, quantile_boundaries(numbers)))
        fix = f"boundaries: [{bounds}] embedding_dim: 16"
    else:
        fix = f'normalizer: "method=zscore,mean={mean:.6g},standard_deviation={spread or 1:.6g}"'
    yield Finding(Level.WARNING, feature.name, what, large, fix)
