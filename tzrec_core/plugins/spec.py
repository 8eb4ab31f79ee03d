"""What a plugin can offer, as frozen dataclasses: pure data, checked at discovery, without torch.

A spec names things by `"module:attribute"` strings; nothing is imported until a run uses it.
`Spec.problems()` says what is wrong with one, in the words the user reads.
"""

import re
from collections.abc import Set
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9_]*\Z")
_MODEL_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*\Z")
_TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*\Z")


_GROUP_TYPES = ("DEEP", "WIDE", "SEQUENCE", "JAGGED_SEQUENCE")


class Task(StrEnum):
    """What a model is for; it fixes the prediction keys (see `RankModel` and its siblings)."""

    RANK = "rank"
    MULTITASK = "multitask"
    MATCH = "match"
    TREE = "tree"
    SID = "sid"
    GENERATE = "generate"


class Trait(StrEnum):
    """What a model claims to be able to do; the conformance kit proves each claim."""

    SEQUENCE = "sequence"
    SHARDED = "sharded"
    TORCH_EXPORT = "torch_export"
    AOTI = "aoti"
    SCRIPT = "script"
    ONNX = "onnx"
    QUANT = "quant"
    ROWWISE_LOSS = "rowwise_loss"
    BATCH_STATS = "batch_stats"


class Output(StrEnum):
    """What a model puts out, decided by its losses; what a loss or a metric reads.

    BINARY: one logit per row, predictions `logits` and `probs`, both (B,).
    SOFTMAX: C logits per row, predictions `logits` and `probs`, both (B, C); `probs1` (B,) when C = 2.
    VALUE: a real number per row, prediction `y` (B,).
    SIMILARITY: scores of a row's candidates, prediction `similarity`.
    """

    BINARY = "binary"
    SOFTMAX = "softmax"
    VALUE = "value"
    SIMILARITY = "similarity"


def _holds(value: object, kind: type) -> bool:
    """Whether `value` is a tuple, list or set of `kind`; a lone string or a forgotten comma is not."""
    return isinstance(value, tuple | list | set | frozenset) and all(isinstance(item, kind) for item in value)


def _collection_problem(field: str, value: object, kind: type[StrEnum]) -> list[str]:
    if _holds(value, kind):
        return []
    names = ", ".join(member.name for member in kind)
    return [f"{field} {value!r} is not a collection of {kind.__name__} ({names})"]


@dataclass(frozen=True)
class Group:
    """A feature group that a model reads.

    Args:
        name: the group's name; `"*"` = the first group of the config, whatever its name; empty with
            `from_field`.
        types: allowed `group_type` names, such as `("DEEP", "SEQUENCE")`.
        required: False when the model does without.
        from_field: dotted path of the model's config field that names the group, such as
            `"user_tower.input"`; repeated messages on the way are followed into each element.
    """

    name: str = ""
    types: tuple[str, ...] = ("DEEP",)
    required: bool = True
    from_field: str = ""

    def problems(self) -> list[str]:
        """What is wrong with this group, empty when nothing is."""
        found = []
        if bool(self.name) == bool(self.from_field):
            found.append("a Group takes either a name or from_field")
        if not _holds(self.types, str) or not self.types or set(self.types) - set(_GROUP_TYPES):
            found.append(f"Group types {self.types!r} is not a tuple of {', '.join(_GROUP_TYPES)}")
        return found


