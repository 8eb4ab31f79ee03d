"""What can be wrong with a feature's config, in the words that the user reads."""

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from tzrec_core.config import ENCODINGS, refused_settings
from tzrec_core.errors import ConfigError
from tzrec_core.features.dense import numbers_in
from tzrec_core.features.init_fn import parse_init_fn
from tzrec_core.protos import data_pb2

if TYPE_CHECKING:
    from tzrec_core.features.feature import BaseFeature

_DENSE_EMBEDDINGS = ("autodis", "mlp")
_OF_A_TABLE = ("embedding_name", "init_fn", "pooling", "data_type", "trainable", "embedding_constraints")
_SIDES = ("user", "item", "context")
_POOLINGS = ("sum", "mean")
_DATA_TYPES = ("FP32", "FP16")


def feature_problems(feature: "BaseFeature") -> list[str]:
    """The mistakes that any feature type can have; empty when there are none."""
    return [
        *_input_problems(feature),
        *_sequence_problems(feature),
        *_table_problems(feature),
        *_vocab_problems(feature),
        *_value_problems(feature),
        *_unsupported_problems(feature),
    ]


def no_size(feature: "BaseFeature") -> str:
    """Says that nothing sizes the embedding table, and what could."""
    return f"{feature.at()} has no size for its embedding table. Set one of {_options(feature, ENCODINGS)}."


def repeated(words: Sequence[str]) -> str | None:
    """The first word that comes a second time, or None."""
    seen: set[str] = set()
    for word in words:
        if word in seen:
            return word
        seen.add(word)
    return None


def id_problems(feature: "BaseFeature", field: str, text: str, sep: str) -> list[str]:
    """What is wrong with a default value that should be ids, weighted or not."""
    for part in text.split(sep):
        number = part.rpartition(":")[0] if feature.is_weighted and ":" in part else part
        if not number.strip().isdecimal():
            return [f"{feature.at(field)} {text!r} is not an id, nor ids joined by {sep!r}."]
        sized = feature.encoding not in ("", "vocab_file") and not feature.has_dynamic_ids
        if sized and int(number) >= feature.num_embeddings:
            last = feature.num_embeddings - 1
            return [f"{feature.at(field)} {text!r} is outside its table's rows, 0 to {last}."]
    return []


def not_numbers(feature: "BaseFeature", field: str, text: str, sep: str) -> str:
    """Says that a default value is neither one number nor `value_dim` of them."""
    return f"{feature.at(field)} {text!r} is not one number, nor {feature.value_dim} joined by {sep!r}."


def _options(feature: "BaseFeature", fields: Sequence[str]) -> str:
    return ", ".join(name for name in fields if name in feature.config.DESCRIPTOR.fields_by_name)


def _input_problems(feature: "BaseFeature") -> list[str]:
    found = []
    for field, text in feature.expressions():
        side, colon, column = text.partition(":")
        if not (colon and column and side):
            found.append(f'{feature.at(field)} {text!r} is not of the form "side:column", such as "user:{text}".')
        elif feature.fg_mode == data_pb2.FG_NORMAL and side not in _SIDES:
            found.append(
                f"{feature.at(field)} {text!r} reads side {side!r}, which FG_NORMAL does not have "
                f"({', '.join(_SIDES)}). Put the values in a column."
            )
    if feature.fg_mode == data_pb2.FG_NORMAL and not feature.supports_fg_normal:
        found.append(
            f"{feature.at()}: FG_NORMAL of {feature.kind} is not supported yet. Encode it beforehand, "
            f"as a column {feature.name!r} of ids or numbers, and read it with fg_mode: FG_NONE."
        )
    return found


def _sequence_problems(feature: "BaseFeature") -> list[str]:
    found = []
    if not feature.is_sequence or feature.is_grouped_sequence:
        owner = "its sequence_feature" if feature.is_grouped_sequence else f"a sequence_{feature.kind}"
        for field in ("sequence_length", "sequence_delim"):
            if feature.explicit(field) is not None:
                found.append(f"{feature.at(field)} belongs to {owner}. Move it there or remove it.")
    stepped = feature.explicit("sequence_fields") or ()
    if stepped and not feature.is_sequence:
        found.append(f"{feature.at('sequence_fields')} belongs to a sequence_{feature.kind}. Remove it.")
    columns = [text.partition(":")[2] for _, text in feature.expressions()]
    for column in stepped:
        if column not in columns:
            listed = ", ".join(columns)
            found.append(f"{feature.at('sequence_fields')} {column!r} is not one of its inputs ({listed}).")
    if feature.is_sequence and not feature.sequence_delim:
        found.append(f"{feature.at('sequence_delim')} is empty. Steps need a separator, such as ';'.")
    if feature.is_sequence and feature.is_weighted:
        found.append(f"{feature.at('weighted')}: a sequence has no weights. Remove it.")
    return found


