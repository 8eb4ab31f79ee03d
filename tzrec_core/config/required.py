"""Finds required fields that are not set.

Message.FindInitializationErrors of protobuf 7 invents paths or crashes the process when a map stands before a
missing field.
"""

from collections.abc import Iterator
from typing import Any


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
