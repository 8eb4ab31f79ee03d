"""Features drafted from the columns of a table, for `tzrec init`."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl
from google.protobuf.text_encoding import CEscape

from tzrec_core.data.inspect_table import (
    GIVES_AWAY,
    Column,
    label_score,
    number,
    quantile_boundaries,
    score_name,
)
from tzrec_core.plugins import Output

_MAX_WORDS = 20  # of a vocabulary that is written out
_MAX_STEPS = 100
_DIM = 16  # one width for all: whatever a model multiplies with each other, it can
_ID_WORDS = {"id", "ids", "uid", "iid", "cid", "code", "key", "hash", "type", "category", "brand", "zip"}
_USER_WORDS = {"user", "uid", "member", "customer", "viewer", "buyer", "reader"}
_ITEM_WORDS = {"item", "iid", "movie", "film", "book", "product", "goods", "sku", "ad", "doc", "article", "video"}


@dataclass(frozen=True)
class Table:
    """The columns of a table, as features see them.

    Args:
        columns: all of them, by name.
        label: the one to predict; numbers, none missing.
        output: what a model of the label puts out.
        is_whole: whether all rows were looked at.
        reads_sequences: whether the model has a group for them.
    """

    columns: Mapping[str, Column]
    label: str
    output: Output
    is_whole: bool
    reads_sequences: bool

    @cached_property
    def sequences(self) -> dict[str, list[str]]:
        """The columns that are sequences, each with all that have as many steps in every row, itself included."""
        if not self.reads_sequences:
            return {}
        lists = [c for c in self.columns.values() if c.depth and c.kind and not c.is_constant and c.name != self.label]
        return {c.name: [other.name for other in lists if np.array_equal(other.lengths, c.lengths)] for c in lists}

    @cached_property
    def labels(self) -> np.ndarray:
        """The label, (rows,) float64."""
        return self.columns[self.label].values.cast(pl.Float64).to_numpy()

    def partner(self, column: Column) -> str:
        """Of a sequence `hist__item_id` the column `item_id`, and of that the first such sequence; or empty."""
        if column.name in self.sequences:
            name = column.name.rpartition("__")[2]
            is_fit = name in self.columns and self.partner(self.columns[name]) if name != column.name else ""
            return name if is_fit and self.columns[name].kind == column.kind else ""
        if not (column.is_single and _is_id(column)) or column.name == self.label:
            return ""
        return next((name for name in self.sequences if name.endswith(f"__{column.name}")), "")


@dataclass(frozen=True)
class DraftFeature:
    """A column as a feature.

    Args:
        column: what it reads.
        kind: the field of FeatureConfig.
        settings: the rest of its message, as text.
        is_sparse: whether it ends in ids.
    """

    column: Column
    kind: str
    settings: str
    is_sparse: bool = True

    @property
    def name(self) -> str:
        """The column's."""
        return self.column.name

    @property
    def is_sequence(self) -> bool:
        """Whether a row is a sequence of steps."""
        return self.kind.startswith("sequence_")

    @property
    def side(self) -> str:
        """Whom it tells about, to go by its name: user, item or context; `hist__item_id` is a user's history."""
        words = set(self.column.words)
        if self.column.depth and "__" in self.name:
            return "user"
        return "user" if words & _USER_WORDS else "item" if words & _ITEM_WORDS else "context"

    def lines(self) -> list[str]:
        """A comment of what was seen, and the entry of the config."""
        seen = self.column.summary()
        if self.is_sequence and self.column.lengths.max() > _MAX_STEPS:
            seen += f"; the first {_MAX_STEPS} are kept"
        head = f"feature_name: {quoted(self.name)} expression: {quoted(f'{self.side}:{self.name}')}"
        return [f"# {seen}", f"feature_configs {{ {self.kind} {{ {head} {self.settings} }} }}"]


def quoted(text: str) -> str:
    """A string of a protobuf text."""
    escaped = CEscape(text, as_utf8=True).replace(r"\'", "'")
    return f'"{escaped}"'


def draft_features(table: Table) -> tuple[list[DraftFeature], dict[str, str]]:
    """Features for the columns that can be learnt from, and for the other columns the reason why not."""
    features, left_out = [], {}
    for column in table.columns.values():
        if column.name == table.label:
            continue
        if reason := _why_not(column, table):
            left_out[column.name] = reason
        else:
            features.append(_draft(column, table))
    return features, left_out


