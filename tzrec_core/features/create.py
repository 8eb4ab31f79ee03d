"""From `feature_configs` to features: classes, data groups, and all mistakes in one go."""

from collections.abc import Iterable
from typing import Any

from google.protobuf.message import Message

from tzrec_core.config import fg_mode, sampled_columns
from tzrec_core.errors import ConfigError
from tzrec_core.features.custom_feature import CustomFeature
from tzrec_core.features.feature import BaseFeature
from tzrec_core.plugins import FeatureSpec, registry
from tzrec_core.protos import data_pb2, feature_pb2


def _feature_class(kind: str, config: Any) -> type[BaseFeature]:
    """The class behind a field of FeatureConfig; a custom_feature's is named by its operator_name."""
    if kind != "custom_feature":
        return registry().load(registry().get(FeatureSpec, kind))
    offers = registry().by_name(FeatureSpec)
    if config.operator_name in offers:
        return registry().load(registry().get(FeatureSpec, config.operator_name))
    return CustomFeature


def create_features(
    feature_configs: Iterable[feature_pb2.FeatureConfig], data_config: data_pb2.DataConfig | None = None
) -> list[BaseFeature]:
    """Builds the features of a config, in its order, the members of a sequence_feature in their place.

    Args:
        feature_configs: the config's `feature_configs`.
        data_config: decides the fg_mode, the separator of encoded values, and which features a sampler fills
            (data group `__NEG__`); None = all defaults.

    Raises:
        ConfigError: names every mistake of every feature.
    """
    data_config = data_config if data_config is not None else data_pb2.DataConfig()
    problems = _data_problems(data_config)
    options = {
        "fg_mode": fg_mode(data_config),
        "multival_sep": data_config.fg_encoded_multival_sep,
        "neg_fields": sampled_columns(data_config),
    }
    features: list[BaseFeature] = []
    for feature_config in feature_configs:
        for kind, config, sequence in _members(feature_config, problems):
            kind_class = _feature_class(kind.removeprefix("sequence_"), config)
            is_sequence = kind.startswith("sequence_")
            features.append(kind_class(config, kind=kind, is_sequence=is_sequence, sequence=sequence, **options))
    for feature in features:
        problems.extend(feature.problems())
    problems.extend(_duplicates(features))
    if problems:
        raise ConfigError(problems)
    return features


def _members(
    feature_config: feature_pb2.FeatureConfig, problems: list[str]
) -> list[tuple[str, Message, feature_pb2.SequenceFeature | None]]:
    """(kind, message, sequence) of one entry: itself, or the members of a sequence_feature."""
    kind = feature_config.WhichOneof("feature")
    if kind is None:
        problems.append("A feature_configs entry is empty. Put a feature into it, such as id_feature { ... }.")
        return []
    if kind != "sequence_feature":
        return [(kind, getattr(feature_config, kind), None)]
    sequence = feature_config.sequence_feature
    members = [(member.WhichOneof("feature"), member) for member in sequence.features]
    if not members or any(kind is None for kind, _ in members):
        problems.append(f"sequence_feature {sequence.sequence_name!r} has no features, or an empty one.")
    return [(kind, getattr(member, kind), sequence) for kind, member in members if kind is not None]


def _data_problems(data_config: data_pb2.DataConfig) -> list[str]:
    found = []
    mode = fg_mode(data_config)
    mode_name = data_pb2.FgMode.Name(mode)
    if mode not in (data_pb2.FG_NONE, data_pb2.FG_NORMAL):
        found.append(
            f"data_config.fg_mode {mode_name} is not supported yet. "
            f"Use FG_NORMAL for raw columns, or FG_NONE for encoded ones."
        )
    if data_config.HasField("fg_encoded") and data_config.fg_encoded != (mode == data_pb2.FG_NONE):
        found.append(
            f"data_config.fg_encoded: {str(data_config.fg_encoded).lower()} contradicts fg_mode: "
            f"{mode_name}. Remove fg_encoded."
        )
    return found


def _duplicates(features: list[BaseFeature]) -> list[str]:
    seen: set[str] = set()
    found = []
    for feature in features:
        if feature.name in seen:
            found.append(f"{feature.kind} {feature.name!r}: another feature has this name. Rename one.")
        seen.add(feature.name)
    return found
