"""What there is to set in a message: each field with type, default and meaning, for `tzrec show-model` and the docs."""

from collections.abc import Iterator
from typing import Any, TypeAlias

from tzrec_core.config.comments import field_comments

# A message's DESCRIPTOR and its fields: the type stubs of protobuf disagree with themselves about their classes.
Descriptor: TypeAlias = Any
FieldDescriptor: TypeAlias = Any


def field_tables(title: str, descriptor: Descriptor) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """A table of a message's fields, then one for each message that they hold, however many fields hold it.

    Args:
        title: of the first table; the others are called `MLP { ... }` and so on.
        descriptor: the message's `DESCRIPTOR`.

    Yields:
        title and rows, each with the keys `field`, `type`, `default` and `meaning`.
    """
    waiting, seen = [(title, descriptor)], {descriptor.full_name}
    while waiting:
        title, descriptor = waiting.pop(0)
        yield title, [_row(field, descriptor) for field in descriptor.fields]
        for field in descriptor.fields:
            inner = field.message_type
            if inner is not None and inner.full_name not in seen:
                seen.add(inner.full_name)
                waiting.append((f"{inner.name} {{ ... }}", inner))


def field_rows(descriptor: Descriptor, prefix: str = "", inside: tuple[str, ...] = ()) -> list[dict[str, str]]:
    """Every field with its path, those of messages within messages too, until a message holds itself.

    Args:
        descriptor: the message's `DESCRIPTOR`.
        prefix: what each path begins with.
        inside: full names of the messages around it, whose fields are not followed again.

    Returns:
        rows with the keys `field`, `type`, `default` and `meaning`.
    """
    rows = []
    for field in descriptor.fields:
        row = _row(field, descriptor)
        rows.append({**row, "field": prefix + field.name})
        inner = field.message_type
        if inner is not None and inner.full_name not in inside:
            rows += field_rows(inner, f"{prefix}{field.name}.", (*inside, inner.full_name))
    return rows


def _row(field: FieldDescriptor, descriptor: Descriptor) -> dict[str, str]:
    return {
        "field": field.name,
        "type": _type(field),
        "default": _default(field),
        "meaning": field_comments(descriptor).get(field.name, ""),
    }


def _type(field: FieldDescriptor) -> str:
    names = {
        field.TYPE_BOOL: "bool", field.TYPE_STRING: "string", field.TYPE_FLOAT: "float",
        field.TYPE_DOUBLE: "float", field.TYPE_BYTES: "bytes",
    }  # fmt: skip
    if field.message_type is not None:
        kind = field.message_type.name
    elif field.enum_type is not None:
        kind = " | ".join(v.name for v in field.enum_type.values)
    else:
        kind = names.get(field.type, "int" if field.cpp_type != field.CPPTYPE_UINT32 else "int >= 0")
    return f"list of {kind}" if field.is_repeated else kind


def _default(field: FieldDescriptor) -> str:
    if field.is_required:
        return "required"
    if field.is_repeated:
        return "[]"
    if field.message_type is not None or not field.has_default_value:
        return "unset"
    if field.enum_type is not None:
        return str(field.enum_type.values_by_number[field.default_value].name)
    value = field.default_value
    return repr(value) if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else str(value).lower()