def _why_not(column: Column, table: Table) -> str:
    is_step = column.name in table.sequences
    if not column.kind:
        return column.problem
    if column.is_constant:
        return "the same in every row" if len(column.values) else "no row has a value"
    if column.is_time:
        return f"looks like the time of the row ({column.summary()}): later rows hold values never trained on"
    if column.is_unique and _is_id(column):
        return f"{column.num_distinct:,} of {len(column.values):,} values are distinct: nothing is learnt of one"
    if column.depth == 2 and not is_step:
        return "a list of lists: only groups of type SEQUENCE read one, and the model needs none"
    if column.kind == "number" and column.depth == 1 and not is_step and _width(column) is None:
        shortest, longest = column.lengths[~column.missing].min(), column.lengths.max()
        return f"{shortest} to {longest} numbers in a row: a vector has one length"
    if column.kind == "number" and _named_as_id(column):
        return f"ids stored as {column.type}: write them as integers or text"
    score = label_score(column, table.labels, table.output)
    if score is not None and score >= GIVES_AWAY:
        measure = f"{score_name(table.output)} {score:.3f}"
        return f"gives the label away ({measure} by itself): is it made from the label, or known only after it?"
    return ""


def _draft(column: Column, table: Table) -> DraftFeature:
    is_step = column.name in table.sequences
    prefix, first = "", ""
    if is_step:
        longest = max(int(table.columns[name].lengths.max()) for name in table.sequences[column.name])
        prefix, first = "sequence_", f"sequence_length: {min(longest, _MAX_STEPS)} "
    if not _is_id(column):
        if column.depth and not is_step:
            return DraftFeature(column, "raw_feature", _vector(column), is_sparse=False)
        return DraftFeature(column, f"{prefix}raw_feature", f"{first}{_boundaries(column)} embedding_dim: {_DIM}")
    settings = f"{first}{_table_size(column, table)} embedding_dim: {_DIM}"
    if column.separator:
        settings += f" separator: {quoted(column.separator)}"
    if is_step:
        settings += " value_dim: 0" if column.depth == 2 else ""
    else:
        settings += " weighted: true" if column.is_map else " value_dim: 1" if column.is_single else ' pooling: "mean"'
    return DraftFeature(column, f"{prefix}id_feature", settings)


def _named_as_id(column: Column) -> bool:
    words = column.words
    return bool(set(words) & _ID_WORDS) or (len(words) == 1 and words[0] in _USER_WORDS | _ITEM_WORDS)


def _is_id(column: Column) -> bool:
    """Whether a value is the name of something, rather than how much of it."""
    if column.kind in ("text", "flag") or (column.kind == "integer" and column.depth):
        return True
    if column.kind != "integer":
        return False
    if column.is_map or column.num_distinct <= _MAX_WORDS or _named_as_id(column):
        return True
    low, high = int(column.values.min()), int(column.values.max())  # type: ignore[arg-type]
    return high > 1e12 or (column.is_unique and high - low < 2 * len(column.values))  # hashes, row numbers


def _width(column: Column) -> int | None:
    """The length that all lists have which are not empty, or None."""
    lengths = set(column.lengths[~column.missing].tolist())
    return lengths.pop() if len(lengths) == 1 else None


def _vector(column: Column) -> str:
    mean, spread = float(column.values.mean()), float(column.values.std() or 0)  # type: ignore[arg-type]
    settings = f"value_dim: {_width(column)} mlp {{}} embedding_dim: {_DIM}"
    if max(abs(mean), spread) > 10:
        settings += f' normalizer: "method=zscore,mean={mean:.6g},standard_deviation={spread or 1:.6g}"'
    return settings


def _boundaries(column: Column) -> str:
    """Boundaries by quantiles; where values are missing one bucket more, for these alone."""
    bounds = quantile_boundaries(column.values, 10 if column.num_distinct < 1000 else 20)
    default = ""
    if column.missing.any():
        low = float(column.values.min())  # type: ignore[arg-type]
        below = max(1.0, abs(low))
        bounds = [low - below / 2, *bounds]
        default = f' default_value: "{number(low - below)}"'
    return f"boundaries: [{', '.join(map(number, bounds))}]{default}"


def _table_size(column: Column, table: Table) -> str:
    """The setting that gives an id its row; an id and the ids of a sequence that mean the same share a table."""
    if partner := table.partner(column):
        owner = partner if column.name in table.sequences else column.name
        shared = [
            column,
            *(table.columns[n] for n in (owner, *table.sequences) if n.endswith(f"__{owner}") or n == owner),
        ]
        size = max(_hash_size(other.num_distinct) for other in shared)
        return f"hash_bucket_size: {size} embedding_name: {quoted(f'{owner}_emb')}"
    if column.num_distinct <= _MAX_WORDS and table.is_whole:
        words = [str(int(value) if column.kind == "flag" else value) for value in column.values.unique().sort()]
        return f"vocab_list: [{', '.join(map(quoted, words))}]"
    return f"hash_bucket_size: {_hash_size(column.num_distinct)}"


def _hash_size(num_distinct: int) -> int:
    """Rows for hashed ids: the more for each id, the fewer there are; of two digits."""
    size = num_distinct * (10 if num_distinct < 10_000 else 4 if num_distinct < 1_000_000 else 2)
    unit = 10 ** max(len(str(size)) - 2, 0)
    return max(100, -(-size // unit) * unit)
