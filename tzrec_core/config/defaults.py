"""From messages to plain Python: what constructors take."""

import struct
from typing import Any

from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message


def config_to_kwargs(message: Message) -> dict[str, Any]:
    """A message as keyword arguments, with proto2 defaults filled in.

    Every singular scalar is present, with its default when unset; every repeated field is a list, every map a
    dict, both possibly empty; enums are their names; sub-messages and oneof members are present only when set.
    64-bit integers are ints, and a float is the number that the config shows: 0.1, not 0.10000000149. A Struct
    (`operator_params`) is the dict it stands for. (protobuf's own MessageToDict leaves proto2 defaults out and
    turns 64-bit integers into strings.)
    """
    descriptor: Any = message.DESCRIPTOR  # the stubs know two kinds of descriptors that share no base
    if descriptor.full_name == "google.protobuf.Struct":
        return json_format.MessageToDict(message)
    kwargs: dict[str, Any] = {}
    for field in descriptor.fields:
        value = getattr(message, field.name)
        if field.message_type and field.message_type.GetOptions().map_entry:
            values = field.message_type.fields_by_name["value"]
            kwargs[field.name] = {k: _plain(v, values) for k, v in value.items()}
        elif field.is_repeated:
            kwargs[field.name] = [_plain(v, field) for v in value]
        elif not (field.message_type or field.containing_oneof) or message.HasField(field.name):
            kwargs[field.name] = _plain(value, field)
    return kwargs


def _plain(value: Any, field: FieldDescriptor) -> Any:
    if field.message_type:
        return config_to_kwargs(value)
    if field.enum_type:
        return field.enum_type.values_by_number[value].name
    return _shortest(value) if field.type == FieldDescriptor.TYPE_FLOAT else value


def _shortest(value: float) -> float:
    """The shortest decimal number that is stored as this 32-bit float."""
    stored = struct.pack("f", value)
    texts = (f"{value:.{digits}g}" for digits in range(6, 9))
    return next((float(text) for text in texts if struct.pack("f", float(text)) == stored), value)
