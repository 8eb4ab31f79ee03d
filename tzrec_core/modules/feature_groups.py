"""What can be wrong with feature groups, and what their names resolve to."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from google.protobuf.message import Message

from tzrec_core.config import data_group_problems, member_problems, spec_of
from tzrec_core.errors import did_you_mean
from tzrec_core.features import BaseFeature
from tzrec_core.modules.sequence_embedding import SequenceGroup
from tzrec_core.plugins import Offer, SeqEncoderSpec
from tzrec_core.protos import model_pb2, seq_encoder_pb2


def feature_group_problems(
    features: Sequence[BaseFeature], feature_groups: Iterable[model_pb2.FeatureGroupConfig]
) -> list[str]:
    """Every mistake of the groups that shows without building anything, in the user's words."""
    known = {feature.name: feature for feature in features}
    groups = list(feature_groups)
    found = [
        f"feature_groups: {count} groups are called {name!r}. Rename all but one."
        for name, count in Counter(group.group_name for group in groups).items()
        if count > 1
    ]
    for group in groups:
        where = f"feature group {group.group_name!r}"
        if "." in group.group_name:
            found.append(f"{where}: a group's name cannot have a dot. Rename it.")
        if is_sequence_group(group):
            found.extend(_sequence_problems(where, group.feature_names, known))
            if group.sequence_groups or group.sequence_encoders:
                found.append(f"{where}: only a DEEP group can have sequence_groups and sequence_encoders.")
        else:
            found.extend(_plain_problems(where, group, known))
            found.extend(_encoder_problems(where, group, known))
        names = [*group.feature_names, *(name for member in group.sequence_groups for name in member.feature_names)]
        found.extend(data_group_problems(where, [(name, known[name].data_group) for name in names if name in known]))
    return found


def is_sequence_group(group: model_pb2.FeatureGroupConfig) -> bool:
    """Whether the group is SEQUENCE or JAGGED_SEQUENCE."""
    return group.group_type in (model_pb2.SEQUENCE, model_pb2.JAGGED_SEQUENCE)


def sequence_groups(group: model_pb2.FeatureGroupConfig, known: Mapping[str, BaseFeature]) -> list[SequenceGroup]:
    """The group itself when it is a sequence group, else its `sequence_groups`, named `<group>/<member>`."""
    if is_sequence_group(group):
        is_jagged = group.group_type == model_pb2.JAGGED_SEQUENCE
        return [_sequence_group(group.group_name, group, known, is_jagged=is_jagged)]
    return [
        _sequence_group(f"{group.group_name}/{member.group_name or group.group_name}", member, known)
        for member in group.sequence_groups
    ]


def encoder_settings(config: seq_encoder_pb2.SeqEncoderConfig) -> tuple[Offer[SeqEncoderSpec], Message]:
    """The encoder behind an entry of `sequence_encoders`, and its settings.

    Raises:
        PluginError: no plugin offers it.
    """
    name = config.WhichOneof("seq_module")
    assert name is not None
    return spec_of(SeqEncoderSpec, name, getattr(config, name))


def encoder_input(group: model_pb2.FeatureGroupConfig, settings: Message) -> str:
    """The sequence group that an encoder reads; unset = the group's only one."""
    written: str = getattr(settings, "input", "")
    only = group.sequence_groups[0] if len(group.sequence_groups) == 1 else None
    return written or (only.group_name or group.group_name if only is not None else "")


def _sequence_group(
    name: str,
    config: model_pb2.FeatureGroupConfig | model_pb2.SeqGroupConfig,
    known: Mapping[str, BaseFeature],
    is_jagged: bool = False,
) -> SequenceGroup:
    features = tuple(known[feature_name] for feature_name in config.feature_names)
    return SequenceGroup(name, features, suffix=config.embedding_name_suffix, is_jagged=is_jagged)


def _member_problems(where: str, names: Iterable[str], known: Mapping[str, BaseFeature]) -> Iterator[str]:
    """Mistakes that no group of any type may have."""
    names = list(names)
    yield from member_problems(where, names, known)
    for name in dict.fromkeys(names):
        feature = known.get(name)
        if feature is None:
            continue
        if feature.stub_type:
            yield (
                f"{where}: {name!r} has stub_type: true, so it is only an input of other features. Remove it "
                "from the group, or stub_type from the feature."
            )
        for field in ("zch", "dynamicemb"):
            if feature.explicit(field) is not None:
                yield (
                    f"not supported yet: {field} of feature {name!r} in {where}. Use hash_bucket_size, "
                    "num_buckets or a vocabulary instead."
                )


def _plain_problems(where: str, group: model_pb2.FeatureGroupConfig, known: Mapping[str, BaseFeature]) -> Iterator[str]:
    yield from _member_problems(where, group.feature_names, known)
    if not group.feature_names and not group.sequence_groups:
        yield f"{where} has no features. Add feature_names, or remove the group."
    for name in group.feature_names:
        feature = known.get(name)
        if feature is None or feature.is_sparse:
            continue
        if group.group_type == model_pb2.WIDE:
            yield f"{where} is WIDE and takes ids only, but {name!r} is dense. Give it boundaries."
        elif feature.is_sequence:
            yield (
                f"{where}: {name!r} is a sequence of numbers, which a DEEP group cannot hold. Put it into "
                "one of the group's sequence_groups."
            )


def _sequence_problems(where: str, names: Sequence[str], known: Mapping[str, BaseFeature]) -> Iterator[str]:
    yield from _member_problems(where, names, known)
    features = [known[name] for name in names if name in known]
    if not any(feature.is_sequence for feature in features) and len(features) == len(names):
        yield f"{where} has no sequence feature. Add one, such as a member of a sequence_feature."
    for feature in features:
        if feature.dense_emb_config is not None:
            yield (
                f"not supported yet: autodis or mlp of feature {feature.name!r} in {where}; DEEP groups "
                "support them. Use boundaries here, or another feature without it."
            )


def _encoder_problems(
    where: str, group: model_pb2.FeatureGroupConfig, known: Mapping[str, BaseFeature]
) -> Iterator[str]:
    if group.sequence_groups and group.group_type != model_pb2.DEEP:
        yield f"{where}: only a DEEP group can have sequence_groups and sequence_encoders."
        return
    several = len(group.sequence_groups) > 1
    names = [member.group_name or ("" if several else group.group_name) for member in group.sequence_groups]
    for name, count in Counter(names).items():
        if not name:
            yield f"{where}: with several sequence_groups each needs a group_name."
        elif count > 1:
            yield f"{where}: {count} sequence_groups are called {name!r}. Rename all but one."
    for name, member in zip(names, group.sequence_groups):
        yield from _sequence_problems(f"{where}, sequence group {name!r}", member.feature_names, known)
    encoded = set()
    for index, config in enumerate(group.sequence_encoders):
        at = f"{where}, sequence_encoders[{index}]"
        if config.WhichOneof("seq_module") is None:
            yield f"{at} is empty. Put an encoder into it, such as pooling_encoder {{ }}."
            continue
        name = encoder_input(group, encoder_settings(config)[1])
        encoded.add(name)
        if name not in names:
            groups = ", ".join(names) or "none"
            near = did_you_mean(name, names)
            yield f"{at}: input {name!r} is not a sequence group. They are: {groups}.{near}"
    for name in names:
        if name not in encoded:
            yield (
                f"{where}: sequence group {name!r} has no encoder. Add one, such as sequence_encoders {{ "
                f'pooling_encoder {{ input: "{name}" }} }}.'
            )
