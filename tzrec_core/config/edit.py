"""`--set a.b=c`: changes single fields of a config."""

import re
from collections.abc import Sequence
from typing import Any

from google.protobuf import text_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from tzrec_core.config.assemble import assembled
from tzrec_core.config.explain import is_assembled_model_config, plain_message, unknown_field, unknown_model
from tzrec_core.config.text import incomplete_slot
from tzrec_core.errors import ConfigError

_STEP = re.compile(r"(?P<name>\w+)(?:\[(?P<index>\d+)\])?\Z")
_STRING = r'\s*(?:"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])*\')\s*'


def apply_overrides(config: Message, overrides: Sequence[str]) -> None:
    """Set fields of `config` in place.

    Args:
        config: the config to change.
        overrides: `path=value` each. Steps of a path are joined by dots, elements of repeated fields are chosen
            by `[i]` counted from 0: `feature_configs[0].id_feature.embedding_dim=8`. The value is written as in
            a config; quotes around strings may be left out. A repeated field takes a list, `[64, 32]`, or a
            single element. What was there before is replaced.

    Raises:
        ConfigError: names every override that cannot be applied.
    """
    problems = []
    for override in overrides:
        path, equals, value = override.partition("=")
        if not equals or not path.strip():
            problems.append(f"--set {override}: write it as path=value, for instance train_config.num_epochs=2")
            continue
        try:
            _set(config, path.strip(), value.strip())
        except ConfigError as error:
            problems.append(f"--set {override}: {error}")
    if problems:
        raise ConfigError(problems)


def _set(message: Any, path: str, value: str) -> None:
    *steps, last = path.split(".")
    for step in steps:
        message = _child(message, *_field(message, step))
    field, index = _field(message, last)
    scratch = _parsed(message, field, value)
    if index is not None:
        _set_element(message, field, index, scratch, value)
        return
    message.ClearField(field.name)
    if field.containing_oneof and (other := message.WhichOneof(field.containing_oneof.name)):
        message.ClearField(other)
    message.MergeFrom(scratch)


def _child(message: Any, field: FieldDescriptor, index: int | None) -> Any:
    if field.message_type is None:
        raise ConfigError(f"{field.name} holds a value, not a message; nothing can follow it")
    if field.message_type.GetOptions().map_entry:
        raise ConfigError(f'{field.name} is a map; set all of it: {field.name}=[{{key: "a" value: 1}}]')
    child = getattr(message, field.name)
    if field.is_repeated:
        if index is None:
            raise ConfigError(f"{field.name} is repeated; say which one, as {field.name}[0]")
        return _element(field, child, index)
    if index is not None:
        raise ConfigError(f"{field.name} is not repeated; leave out [{index}]")
    oneof = field.containing_oneof
    if oneof and (other := message.WhichOneof(oneof.name)) not in (None, field.name):
        raise ConfigError(
            f"the config has {other}, not {field.name}, and only one {oneof.name} is allowed; "
            f"to change it, set all of {field.name}={{ ... }}"
        )
    child.SetInParent()
    return child


def _element(field: FieldDescriptor, elements: Any, index: int) -> Any:
    if index >= len(elements):
        number = f"{len(elements)} element{'' if len(elements) == 1 else 's'}"
        raise ConfigError(f"{field.name} has {number}, so there is no [{index}]; counting starts at 0")
    return elements[index]


def _set_element(message: Any, field: FieldDescriptor, index: int, scratch: Any, value: str) -> None:
    if not field.is_repeated:
        raise ConfigError(f"{field.name} is not repeated; leave out [{index}]")
    elements = getattr(message, field.name)
    old = _element(field, elements, index)
    new = getattr(scratch, field.name)
    if len(new) != 1:
        raise ConfigError(f"{value!r} is not one element of {field.name}")
    if field.message_type:
        old.CopyFrom(new[0])
    else:
        elements[index] = new[0]


def _field(message: Any, step: str) -> tuple[FieldDescriptor, int | None]:
    match = _STEP.match(step)
    if not match:
        raise ConfigError(f"{step!r} is not a field name, nor one with an index, such as feature_configs[0]")
    name, descriptor = match["name"], message.DESCRIPTOR
    if name not in descriptor.fields_by_name:
        if is_assembled_model_config(descriptor):
            raise ConfigError(str(unknown_model(name)))
        raise ConfigError(unknown_field(descriptor, name))
    return descriptor.fields_by_name[name], int(match["index"]) if match["index"] else None


def _parsed(message: Any, field: FieldDescriptor, value: str) -> Any:
    """A message like `message` with nothing but `field` set to `value`."""
    text = value
    is_list = field.is_repeated and value.startswith("[")
    if field.type == FieldDescriptor.TYPE_STRING:
        text = f"[{', '.join(map(_quoted, _items(value)))}]" if is_list else _quoted(value)
    colon = "" if field.message_type and not is_list else ":"
    problem = "it is more than one value"
    scratch = type(message)()
    text = f"{field.name}{colon} {text}"
    try:
        if found := incomplete_slot(text, assembled()):
            raise ConfigError(f"{value!r} is not a value of {field.name}: it lacks {', '.join(found[1])}")
        text_format.Parse(text, scratch)
    except text_format.ParseError as error:
        problem = plain_message(error)
    else:
        if [f.name for f, _ in scratch.ListFields()] in ([], [field.name]):
            return scratch
    raise ConfigError(f"{value!r} is not a value of {field.name}: {problem}")


def _quoted(value: str) -> str:
    if re.fullmatch(_STRING, value):
        return value
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def _items(value: str) -> list[str]:
    """The elements of a list of strings, with or without quotes."""
    inner = value[1:].removesuffix("]")
    return [item.strip() for item in re.findall(rf"{_STRING}|[^,]+", inner) if item.strip()]
