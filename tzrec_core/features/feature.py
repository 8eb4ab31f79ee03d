"""What every feature type shares: its columns, its sizes and its embedding table."""

from collections.abc import Callable, Collection, Mapping
from functools import cached_property, partial
from typing import Any, ClassVar

import pyarrow as pa
from google.protobuf.message import Message
from torchrec import EmbeddingBagConfig, EmbeddingConfig
from torchrec.modules.embedding_configs import DataType, PoolingType

from tzrec_core.config import BASE_DATA_GROUP, ENCODINGS, NEG_DATA_GROUP
from tzrec_core.errors import ConfigError
from tzrec_core.features.checks import feature_problems, no_size, repeated
from tzrec_core.features.encoded import encoded_ids, encoded_numbers
from tzrec_core.features.init_fn import parse_init_fn
from tzrec_core.features.rows import Parsed, Place, by_dictionary
from tzrec_core.features.vocab import read_words
from tzrec_core.protos import data_pb2, feature_pb2


class BaseFeature:
    """One input of a model: the columns it reads and the table or the numbers it becomes.

    A feature type is a subclass; most need only `input_fields`, the config fields that name their columns. A
    type that can be made from raw columns sets `supports_fg_normal` and writes `parse_raw`.

    Args:
        config: the feature's own message, such as `IdFeature`.
        kind: the config field it stood in, such as `"sequence_id_feature"`; for messages to users.
        is_sequence: each row is a sequence of steps.
        sequence: the `sequence_feature` that it is a member of; its name becomes `<sequence>__<feature>`.
        fg_mode: FG_NONE reads one encoded column of the feature's name, FG_NORMAL the raw input columns.
        multival_sep: separates the values of an encoded string column.
        neg_fields: columns that a sampler fills; a feature that reads nothing else is in group `__NEG__`.

    Attributes:
        name: unique name, also the column's in FG_NONE.
        is_sequence: has steps.
        is_grouped_sequence: shares its steps with the other members of `sequence_name`.
        sequence_length: at most so many steps are read, the first ones; 0 = all.
        sequence_delim: separates the steps of a string column.
        is_weighted: each id carries a weight.
        value_dim: ids per row or step, 0 = any number; floats per row or step for a dense feature.
        embedding_dim: width of its table or dense embedding; 0 without one.
        output_dim: width in a feature group.
        has_embedding: has a table or a dense embedding.
        data_group: `__BASE__` or `__NEG__`.
        side_inputs: (side, column) of each raw input column.
        inputs: the columns that are read in this fg_mode.
        trainable, stub_type, use_mask, embedding_constraints, sequence_pk: as configured.
    """

    input_fields: ClassVar[tuple[str, ...]] = ("expression",)
    supports_fg_normal: ClassVar[bool] = False

    def __init__(
        self,
        config: Message,
        *,
        kind: str = "",
        is_sequence: bool = False,
        sequence: feature_pb2.SequenceFeature | None = None,
        fg_mode: int = data_pb2.FG_NONE,
        multival_sep: str = "\003",
        neg_fields: Collection[str] = (),
    ) -> None:
        self.config = config
        self.kind = kind or type(config).__name__
        self.fg_mode = fg_mode
        self.multival_sep = multival_sep
        self.is_grouped_sequence = sequence is not None
        self.is_sequence = is_sequence or self.is_grouped_sequence
        self.sequence_name = sequence.sequence_name if sequence is not None else None
        source: Any = sequence if sequence is not None else config
        self.sequence_length: int = source.sequence_length if self.is_sequence else 0
        self.sequence_delim: str | None = source.sequence_delim if self.is_sequence else None
        self.sequence_pk: str | None = sequence.sequence_pk or None if sequence is not None else None
        feature_name = self.setting("feature_name")
        self.name: str = f"{self.sequence_name}__{feature_name}" if self.is_grouped_sequence else feature_name
        self.side_inputs = self._side_inputs()
        self.inputs = [self.name] if fg_mode == data_pb2.FG_NONE else [column for _, column in self.side_inputs]
        sampled = bool(self.inputs) and set(self.inputs) <= set(neg_fields)
        self.data_group = NEG_DATA_GROUP if sampled else BASE_DATA_GROUP
        self.trainable: bool = self.setting("trainable", True)
        self.stub_type: bool = self.setting("stub_type", False)
        self.use_mask: bool = self.setting("use_mask", False)
        self.is_weighted: bool = self.setting("weighted", False)
        self.embedding_constraints: Message | None = self.explicit("embedding_constraints")

    def setting(self, field: str, default: Any = None) -> Any:
        """The field's value, or `default` where this feature type has no such field."""
        return getattr(self.config, field) if field in self.config.DESCRIPTOR.fields_by_name else default

    def explicit(self, field: str) -> Any:
        """The field's value where the user wrote it, else None."""
        descriptor = self.config.DESCRIPTOR.fields_by_name.get(field)
        if descriptor is None:
            return None
        if descriptor.has_presence:
            return getattr(self.config, field) if self.config.HasField(field) else None
        return getattr(self.config, field) or None

    def expressions(self) -> list[tuple[str, str]]:
        """(config field, "side:column") of every input."""
        found: list[tuple[str, str]] = []
        for field in self.input_fields:
            value = self.setting(field)
            found.extend((field, text) for text in ([value] if isinstance(value, str) else value))
        return found

    def _side_inputs(self) -> list[tuple[str, str]]:
        inputs = [(side, column) for side, _, column in (text.partition(":") for _, text in self.expressions())]
        if not self.is_grouped_sequence:
            return inputs
        stepped = set(self.setting("sequence_fields", ())) or {column for _, column in inputs}
        return [(side, f"{self.sequence_name}__{c}" if c in stepped else c) for side, c in inputs]

    @property
    def is_sparse(self) -> bool:
        """It arrives as ids and has an embedding table."""
        return bool(self.encoding)

    @property
    def value_dim(self) -> int:
        """Numbers per row or step; for ids 0 = any number."""
        return self.explicit("value_dim") or 1

    @property
    def is_multi_value_sequence(self) -> bool:
        """Whether a step holds any number of ids."""
        return self.is_sparse and self.is_sequence and self.value_dim != 1

    @property
    def dense_emb_config(self) -> Message | None:
        """The `autodis` or `mlp` message that embeds a dense feature, or None."""
        if "dense_emb" not in self.config.DESCRIPTOR.oneofs_by_name:
            return None
        field = self.config.WhichOneof("dense_emb")
        return getattr(self.config, field) if field else None

    @property
    def has_embedding(self) -> bool:
        """It has a table or a dense embedding."""
        return self.is_sparse or self.dense_emb_config is not None

    @property
    def embedding_dim(self) -> int:
        """Width of its table or dense embedding; 0 without one."""
        return self.setting("embedding_dim", 0) if self.has_embedding else 0

    @property
    def output_dim(self) -> int:
        """Its width in a feature group."""
        return self.embedding_dim if self.has_embedding else self.value_dim

    @cached_property
    def encoding(self) -> str:
        """The config field that sizes the table and says how a text becomes an id; "" for dense."""
        return next((f for f in ENCODINGS if self.explicit(f) is not None), "")

    @property
    def has_dynamic_ids(self) -> bool:
        """Whether ids of any size are mapped to rows by the table itself (zch, dynamicemb)."""
        return self.encoding in ("zch", "dynamicemb")

    @property
    def encoded_default(self) -> str | None:
        """fg_encoded_default_value where it is set: what stands in for an empty row in FG_NONE."""
        return self.explicit("fg_encoded_default_value")

    @property
    def max_ids(self) -> int:
        """At most so many ids are in a row or a step; 0 = any number."""
        return (self.explicit("value_dim") or 0) if self.is_sparse else 0

    @cached_property
    def words(self) -> list[str]:
        """The vocabulary in its order: `vocab_list`, the keys of `vocab_dict`, or the lines of `vocab_file`.

        Raises:
            ConfigError: the file cannot be read, or a word stands there twice.
        """
        words = list(self.setting("vocab_list", ())) or list(self.setting("vocab_dict", ()))
        if not words and self.explicit("vocab_file") is not None:
            words = read_words(self.at("vocab_file"), self.setting("vocab_file"))
        if twice := repeated(words):
            raise ConfigError(f"{self.at(self.encoding)} has {twice!r} twice. Remove one.")
        return words

    @cached_property
    def num_embeddings(self) -> int:
        """Rows of the embedding table; 0 for a dense feature.

        Raises:
            ConfigError: nothing in the config gives a size, or `vocab_file` cannot be read.
        """
        match self.encoding:
            case "zch":
                return self.setting("zch").zch_size
            case "dynamicemb":
                return self.setting("dynamicemb").max_capacity
            case "hash_bucket_size" | "num_buckets" as field:
                return self.setting(field)
            case "vocab_list" | "vocab_file":
                return len(self.words) + (0 if self.explicit("default_bucketize_value") is not None else 2)
            case "vocab_dict":
                return max(self.setting("vocab_dict").values()) + 1
            case "boundaries":
                return len(self.setting("boundaries")) + 1
        if self.is_sparse:
            raise ConfigError(no_size(self))
        return 0

    @property
    def pooling_type(self) -> PoolingType:
        """How the ids of a row become one vector."""
        return PoolingType(self.setting("pooling", "sum").upper())

    def _table(self) -> dict[str, Any]:
        init_fn = self.explicit("init_fn")
        return {
            "name": self.explicit("embedding_name") or f"{self.name}_emb",
            "num_embeddings": self.num_embeddings,
            "embedding_dim": self.embedding_dim,
            "feature_names": [self.name],
            "data_type": DataType(self.setting("data_type", "FP32")),
            "init_fn": parse_init_fn(init_fn) if init_fn else None,
        }

    @property
    def emb_bag_config(self) -> EmbeddingBagConfig | None:
        """Its table in a DEEP or WIDE group, a fresh object at each call; None for a dense feature."""
        return EmbeddingBagConfig(**self._table(), pooling=self.pooling_type) if self.is_sparse else None

    @property
    def emb_config(self) -> EmbeddingConfig | None:
        """Its table in a sequence group, a fresh object at each call; None for a dense feature."""
        return EmbeddingConfig(**self._table()) if self.is_sparse else None

    def parse(self, columns: Mapping[str, pa.Array], *, source: str = "", first_row: int | None = 0) -> Parsed:
        """Turns this feature's columns into ids or floats, without Python code per row.

        Args:
            columns: Arrow arrays by name, all of the same length; more than the feature reads is fine.
            source: the file, for messages.
            first_row: index in the file of the arrays' first row, for messages; None = they name no row.

        Raises:
            DataError: a column is missing or a row cannot be used.
        """
        if self.fg_mode == data_pb2.FG_NORMAL:
            return self.parse_raw(columns, source=source, first_row=first_row)
        parse_column = partial(encoded_ids if self.is_sparse else encoded_numbers, self)
        return self._parse_input(columns, source, first_row, parse_column)

    def parse_raw(self, columns: Mapping[str, pa.Array], *, source: str = "", first_row: int | None = 0) -> Parsed:
        """As `parse`, from raw columns; for types with `supports_fg_normal`."""
        raise NotImplementedError(f"{type(self).__name__} sets supports_fg_normal without parse_raw")

    def _parse_input(
        self,
        columns: Mapping[str, pa.Array],
        source: str,
        first_row: int | None,
        parse_column: Callable[[pa.Array, Place], Parsed],
    ) -> Parsed:
        """Parses the one column that this feature reads."""
        place = Place(self.inputs[0], f"feature {self.name!r}", source, first_row)
        return by_dictionary(place.fetch(columns), lambda column: parse_column(column, place))

    def at(self, field: str = "") -> str:
        """Names the feature, and a field of it, at the start of a message."""
        return f"{self.kind} {self.name!r}" + (f": {field}" if field else "")

    def problems(self) -> list[str]:
        """What is wrong with this feature's config, in the user's words; empty when nothing is."""
        return feature_problems(self)


class IdLikeFeature(BaseFeature):
    """A feature that always arrives as ids.

    `value_dim` unset means any number of ids in a row, and one id in a step of a sequence.
    """

    @property
    def is_sparse(self) -> bool:
        """Always."""
        return True

    @property
    def value_dim(self) -> int:
        """Ids per row or step; 0 = any number."""
        explicit = self.explicit("value_dim")
        return explicit if explicit is not None else int(self.is_sequence)

    def problems(self) -> list[str]:
        """See `BaseFeature.problems`."""
        return [*super().problems(), *([] if self.encoding else [no_size(self)])]
