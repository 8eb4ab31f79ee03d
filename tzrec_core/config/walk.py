"""Visits the messages of a config."""

from collections.abc import Iterator
from typing import Any


def messages_in(message: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """`message` and all messages that are set in it, outer ones first, as (path, message); maps are left out.

    Args:
        message: any message.
        path: of `message`; empty for the root.
    """
    yield path, message
    prefix = f"{path}." if path else ""
    for field, value in message.ListFields():
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        for index, item in enumerate(value if field.is_repeated else [value]):
            yield from messages_in(item, prefix + field.name + (f"[{index}]" if field.is_repeated else ""))
