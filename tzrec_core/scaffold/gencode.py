"""Renames what protoc generated, so that a new plugin's .proto needs no compiler where it is written."""

import ast
import re
from collections.abc import Callable

from google.protobuf import text_format
from google.protobuf.descriptor_pb2 import FileDescriptorProto

_SERIALIZED = re.compile(r"(?<=AddSerializedFile\()b'.*'(?=\))")
_ESCAPES = {"\n": r"\n", "\r": r"\r", "\t": r"\t", '"': r"\"", "'": r"\'", "\\": r"\\"}


def renamed_gencode(code: str, original: str, rename: Callable[[str], str]) -> str:
    """A generated `_pb2.py` under other names, byte for byte as protoc would write it.

    Args:
        code: the generated code after `rename`; the descriptor in it is lost, for it holds lengths.
        original: the generated code.
        rename: exchanges the names in a text; names of messages may not nest in one another.
    """
    match = _SERIALIZED.search(original)
    assert match is not None
    before = FileDescriptorProto.FromString(ast.literal_eval(match[0]))
    file = text_format.Parse(rename(text_format.MessageToString(before)), FileDescriptorProto())
    data = file.SerializeToString()
    code = _SERIALIZED.sub(lambda _: f"b'{_escaped(data)}'", code)
    for message in file.message_type:
        body = message.SerializeToString()
        start = data.index(body)
        place = rf"(?<=_globals\['_{message.name.upper()}'\]\._serialized_)"
        code = re.sub(rf"{place}start=\d+", f"start={start}", code)
        code = re.sub(rf"{place}end=\d+", f"end={start + len(body)}", code)
    return code


def _escaped(data: bytes) -> str:
    """As protoc writes bytes: a digit right behind a hexadecimal escape is escaped too."""
    parts: list[str] = []
    is_behind_hex = False
    for char in map(chr, data):
        if char in _ESCAPES:
            parts.append(_ESCAPES[char])
            is_behind_hex = False
        elif " " <= char <= "~" and not (is_behind_hex and char in "0123456789abcdefABCDEF"):
            parts.append(char)
            is_behind_hex = False
        else:
            parts.append(f"\\x{ord(char):02x}")
            is_behind_hex = True
    return "".join(parts)
