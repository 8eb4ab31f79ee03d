"""Finds the mistakes that the schema cannot see: names that do not match, types that do not fit."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from google.protobuf.message import Message

from tzrec_core.config.assemble import model_offer, spec_of
from tzrec_core.config.features import FeatureEntry, data_group, feature_entries
from tzrec_core.config.groups import data_group_problems, member_problems
from tzrec_core.config.ranges import range_mistakes
from tzrec_core.config.tasks import model_level_problems, reference_problems, task_problems, towers_in
from tzrec_core.config.unsupported import reader_problem, refused_settings
from tzrec_core.config.walk import messages_in
from tzrec_core.errors import ConfigError, TzrecError, did_you_mean
from tzrec_core.plugins.spec import (
    CallbackSpec,
    Group,
    LossSpec,
    MetricSpec,
    ModelSpec,
    Output,
    ReaderSpec,
    SeqEncoderSpec,
    Spec,
    Task,
)
from tzrec_core.protos.model_pb2 import FeatureGroupType

# What a repeated string of the schema may hold.
SUMMARIES = ("loss", "learning_rate", "parameter", "global_gradient_norm", "gradient_norm", "gradient")
SHARDING_TYPES = (  # in the order of preference where the planner sees no difference
    "table_wise", "row_wise", "column_wise", "table_row_wise", "table_column_wise", "grid_shard", "data_parallel",
)  # fmt: skip
COMPUTE_KERNELS = ("fused", "fused_uvm_caching", "fused_uvm", "dense")


def validate(config: Any) -> None:
    """Check a parsed config.

    Raises:
        ConfigError: every mistake `find_mistakes` finds.
    """
    mistakes = find_mistakes(config)
    if mistakes:
        raise ConfigError(mistakes)


def find_mistakes(config: Any, *, partial: bool = False) -> list[str]:
    """Every mistake of a parsed config that shows without looking at data.

    Args:
        config: an EasyRecConfig.
        partial: do not ask for what is absent altogether (features, groups, a model).

    Returns:
        one line per mistake; each starts with the path of the field.
    """
    entries = feature_entries(config.feature_configs)
    mistakes = [*refused_settings(config), *range_mistakes(config)]
    if config.HasField("model_dir") and not config.model_dir:
        mistakes.append("model_dir is empty; name the folder that checkpoints and results go to")
    mistakes += [*_duplicates(entries, config), *_labels(config), *_training(config), *_constraints(config)]
    if config.data_config.HasField("dataset_type") and (problem := reader_problem(config.data_config)):
        mistakes.append(problem)
    model_config = config.model_config
    mistakes += _groups(model_config.feature_groups, entries, config.data_config)
    mistakes += _slots(config)
    if not config.HasField("model_config"):
        return mistakes if partial else [*mistakes, "model_config is missing"]
    try:
        offer = model_offer(model_config)
    except ValueError:
        if not partial:
            mistakes.append("model_config names no model; add one, such as deepfm { ... }. See `tzrec list-models`.")
        return mistakes
    spec = offer.spec
    name = model_config.WhichOneof("model")
    settings = getattr(model_config, name)
    path = f"model_config.{name}"
    if model_config.feature_groups or not partial:
        mistakes += _model_groups(spec, settings, path, model_config)
    data_config = config.data_config
    mistakes += reference_problems(
        settings, path, labels=data_config.label_fields, sample_weights=data_config.sample_weight_fields
    )
    if spec.task is Task.MULTITASK:
        mistakes += _tasks(settings, path, config, spec, entries, partial=partial)
    elif spec.task is not Task.SID:
        if not model_config.losses and not partial:
            example = "softmax_cross_entropy" if spec.task is Task.MATCH else "binary_cross_entropy"
            mistakes.append(f"model_config.losses is empty; add one, such as losses {{ {example} {{}} }}")
        if spec.task is Task.MATCH:
            mistakes += _matching(settings, path, config, partial=partial)
        if spec.task in (Task.RANK, Task.MATCH) and not config.data_config.label_fields and not partial:
            mistakes.append("data_config.label_fields is empty; name the column that holds the label")
        mistakes += _objectives(model_config, "model_config", spec, entries)
    return mistakes


def _duplicates(entries: list[FeatureEntry], config: Any) -> Iterator[str]:
    for name, count in Counter(e.name for e in entries if e.config.HasField("feature_name")).items():
        if count > 1:
            places = " and ".join(e.path for e in entries if e.name == name)
            yield f"feature {name!r} is defined {count} times, at {places}; rename or remove all but one"
    groups = [g.group_name for g in config.model_config.feature_groups if g.HasField("group_name")]
    for name, count in Counter(groups).items():
        if count > 1:
            yield f"model_config.feature_groups: {count} groups are called {name!r}; rename all but one"


def _slots(config: Any) -> Iterator[str]:
    """Settings of plugins in slots that nothing else here looks into."""
    slots: list[tuple[type[Spec], str, Any]] = []
    if config.data_config.HasField("reader"):
        slots.append((ReaderSpec, "data_config.reader", config.data_config.reader))
    for number, group in enumerate(config.model_config.feature_groups):
        for index, encoder in enumerate(group.sequence_encoders):
            if encoder.WhichOneof("seq_module") == "plugin":
                path = f"model_config.feature_groups[{number}].sequence_encoders[{index}].plugin"
                slots.append((SeqEncoderSpec, path, encoder.plugin))
    for index, slot in enumerate(config.train_config.callbacks):
        slots.append((CallbackSpec, f"train_config.callbacks[{index}]", slot))
    for kind, path, slot in slots:
        try:
            spec_of(kind, "plugin", slot)
        except TzrecError as error:
            yield f"{path}: {error}"


def _training(config: Any) -> Iterator[str]:
    """Settings of train_config and eval_config that need one another."""
    train_config = config.train_config
    if config.eval_config.use_dense_ema and not train_config.dense_optimizer.HasField("ema"):
        yield (
            "eval_config.use_dense_ema: training keeps no moving averages; write ema {} into "
            "train_config.dense_optimizer, or remove it"
        )
    if train_config.fine_tune_ckpt_param_map and not train_config.fine_tune_checkpoint:
        yield (
            f"train_config.fine_tune_ckpt_param_map = {train_config.fine_tune_ckpt_param_map!r} has no effect without "
            "fine_tune_checkpoint; set that too, or remove it"
        )
    yield from _names("train_config.tensorboard_summaries", train_config.tensorboard_summaries, SUMMARIES)


def _constraints(config: Any) -> Iterator[str]:
    """How tables may be split, said for all of them or for those of a feature."""
    for path, message in messages_in(config):
        if message.DESCRIPTOR.name == "ParameterConstraints":
            yield from _names(f"{path}.sharding_types", message.sharding_types, SHARDING_TYPES)
            yield from _names(f"{path}.compute_kernels", message.compute_kernels, COMPUTE_KERNELS)


def _names(path: str, names: Iterable[str], known: tuple[str, ...]) -> Iterator[str]:
    for name in names:
        if name not in known:
            yield f"{path}: {name!r} is not one of {', '.join(known)}.{did_you_mean(name, known)}"


def _labels(config: Any) -> Iterator[str]:
    for field in ("label_fields", "sample_weight_fields"):
        for name, count in Counter(getattr(config.data_config, field)).items():
            if count > 1:
                yield f"data_config.{field} lists {name!r} {count} times"


def _groups(groups: Iterable[Any], entries: list[FeatureEntry], data_config: Any) -> Iterator[str]:
    known = {e.name: e for e in entries}
    for index, group in enumerate(groups):
        path = f"model_config.feature_groups[{index}] ({group.group_name!r})"
        yield from _group_members(path, group.feature_names, known, data_config)
        yield from _group_kind(path, group, [known[n] for n in group.feature_names if n in known])
        for sub in group.sequence_groups:
            sub_path = f"{path}.sequence_groups ({(sub.group_name or group.group_name)!r})"
            yield from _group_members(sub_path, sub.feature_names, known, data_config)


def _group_members(path: str, names: Any, known: dict[str, FeatureEntry], data_config: Any) -> Iterator[str]:
    yield from member_problems(path, names, known)
    data_groups = [(name, data_group(known[name], data_config)) for name in names if name in known]
    yield from data_group_problems(path, data_groups)


def _group_kind(path: str, group: Any, members: list[FeatureEntry]) -> Iterator[str]:
    kind = FeatureGroupType.Name(group.group_type)
    sequences = [e.name for e in members if e.is_sequence]
    if kind == "WIDE":
        for entry in members:
            if not entry.is_sparse:
                yield (
                    f"{path} is WIDE and takes ids only, but {entry.name!r} is a number; give it boundaries or move it"
                )
    if kind in ("SEQUENCE", "JAGGED_SEQUENCE") and members and not sequences:
        yield f"{path} is {kind} but none of its features is a sequence"
    if group.sequence_groups and kind != "DEEP":
        yield f"{path} is {kind}; only a DEEP group can hold sequence_groups"
    if group.sequence_groups and not group.sequence_encoders:
        yield (
            f"{path} has sequence_groups but no sequence_encoders; add one, such as sequence_encoders {{ "
            f"pooling_encoder {{ ... }} }}"
        )


def _model_groups(spec: ModelSpec, settings: Message, path: str, model_config: Any) -> Iterator[str]:
    present = {g.group_name: FeatureGroupType.Name(g.group_type) for g in model_config.feature_groups}
    typed = {g.group_name: g.HasField("group_type") for g in model_config.feature_groups}
    names = ", ".join(present) or "none"
    read: set[str] = set()
    for group in spec.groups:
        for name, place in _wanted(group, settings, path, model_config):
            read.add(name)
            if name not in present:
                if group.required or group.from_field:
                    near = did_you_mean(name, [n for n in present if n not in {g.name for g in spec.groups}])
                    yield f"{place} {name!r} ({' or '.join(group.types)}). Groups are: {names}.{near}"
            elif typed[name] and present[name] not in group.types:
                yield (
                    f"model_config.feature_groups: {spec.name} reads {name!r} as "
                    f"{' or '.join(group.types)}, but its group_type is {present[name]}"
                )
    if spec.groups and not any(g.name == "*" for g in spec.groups):
        for name in present:
            if name not in read:
                yield (
                    f"model_config.feature_groups: {spec.name} does not read a group {name!r}; it reads "
                    f"{', '.join(sorted(read))}. Rename or remove it"
                )


def _wanted(group: Group, settings: Message, path: str, model_config: Any) -> Iterator[tuple[str, str]]:
    if group.from_field:
        for place, name in _follow(settings, group.from_field.split("."), path):
            yield name, f"{place} names no group that exists:"
    elif group.name == "*":
        if model_config.feature_groups:
            yield model_config.feature_groups[0].group_name, ""
        else:
            yield "<any name>", f"{path} needs a feature group"
    else:
        yield group.name, f"{path} needs a feature group"


def _follow(message: Any, steps: list[str], path: str) -> Iterator[tuple[str, str]]:
    name, *rest = steps
    field = message.DESCRIPTOR.fields_by_name[name]
    value = getattr(message, name)
    if not field.is_repeated and not message.HasField(name):
        return
    for index, item in enumerate(value if field.is_repeated else [value]):
        here = f"{path}.{name}" + (f"[{index}]" if field.is_repeated else "")
        if rest:
            yield from _follow(item, rest, here)
        else:
            yield here, item


def _tasks(
    settings: Message, path: str, config: Any, spec: ModelSpec, entries: list[FeatureEntry], *, partial: bool
) -> Iterator[str]:
    """The tasks of a multi-task model."""
    yield from model_level_problems(config.model_config, path)
    yield from task_problems(settings, path)
    towers = list(towers_in(settings, path))
    if not towers and not partial:
        yield f"{path} has no task; add one, such as task_towers {{ ... }}, for each label"
    for tower_path, tower in towers:
        if not tower.losses and not partial:
            yield f"{tower_path}.losses is empty; add one, such as losses {{ binary_cross_entropy {{}} }}"
        yield from _objectives(tower, tower_path, spec, entries)


def _objectives(holder: Any, path: str, spec: ModelSpec, entries: list[FeatureEntry]) -> Iterator[str]:
    """Losses and metrics of a model or tower against its task, its num_class and each other."""
    outputs: set[Output] = set()
    for index, loss_config in enumerate(holder.losses):
        member = loss_config.WhichOneof("loss")
        if member is None:
            continue
        place = f"{path}.losses[{index}].{member}"
        try:
            offer, settings = spec_of(LossSpec, member, getattr(loss_config, member))
        except TzrecError as error:
            yield f"{place}: {error}"
            continue
        loss = offer.spec
        outputs.add(loss.output)
        if spec.task not in loss.tasks:
            yield (
                f"{place}: {spec.name} is a {spec.task} model and does not support this loss; see "
                f"`tzrec show-model {spec.name}`"
            )
            continue
        if problem := loss.num_class_problem(spec.task, getattr(holder, "num_class", 1)):
            yield f"{path}.{problem}"
        yield from _grouping(place, settings, loss.grouping_field, entries)
    for kind in ("metrics", "train_metrics"):
        for index, metric_config in enumerate(getattr(holder, kind, ())):
            member = metric_config.WhichOneof("metric")
            if member is not None:
                place = f"{path}.{kind}[{index}].{member}"
                yield from _metric(place, getattr(metric_config, member), member, kind, outputs, holder, spec, entries)


def _metric(
    place: str,
    settings: Message,
    member: str,
    kind: str,
    outputs: set[Output],
    holder: Any,
    spec: ModelSpec,
    entries: list[FeatureEntry],
) -> Iterator[str]:
    try:
        offer, settings = spec_of(MetricSpec, member, settings)
    except TzrecError as error:
        yield f"{place}: {error}"
        return
    metric = offer.spec
    if spec.task not in metric.tasks:
        yield f"{place}: {spec.name} is a {spec.task} model and does not support this metric"
        return
    if kind == "train_metrics" and not metric.train:
        yield f"{place}: {metric.name} cannot be a train metric"
    problem = metric.outputs_problem(outputs, getattr(holder, "num_class", 1))
    if outputs and spec.task is not Task.MATCH and problem:
        yield f"{place} {problem}"
    yield from _grouping(place, settings, metric.grouping_field, entries)


def _matching(settings: Message, path: str, config: Any, *, partial: bool) -> Iterator[str]:
    """Losses of a matching model, and where it takes a row's negatives from."""
    if (count := len(config.model_config.losses)) > 1:
        yield f"model_config.losses: a matching model takes one loss, not {count}; remove all but one"
    if "in_batch_negative" in settings.DESCRIPTOR.fields_by_name:
        is_in_batch, sampler = settings.in_batch_negative, config.data_config.WhichOneof("sampler")  # type: ignore[attr-defined]
        if (is_in_batch or sampler or not partial) and (problem := negatives_problem(is_in_batch, sampler)):
            yield f"{path}.{problem}"


def negatives_problem(in_batch_negative: bool, sampler: str | None) -> str:
    """Why a matching model has no source of negatives, or one too many; empty when it has one.

    Args:
        in_batch_negative: the model's setting.
        sampler: the name of data_config's sampler; None or empty = there is none.
    """
    if in_batch_negative and sampler:
        return (
            "in_batch_negative takes the items of a batch's other rows as the negatives of a row, whose label is its "
            f"own place among them; data_config.{sampler} draws negatives, and all labels are 0. Remove one of the two"
        )
    if not in_batch_negative and not sampler:
        return (
            "in_batch_negative is not set and data_config has no sampler: without negatives there is nothing to learn. "
            "Set in_batch_negative: true to take the items of a batch's other rows, the label of a row being its own "
            "place among them; or let a sampler of data_config draw negatives, all labels being 0"
        )
    return ""


def _grouping(place: str, settings: Any, field: str, entries: list[FeatureEntry]) -> Iterator[str]:
    if not field or not entries:
        return
    name = getattr(settings, field)
    ids = [e.name for e in entries if e.is_sparse]
    if name and name not in ids:
        yield f"{place}.{field}: {name!r} is not an id feature.{did_you_mean(name, ids)}"
