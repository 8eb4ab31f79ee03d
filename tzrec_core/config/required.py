"""Finds required fields that are not set.

Message.FindInitializationErrors of protobuf 7 invents paths or crashes the process when a map stands before a
missing field.
"""

from collections.abc import Iterator, Sequence
from typing import Any

_FEW = 5
_LONG = 250


def missing_fields(message: Any, path: str = "") -> Iterator[str]:
    """Paths of the required fields that `message` and the messages in it lack, such as `losses[0].jrc_loss.alpha`.

    Args:
        message: any message.
        path: put in front of each, for instance `model_config.`.
    """
    for field in message.DESCRIPTOR.fields:
        here = f"{path}{field.name}"
        if field.is_required and not message.HasField(field.name):
            yield here
        elif field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        elif field.is_repeated:
            for index, item in enumerate(getattr(message, field.name)):
                yield from missing_fields(item, f"{here}[{index}].")
        elif message.HasField(field.name):
            yield from missing_fields(getattr(message, field.name), f"{here}.")


def folded(paths: Sequence[str]) -> str:
    """All of a few paths; of many, each field's name once, with as many of its places as fit into a line."""
    if len(paths) <= _FEW:
        return ", ".join(paths)
    places: dict[str, list[str]] = {}
    for path in paths:
        place, _, name = path.rpartition(".")
        places.setdefault(name, []).append(place)
    lines = ("; ".join(_where(name, found, shown) for name, found in places.items()) for shown in (2, 1, 0))
    return next((line for line in lines if len(line) <= _LONG), ", ".join(places))


def _where(name: str, places: list[str], shown: int) -> str:
    if not shown:
        return f"{name} ({len(places)} times)" if len(places) > 1 else name
    if len(places) == 1:
        return f"{places[0]}.{name}".lstrip(".")
    root = places[0].partition("[")[0]
    listed = [places[0], *(p.removeprefix(root) for p in places[1:shown])]
    rest = len(places) - len(listed)
    return f"{name} in {', '.join(listed)}{f' and {rest} more' if rest else ''}"