@dataclass(frozen=True)
class Spec:
    """The part that all specs share.

    Args:
        name: what configs and the command line call it.
        target: `"module:Class"`, imported on first use.
        config: `"module_pb2:Message"` of its settings; a model's may be `"module:Class"` of a frozen dataclass.
    """

    name: str
    target: str
    config: str = ""

    kind: ClassVar[str] = ""
    needs_config: ClassVar[bool] = True

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that reaches it."""
        return (self.name,)

    @classmethod
    def label(cls) -> str:
        """The kind in words, such as `seq encoder`."""
        return cls.kind.replace("_", " ")

    def problems(self) -> list[str]:
        """What is wrong with this spec, empty when nothing is."""
        found = []
        if not isinstance(self.name, str) or not _NAME.match(self.name):
            found.append(f"name {self.name!r} is not a letter followed by letters, digits and _")
        if not isinstance(self.target, str) or not _TARGET.match(self.target):
            found.append(f"target {self.target!r} is not of the form 'module:Class'")
        if (self.config or self.needs_config) and not (isinstance(self.config, str) and _TARGET.match(self.config)):
            found.append(f"config {self.config!r} is not of the form 'module_pb2:Message'")
        summary = getattr(self, "summary", None)
        if not isinstance(summary, str) or not summary.strip():
            found.append("summary is empty")
        return found


@dataclass(frozen=True)
class ModelSpec(Spec):
    """A model.

    Args:
        name: its field in `model_config`, such as `deepfm { ... }`.
        task: what it is for.
        summary: one sentence for listings.
        paper: where it was published.
        example: path of a packaged config inside the plugin's package.
        groups: the feature groups it reads.
        traits: what it claims to be able to do.
        aliases: other names that work as `name` does.
        replaces: retired names; asking for one names this model.
    """

    task: Task = Task.RANK
    summary: str = ""
    paper: str = ""
    example: str = ""
    groups: tuple[Group, ...] = ()
    traits: frozenset[Trait] = frozenset()
    aliases: tuple[str, ...] = ()
    replaces: tuple[str, ...] = ()

    kind: ClassVar[str] = "model"

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that reaches it: its own and the aliases."""
        return (self.name, *self.aliases)

    def problems(self) -> list[str]:
        """What is wrong with this spec, empty when nothing is."""
        found = super().problems()
        if not isinstance(self.task, Task):
            found.append(f"task {self.task!r} is not a Task ({', '.join(t.name for t in Task)})")
        found += _collection_problem("traits", self.traits, Trait)
        if _holds(self.groups, Group):
            found += [problem for group in self.groups for problem in group.problems()]
        else:
            found.append(f"groups {self.groups!r} is not a tuple of Group")
        for field in ("aliases", "replaces"):
            if not _holds(getattr(self, field), str):
                found.append(f"{field} {getattr(self, field)!r} is not a tuple of names")
        if not found:
            names = (*self.names, *self.replaces)
            found += [f"name {n!r} is not in snake_case" for n in names if not _MODEL_NAME.match(n)]
            found += [f"name {n!r} is given twice" for n in sorted({n for n in names if names.count(n) > 1})]
        return found


@dataclass(frozen=True)
class LossSpec(Spec):
    """A loss.

    `target(**config, reduction="mean" | "none")` is a module whose `forward(preds, labels)` returns a scalar
    or (B,).
    `preds` are the logits (BINARY, SOFTMAX, SIMILARITY) or `y` (VALUE).

    Args:
        output: what it makes the model put out.
        tasks: tasks that support it.
        num_class: smallest and largest `num_class`; None = no upper bound.
        grouping_field: the config field that names a sparse feature whose first id in each row is handed to
            `forward` as third argument; empty = none.
    """

    summary: str = ""
    output: Output = Output.BINARY
    tasks: frozenset[Task] = frozenset({Task.RANK, Task.MULTITASK})
    num_class: tuple[int, int | None] = (1, 1)
    grouping_field: str = ""

    kind: ClassVar[str] = "loss"

    def problems(self) -> list[str]:
        """What is wrong with this spec, empty when nothing is."""
        found = super().problems()
        if not isinstance(self.output, Output):
            found.append(f"output {self.output!r} is not an Output ({', '.join(o.name for o in Output)})")
        found += _collection_problem("tasks", self.tasks, Task)
        match self.num_class:
            case (int(low), None | int() as high) if 1 <= low <= (high or low):
                pass
            case _:
                found.append(f"num_class {self.num_class!r} is not (smallest, largest or None)")
        return found

    def num_class_problem(self, task: Task, num_class: int) -> str:
        """Why the loss cannot work with a model's num_class, empty when it can; matching has candidates instead."""
        low, high = self.num_class
        if task is Task.MATCH or low <= num_class <= (high or num_class):
            return ""
        wanted = f"{low}" if high == low else f"at least {low}" if high is None else f"{low} to {high}"
        return f"num_class = {num_class} does not fit {self.name}, which takes {wanted}"


