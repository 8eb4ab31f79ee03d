"""What the feature configs say by themselves: names, columns and data groups, without torch."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tzrec_core.protos.data_pb2 import FG_NONE, FG_NORMAL

BASE_DATA_GROUP = "__BASE__"
NEG_DATA_GROUP = "__NEG__"

_SEQUENCE_PREFIX = "sequence_"


@dataclass(frozen=True)
class FeatureEntry:
    """One feature of a config.

    Attributes:
        name: as feature groups name it; `<sequence>__<feature>` inside a sequence_feature.
        kind: the spec name, such as `id_feature`, also for its sequence variants.
        path: where it stands, such as `feature_configs[3].id_feature`.
        config: its own message.
        sequence: the enclosing SequenceFeature message, or None.
        is_sequence: whether a row holds a sequence of values.
        columns: the raw columns it is made from, as (side, column) pairs.
    """

    name: str
    kind: str
    path: str
    config: Any
    sequence: Any
    is_sequence: bool
    columns: tuple[tuple[str, str], ...]

    @property
    def is_sparse(self) -> bool:
        """Whether it ends in ids rather than numbers, as far as its fields tell."""
        if self.kind in ("id_feature", "combo_feature", "tokenize_feature", "bool_mask_feature"):
            return True
        return any(_is_set(self.config, name) for name in ENCODINGS)


# In order of precedence: the first that is set sizes the table and says how a text becomes an id.
ENCODINGS = (
    "zch", "dynamicemb", "hash_bucket_size", "num_buckets", "vocab_list", "vocab_dict", "vocab_file", "boundaries",
)  # fmt: skip
_COLUMN_FIELDS = (
    "expression",
    "variables",
    "map",
    "key",
    "nested_map",
    "pkey",
    "skey",
    "query",
    "title",
    "document",
)


def feature_entries(feature_configs: Iterable[Any]) -> list[FeatureEntry]:
    """Every feature of `feature_configs`, members of sequences included, in config order; empty ones are skipped."""
    entries = []
    for index, feature_config in enumerate(feature_configs):
        member = feature_config.WhichOneof("feature")
        if member is None:
            continue
        path = f"feature_configs[{index}].{member}"
        config = getattr(feature_config, member)
        if member == "sequence_feature":
            for number, inner in enumerate(config.features):
                kind = inner.WhichOneof("feature")
                if kind is not None:
                    inner_path = f"{path}.features[{number}].{kind}"
                    entries.append(_entry(kind, inner_path, getattr(inner, kind), config, True))
        else:
            kind = member.removeprefix(_SEQUENCE_PREFIX)
            entries.append(_entry(kind, path, config, None, member.startswith(_SEQUENCE_PREFIX)))
    return entries


def _entry(kind: str, path: str, config: Any, sequence: Any, is_sequence: bool) -> FeatureEntry:
    prefix = f"{sequence.sequence_name}__" if sequence is not None else ""
    own_columns = set(config.sequence_fields) if sequence is not None else set()
    columns = []
    for text in _column_expressions(kind, config):
        side, _, column = text.rpartition(":")
        whole = prefix and own_columns and column not in own_columns
        columns.append((side, column if whole else prefix + column))
    return FeatureEntry(prefix + config.feature_name, kind, path, config, sequence, is_sequence, tuple(columns))


def _column_expressions(kind: str, config: Any) -> list[str]:
    """The `side:column` texts of a feature, in the order its computation takes them."""
    found: list[str] = []
    for name in _COLUMN_FIELDS:
        if name not in config.DESCRIPTOR.fields_by_name or (kind == "expr_feature" and name == "expression"):
            continue
        value = getattr(config, name)
        found.extend([value] if isinstance(value, str) else value)
    return [text for text in found if text]


def sampled_columns(data_config: Any) -> frozenset[str]:
    """The columns that a sampler fills for its negatives; a tree sampler expands whole rows, so it has none."""
    sampler = data_config.WhichOneof("sampler") if data_config is not None else None
    if sampler in (None, "tdm_sampler", "plugin") or data_config.force_base_data_group:
        return frozenset()
    config = getattr(data_config, sampler)
    return frozenset([*config.attr_fields, config.item_id_field])


def data_group(entry: FeatureEntry, data_config: Any) -> str:
    """`__NEG__` for a feature that reads only columns that a sampler fills, `__BASE__` otherwise."""
    columns = {entry.name} if fg_mode(data_config) == FG_NONE else {column for _, column in entry.columns}
    return NEG_DATA_GROUP if columns and columns <= sampled_columns(data_config) else BASE_DATA_GROUP


def fg_mode(data_config: Any) -> int:
    """The FgMode of the data: FG_NONE when columns hold features already encoded, each under its own name."""
    if not data_config.HasField("fg_mode") and not data_config.fg_encoded:
        return FG_NORMAL
    return int(data_config.fg_mode)


def _is_set(config: Any, name: str) -> bool:
    field = config.DESCRIPTOR.fields_by_name.get(name)
    if field is None:
        return False
    return bool(getattr(config, name)) if field.is_repeated else config.HasField(name)
