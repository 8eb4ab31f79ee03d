"""A first config, drafted from a table, for `tzrec init`."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import pyarrow as pa
from google.protobuf import text_format

from tzrec_core.config import model_name, parse_config
from tzrec_core.config.assemble import config_class
from tzrec_core.config.comments import field_comments
from tzrec_core.data.draft_features import DraftFeature, Table, draft_features, quoted
from tzrec_core.data.inspect_table import Column, inspect_column, number, percent, read_sample
from tzrec_core.data.loader import reader_class
from tzrec_core.data.readers import BaseReader
from tzrec_core.data.readers.columns import check_columns
from tzrec_core.data.readers.files import find_files, open_file
from tzrec_core.errors import ConfigError, DataError, did_you_mean
from tzrec_core.plugins import Group, ModelSpec, Offer, Output, Task, registry
from tzrec_core.protos.data_pb2 import DataConfig

_MAX_ROWS = 1_000_000
_SEQUENCES = {"SEQUENCE", "JAGGED_SEQUENCE"}
_SIDES_OF_GROUPS = {"user": ("user", "context"), "item": ("item",)}


def draft_config(
    offer: Offer[ModelSpec], data: str, *, labels: Sequence[str], eval_data: str = "", model_dir: str
) -> str:
    """A commented config that trains a model on a table.

    Of a large table up to a million rows are looked at. The model's own settings are those of its packaged example; a
    multi-task model has a tower for each label, with the layers of the example's first one.

    Args:
        offer: the model.
        data: Parquet files, or CSV files with a header line; see `find_files`.
        labels: the columns to predict; one, unless it is a multi-task model.
        eval_data: the like, to evaluate on; empty = none.
        model_dir: for the config.

    Raises:
        ConfigError: a label cannot be predicted, or the table has not what the model reads.
        DataError: a file is missing or damaged, or lacks a column.
    """
    spec = offer.spec
    if spec.task not in (Task.RANK, Task.MULTITASK):
        raise ConfigError(
            f"tzrec init writes configs of rank and multitask models, and {spec.name} is a {spec.task} model. Start "
            f"from its example: tzrec show-model {spec.name}"
        )
    labels = list(dict.fromkeys(labels))
    if spec.task is Task.RANK and len(labels) > 1:
        raise ConfigError(
            f"{spec.name} predicts one label, not {len(labels)}: give one --label, or a multitask model. See "
            "`tzrec list-models --task multitask`."
        )
    file_format = _file_format(data)
    reader = _reader(data, file_format)
    names = reader.schema.names
    for label in labels:
        if label not in names:
            listing = f"Columns are: {', '.join(names)}"
            if "with_header" in file_format:
                listing += " (the first line of a CSV file names them)"
            raise ConfigError(f"--label {label!r} is not a column of {data}.{did_you_mean(label, names)} {listing}")
    sample = read_sample(reader, _MAX_ROWS)
    columns = {name: inspect_column(name, sample.column(name)) for name in names}
    objectives = {label: _objective(columns[label], _log_steps(reader.num_rows)) for label in labels}
    first = labels[0]
    for other in labels[1:]:
        del columns[other]
    has_sequences = any(group.required and group.types[0] in _SEQUENCES for group in spec.groups)
    is_whole = sample.num_rows == reader.num_rows
    table = Table(columns, first, objectives[first].output, is_whole, has_sequences)
    features, left_out = draft_features(table)
    if not features:
        reasons = [f"{quoted(name)}: {reason}" for name, reason in left_out.items()]
        raise ConfigError(reasons or "there is only the label", title=f"no column of {data} can be a feature")
    if eval_data:
        eval_names = _reader(eval_data, file_format).schema.names
        check_columns(eval_data, eval_names, [*(feature.name for feature in features), *labels])
    settings = _example_settings(offer)
    lines = objectives[first].lines
    if spec.task is Task.MULTITASK:
        _write_towers(settings, objectives, spec)
        lines = ()
    groups = list(_groups(spec, settings, features, table))
    looked = "all" if is_whole else f"{sample.num_rows:,} of the"
    sections = [
        [
            f"# {spec.name} of {offer.plugin.distribution} {offer.plugin.version}".rstrip()
            + f", drafted by `tzrec init` after a look at {looked} {reader.num_rows:,} rows.",
            f"train_input_path: {quoted(data)}",
            f"eval_input_path: {quoted(eval_data)}" + ("" if eval_data else "  # rows kept apart, if there are any"),
            f"model_dir: {quoted(model_dir)}",
        ],
        _train_config(reader.num_rows),
        _data_config(reader.num_rows, file_format, objectives),
        [
            "# hash_bucket_size: two ids may share a row, the more rarely the larger it is; a new id shares one too.",
            "# vocab_list: all values that are not listed share one row.",
            *(line for feature in features for line in feature.lines()),
        ],
        [
            *(["# Left out:"] if left_out else []),
            *(f"#   {quoted(name)}: {reason}" for name, reason in left_out.items()),
        ],
        _model_config(offer, settings, groups, lines),
    ]
    text = "\n\n".join("\n".join(lines) for lines in sections if lines) + "\n"
    try:
        parse_config(text, validate=True)
    except ConfigError as error:
        hint = f"no config can be drafted for {spec.name}, see `tzrec show-model {spec.name}`"
        raise ConfigError(error.problems, title=hint) from None
    return text


def _file_format(data: str) -> str:
    """The fields of data_config that say how the files are read, to go by the start of the first one."""
    path = find_files(data)[0]
    try:
        codec = pa.Codec.detect(path).name
    except TypeError:  # how pyarrow says that the name tells of none
        codec = None
    try:
        with open_file(path) as file:
            start = (pa.CompressedInputStream(file, codec) if codec else file).read(1 << 16)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if start.startswith(b"PAR1"):
        return "dataset_type: ParquetDataset"
    line = start.strip().partition(b"\n")[0]
    delimiter = max(b",", b"\t", b";", b"|", key=line.count).decode()
    return f"dataset_type: CsvDataset with_header: true delimiter: {quoted(delimiter)}"


def _reader(data: str, file_format: str) -> BaseReader:
    data_config = text_format.Parse(file_format, DataConfig())
    return reader_class(data_config)(data, batch_size=1024, data_config=data_config)


@dataclass(frozen=True)
class _Objective:
    """What a label asks for: what the model puts out, lines of model_config, and what was seen."""

    output: Output
    lines: tuple[str, ...]
    seen: str


def _objective(label: Column, log_steps: int) -> _Objective:
    if label.problem:
        raise ConfigError(f"--label {label.name!r} {label.problem}")
    if not label.is_single or label.kind not in ("integer", "number", "flag"):
        shown = ", such as " + " and ".join(map(repr, label.values.unique().sort()[:2]))
        raise ConfigError(
            f"--label {label.name!r} holds {label.type}{shown}. Write it as numbers: 0 and 1, classes from 0 on, or "
            "what is to be estimated."
        )
    if label.missing.any():
        count = int(label.missing.sum())
        raise ConfigError(f"--label {label.name!r} is null in {count:,} rows. Leave them out: they teach nothing.")
    if label.num_distinct == 1:
        raise ConfigError(f"--label {label.name!r} is {label.values[0]} in every row: there is nothing to learn.")
    distinct = {float(value) for value in label.values.unique()} if label.num_distinct <= 1000 else set()
    if distinct == {0.0, 1.0}:
        lines: tuple[str, ...] = ("losses { binary_cross_entropy {} }", "metrics { auc {} }", "metrics { logloss {} }")
        share = float(label.values.cast(float).mean())  # type: ignore[arg-type]
        lines = (*lines, f"train_metrics {{ auc {{}} decay_step: {log_steps} }}")
        return _Objective(Output.BINARY, lines, f"{percent(share)} are 1")
    num_class = int(max(distinct, default=0)) + 1
    if label.kind == "integer" and distinct and min(distinct) == 0 and num_class <= 2 * len(distinct):
        metrics = ("metrics { accuracy {} }", "metrics { multiclass_auc {} }")
        lines = (f"num_class: {num_class}", "losses { softmax_cross_entropy {} }", *metrics)
        return _Objective(Output.SOFTMAX, lines, f"{len(distinct)} classes")
    mean, spread = float(label.values.mean()), float(label.values.std())  # type: ignore[arg-type]
    seen = f"a number, {label.summary()}, mean {number(mean)}, standard deviation {number(spread)}"
    if max(abs(mean), spread) > 100:
        seen += "; its logarithm, or a fraction of it, is learnt sooner"
    lines = ("losses { l2_loss {} }", "metrics { mean_absolute_error {} }", "metrics { mean_squared_error {} }")
    return _Objective(Output.VALUE, lines, seen)


def _example_settings(offer: Offer[ModelSpec]) -> Any:
    """The model's own message as its packaged example has it, or empty."""
    if not offer.spec.example:
        return config_class(offer)()
    package = files(offer.spec.target.partition(".")[0])
    model_config = parse_config(package.joinpath(offer.spec.example).read_text(encoding="utf-8")).model_config
    return getattr(model_config, model_name(model_config))