def _table_problems(feature: "BaseFeature") -> list[str]:
    found = []
    if not feature.is_sparse:
        fields, what, ways = _OF_A_TABLE, "a number without a table", ENCODINGS
        if not feature.has_embedding:
            fields, what, ways = ("embedding_dim", *fields), "a plain number", (*ENCODINGS, *_DENSE_EMBEDDINGS)
        for field in fields:
            default = feature.config.DESCRIPTOR.fields_by_name[field].default_value
            if feature.explicit(field) not in (None, default):
                found.append(
                    f"{feature.at(field)} has no effect on {what}. Remove it, or set one of {_options(feature, ways)}."
                )
    if feature.has_embedding and not feature.embedding_dim:
        found.append(f"{feature.at('embedding_dim')} is 0. Set the width of its embedding, such as 16.")
    if feature.is_sparse and feature.dense_emb_config is not None:
        found.append(f"{feature.at('autodis, mlp')} embed a number, but {feature.encoding} makes it an id. Remove one.")
    for field in ("hash_bucket_size", "num_buckets"):
        if feature.explicit(field) == 0:
            found.append(f"{feature.at(field)} is 0. Set the number of ids.")
    try:
        parse_init_fn(feature.explicit("init_fn") or "nn.init.zeros_")
    except ConfigError as error:
        found.append(f"{feature.at('init_fn')} {str(error).removeprefix('init_fn = ')}")
    for field, known in (("pooling", _POOLINGS), ("data_type", _DATA_TYPES)):
        if feature.setting(field, known[0]) not in known:
            found.append(f"{feature.at(field)} {feature.setting(field)!r} is not one of {', '.join(known)}.")
    return found


def _vocab_problems(feature: "BaseFeature") -> list[str]:
    found = []
    fallback = feature.explicit("default_bucketize_value")
    ids = dict(feature.setting("vocab_dict", {}))
    if twice := repeated(feature.setting("vocab_list", ())):
        found.append(f"{feature.at('vocab_list')} has {twice!r} twice. Remove one.")
    if fallback is None:
        for word, value in sorted(ids.items()):
            if value < 2:
                found.append(
                    f"{feature.at('vocab_dict')} gives {word!r} the id {value}, but 0 is the default "
                    "value's and 1 the unseen words'. Count from 2, or set default_bucketize_value."
                )
    elif not any(feature.explicit(field) for field in ("vocab_list", "vocab_dict", "vocab_file")):
        found.append(f"{feature.at('default_bucketize_value')} needs vocab_list, vocab_dict or vocab_file.")
    elif feature.encoding in ("vocab_list", "vocab_dict") and fallback >= feature.num_embeddings:
        last = feature.num_embeddings - 1
        found.append(f"{feature.at('default_bucketize_value')} {fallback} is outside its table's rows, 0 to {last}.")
    return found


def _value_problems(feature: "BaseFeature") -> list[str]:
    found = []
    boundaries = list(feature.setting("boundaries", ()))
    for before, after in pairwise(boundaries):
        if not before < after:
            found.append(f"{feature.at('boundaries')} must ascend, but {after:g} follows {before:g}.")
            break
    text, sep = feature.encoded_default, feature.multival_sep
    if feature.fg_mode == data_pb2.FG_NONE and text:
        if feature.is_sparse:
            found.extend(id_problems(feature, "fg_encoded_default_value", text, sep))
        elif numbers_in(text, sep, feature.value_dim) is None:
            found.append(not_numbers(feature, "fg_encoded_default_value", text, sep))
    return found


def _unsupported_problems(feature: "BaseFeature") -> list[str]:
    # Columns can be parsed for these: the embedding group answers for them.
    return list(refused_settings(feature.config, feature.at(), but=("zch", "dynamicemb")))