@dataclass(frozen=True)
class MetricSpec(Spec):
    """A metric.

    `target(**config)` is a torchmetrics.Metric with `update(preds, labels)`, or, with a grouping field,
    `update(preds, labels, group_ids)`.

    Args:
        outputs: what it can read, in order of preference: BINARY = the probability of the positive class
            (B,), SOFTMAX = class probabilities (B, C), VALUE = `y` (B,), SIMILARITY = scores.
        tasks: tasks that support it.
        grouping_field: the config field that names a sparse feature whose first id in each row groups the
            rows.
        train: True when it can also be a train metric.
    """

    summary: str = ""
    outputs: tuple[Output, ...] = (Output.BINARY,)
    tasks: frozenset[Task] = frozenset({Task.RANK, Task.MULTITASK})
    grouping_field: str = ""
    train: bool = False

    kind: ClassVar[str] = "metric"

    def problems(self) -> list[str]:
        """What is wrong with this spec, empty when nothing is."""
        found = super().problems()
        found += _collection_problem("outputs", self.outputs or None, Output)
        found += _collection_problem("tasks", self.tasks, Task)
        return found

    def outputs_problem(self, outputs: Set[Output], num_class: int) -> str:
        """Why the metric can read nothing of what a model with these outputs predicts, empty when it can."""
        given = set(outputs)
        if Output.SOFTMAX in outputs and num_class == 2:
            given.add(Output.BINARY)  # `probs1` is the probability of the positive class
        if given & set(self.outputs):
            return ""
        return (
            f"reads {' or '.join(self.outputs)} predictions, but with these losses and num_class = {num_class} the "
            f"model gives {' and '.join(sorted(given)) or 'none'}"
        )


@dataclass(frozen=True)
class SeqEncoderSpec(Spec):
    """A sequence encoder of a DEEP group.

    `target(sequence_dim, query_dim, **config)` is a `SequenceEncoder`.
    """

    summary: str = ""

    kind: ClassVar[str] = "seq_encoder"


@dataclass(frozen=True)
class FeatureSpec(Spec):
    """A feature type: `target` is a `BaseFeature` subclass.

    The core's own are fields of `FeatureConfig`; a plugin's is
    `custom_feature { operator_name: "<name>" operator_params { ... } }`.
    """

    summary: str = ""

    kind: ClassVar[str] = "feature"
    needs_config: ClassVar[bool] = False


@dataclass(frozen=True)
class ReaderSpec(Spec):
    """A source of rows: `target` is a `BaseReader` subclass.

    The core's own are values of `data_config.dataset_type`; a plugin's stands in `data_config.reader`.
    """

    summary: str = ""

    kind: ClassVar[str] = "reader"
    needs_config: ClassVar[bool] = False


@dataclass(frozen=True)
class CallbackSpec(Spec):
    """Something that watches training: `target(**config)` is a `tzrec_core.engine.callbacks.Callback`.

    The core's own are switched by fields of `train_config`; a plugin's stands in `train_config.callbacks`.
    """

    summary: str = ""

    kind: ClassVar[str] = "callback"
    needs_config: ClassVar[bool] = False


KINDS: tuple[type[Spec], ...] = (
    ModelSpec, LossSpec, MetricSpec, SeqEncoderSpec, FeatureSpec, ReaderSpec, CallbackSpec,
)  # fmt: skip