def _write_towers(settings: Any, objectives: Mapping[str, _Objective], spec: ModelSpec) -> None:
    """Put a tower for each label in the place of the example's."""
    repeated = [f for f in settings.DESCRIPTOR.fields if f.is_repeated and f.message_type is not None]
    fields = [f for f in repeated if "tower_name" in f.message_type.fields_by_name]
    if not fields:
        raise ConfigError(
            f"{spec.name} has no list of towers that tzrec init could fill. Start from its example: tzrec show-model "
            f"{spec.name}"
        )
    towers = getattr(settings, fields[0].name)
    examples = list(towers)
    del towers[:]
    for label, objective in objectives.items():
        tower = towers.add(tower_name=label.replace(".", "_"), label_name=label)
        if examples and examples[0].HasField("mlp"):
            tower.mlp.CopyFrom(examples[0].mlp)
        text_format.Merge("\n".join(objective.lines), tower)


def _groups(
    spec: ModelSpec, settings: Any, features: list[DraftFeature], table: Table
) -> Iterator[tuple[str, str, list[str]]]:
    """Name, type and features of each group that the model reads; `settings` names them where the spec does not."""
    found: set[str] = set()
    for group in spec.groups:
        for name in _group_names(group, settings):
            if name not in found:
                found.add(name)
                kind = group.types[0]
                members = _steps(features, table) if kind in _SEQUENCES else _members(name, kind, features)
                if not members:
                    what = "lists" if kind in _SEQUENCES else "ids" if kind == "WIDE" else "single values"
                    raise ConfigError(
                        f"{spec.name} needs a group {name!r} of type {kind}: columns of {what}, and there are none"
                    )
                yield name, kind, members


def _group_names(group: Group, settings: Any) -> list[str]:
    if not group.from_field:
        return [("features" if group.name == "*" else group.name)] if group.required else []
    steps = group.from_field.split(".")
    names = _texts_at(settings, steps)
    if not names and group.required:
        names = ["_".join(steps[:-1]) or steps[0]]
        _write_at(settings, steps, names[0])
    return names


def _texts_at(message: Any, steps: list[str]) -> list[str]:
    """The texts at a dotted path, those of all elements where a field is repeated."""
    name, *rest = steps
    value = getattr(message, name)
    if message.DESCRIPTOR.fields_by_name[name].is_repeated:
        items = list(value)
    else:
        items = [value] if message.HasField(name) else []
    return [text for item in items for text in (_texts_at(item, rest) if rest else [item])]


def _write_at(message: Any, steps: list[str], text: str) -> None:
    """Write a text at a dotted path, as the first element where a field is repeated."""
    name, *rest = steps
    is_repeated = message.DESCRIPTOR.fields_by_name[name].is_repeated
    value = getattr(message, name)
    if rest:
        _write_at(value.add() if is_repeated else value, rest, text)
    elif is_repeated:
        value.append(text)
    else:
        setattr(message, name, text)


def _members(name: str, kind: str, features: list[DraftFeature]) -> list[str]:
    """The features of a group that is no sequence; one called after user or item takes what tells of it."""
    found = [f for f in features if not f.is_sequence and (f.is_sparse or kind != "WIDE")]
    sides = next((sides for side, sides in _SIDES_OF_GROUPS.items() if side in name), ())
    return [f.name for f in found if f.side in sides] or [f.name for f in found]


def _steps(features: list[DraftFeature], table: Table) -> list[str]:
    """One sequence, behind the columns of single values that its steps are compared with."""
    known = {feature.name: feature for feature in features}
    sequences = [[n for n in table.sequences[f.name] if n in known] for f in features if f.is_sequence]
    if not sequences:
        return []

    def query(names: list[str]) -> list[str]:
        partners = [table.partner(table.columns[name]) for name in names]
        return list(dict.fromkeys(name for name in partners if name in known))

    steps = max(sequences, key=lambda names: len(query(names)))
    singles = [f.name for f in features if f.is_sparse and f.column.is_single and f.side != "user"]
    return [*(query(steps) or singles[:1]), *steps]


def _batch_size(num_rows: int) -> int:
    """Up to 1024 rows, and fewer where that would be hardly any steps."""
    return 2 ** min(10, max(4, int(math.log2(max(num_rows / 20, 1)))))


def _log_steps(num_rows: int) -> int:
    return max(1, min(100, num_rows // _batch_size(num_rows) // 4))


def _train_config(num_rows: int) -> list[str]:
    steps = math.ceil(num_rows / _batch_size(num_rows))
    return [
        "train_config {",
        "  # Embedding tables: only the rows that a batch looks up move.",
        "  sparse_optimizer { rowwise_adagrad_optimizer { lr: 0.05 } constant_learning_rate {} }",
        "  # All other parameters.",
        "  dense_optimizer { adam_optimizer { lr: 0.001 } constant_learning_rate {} }",
        f"  num_epochs: {max(1, min(5, round(500 / steps)))}  # with more, small tables are learnt by heart",
        f"  log_step_count_steps: {_log_steps(num_rows)}",
        "  seed: 1",
        "}",
    ]


def _data_config(num_rows: int, file_format: str, objectives: Mapping[str, _Objective]) -> list[str]:
    return [
        "data_config {",
        f"  {file_format}",
        "  fg_mode: FG_NORMAL  # columns are raw: texts and numbers, not ids",
        *(f"  label_fields: {quoted(label)}  # {objective.seen}" for label, objective in objectives.items()),
        f"  batch_size: {_batch_size(num_rows)}",
        "  shuffle: true",
        *(["  num_workers: 0  # for a small table, no processes that read ahead"] if num_rows < 50_000 else []),
        "}",
    ]


def _model_config(
    offer: Offer[ModelSpec], settings: Any, groups: list[tuple[str, str, list[str]]], objective: Sequence[str]
) -> list[str]:
    meanings = field_comments(settings.DESCRIPTOR)
    is_only = len(registry().by_name(ModelSpec)[offer.spec.name]) == 1
    return [
        "model_config {",
        *(
            f"  feature_groups {{ group_name: {quoted(name)} group_type: {kind} feature_names: "
            f"[{', '.join(map(quoted, members))}] }}"
            for name, kind, members in groups
        ),
        *(
            f"  # {field.name}: {' '.join(meanings[field.name].split())}"
            for field, _ in settings.ListFields()
            if field.name in meanings
        ),
        f"  {offer.spec.name if is_only else offer.field} {{",
        *text_format.MessageToString(settings, indent=4).splitlines(),
        "  }",
        *(f"  {line}" for line in objective),
        "}",
    ]
