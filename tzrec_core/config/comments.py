"""What the fields of a config mean, as their authors wrote it: for `tzrec show-model` and the docs.

Generated code carries no comments. A plugin ships its .proto beside the generated module, the core ships the
comments of its own as `protos/comments.json`, and a dataclass has them in its fields' metadata. What ships no
comments has none: that is never an error.
"""

import dataclasses
import functools
import json
import re
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import PurePosixPath
from typing import Any

CORE_PACKAGE = "tzrec_core.protos"


def message_comment(descriptor: Any) -> str:
    """What a message is for; empty when nobody wrote it down.

    Args:
        descriptor: the message's `DESCRIPTOR`.
    """
    full_name = _written_name(descriptor)
    return _comments(full_name, descriptor.file.name).get(full_name, "")


def field_comments(descriptor: Any) -> dict[str, str]:
    """What each field of a message means; fields without a comment are left out.

    Args:
        descriptor: the message's `DESCRIPTOR`.
    """
    full_name = _written_name(descriptor)
    comments = _comments(full_name, descriptor.file.name)
    found = {f.name: comments.get(f"{full_name}.{f.name}", "") for f in descriptor.fields}
    return {name: comment for name, comment in found.items() if comment}


def _written_name(descriptor: Any) -> str:
    """The name of the message as its source has it; the assembled root is a copy of the core's."""
    return re.sub(r"^tzrec_assembled_\w+\.", f"{CORE_PACKAGE}.", descriptor.full_name)


def _comments(full_name: str, proto: str) -> dict[str, str]:
    if full_name.startswith(f"{CORE_PACKAGE}."):
        return _core_comments()
    from tzrec_core.config.dataclass_message import dataclass_of

    source = dataclass_of(full_name)
    return _proto_comments(proto) if source is None else _dataclass_comments(full_name, source)


@functools.cache
def _core_comments() -> dict[str, str]:
    try:
        text = files(CORE_PACKAGE).joinpath("comments.json").read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    comments: dict[str, str] = json.loads(text)
    return comments


@functools.cache
def _proto_comments(proto: str) -> dict[str, str]:
    path = PurePosixPath(proto)
    try:
        text = files(".".join(path.parent.parts)).joinpath(path.name).read_text(encoding="utf-8")
    except (ImportError, OSError, ValueError):
        return {}
    return scan(text).comments()


def _dataclass_comments(full_name: str, source: type) -> dict[str, str]:
    doc = source.__doc__ or ""
    generated = doc.startswith(f"{source.__name__}(")  # what @dataclass writes where there is no docstring
    comments = {full_name: "" if generated else " ".join(doc.split())}
    for item in dataclasses.fields(source):
        comments[f"{full_name}.{item.name}"] = str(item.metadata.get("doc", ""))
    return comments


@dataclass(frozen=True)
class Part:
    """A message, field, oneof, enum or enum value as it stands in a .proto.

    Attributes:
        kind: `message`, `field`, `oneof`, `enum` or `value`.
        path: names from the outermost message on, joined by dots, without the package.
        line: counted from 1.
        comment: the `//` lines right above it, joined by spaces.
        number: of a field or value.
        label: of a field, `optional`, `required`, `repeated` or empty.
        type: of a field, as written.
        default: of a field, as written.
        oneof: the oneof that holds the field, or empty.
    """

    kind: str
    path: str
    line: int
    comment: str
    number: int = 0
    label: str = ""
    type: str = ""
    default: str | None = None
    oneof: str = ""


@dataclass
class Source:
    """A .proto as `scan` reads it.

    Attributes:
        package: as declared.
        imports: paths of the imported files.
        parts: in the order of the text.
        unread: numbers of the lines that are not of the style that `scan` reads.
    """

    package: str = ""
    imports: list[str] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    unread: list[int] = field(default_factory=list)

    def comments(self) -> dict[str, str]:
        """Full name -> comment, for the parts that have one."""
        prefix = f"{self.package}." if self.package else ""
        return {f"{prefix}{part.path}": part.comment for part in self.parts if part.comment}


_OPEN = re.compile(r"(message|enum|oneof) (\w+) ?\{(\})?")
_FIELD = re.compile(r"(?:(required|optional|repeated) )?(map<\w+, \w+>|[\w.]+) (\w+) = (\d+)(?: \[default = (.+)\])?;")
_VALUE = re.compile(r"(\w+) = (-?\d+);")


def scan(text: str) -> Source:
    """Read a .proto of our style: one statement per line, comments as `//` lines above what they explain.

    Other styles are read as far as their lines look alike; the rest is listed in `unread`.
    """
    source = Source()
    scopes: list[tuple[str, str]] = []
    comment: list[str] = []
    for number, line in enumerate(map(str.strip, text.splitlines()), 1):
        if line.startswith("//"):
            comment.append(line.removeprefix("//").strip())
            continue
        explained, comment = " ".join(comment), []
        inside = ".".join(name for kind, name in scopes if kind != "oneof")
        prefix = f"{inside}." if inside else ""
        if opened := _OPEN.fullmatch(line):
            kind, name, closed = opened.groups()
            source.parts.append(Part(kind, f"{prefix}{name}", number, explained))
            if not closed:
                scopes.append((kind, name))
        elif line == "}" and scopes:
            scopes.pop()
        elif scopes and scopes[-1][0] == "enum" and (value := _VALUE.fullmatch(line)):
            source.parts.append(Part("value", prefix + value[1], number, explained, number=int(value[2])))
        elif scopes and (found := _FIELD.fullmatch(line)):
            label, kind, name, tag, default = found.groups()
            oneof = scopes[-1][1] if scopes[-1][0] == "oneof" else ""
            source.parts.append(
                Part("field", prefix + name, number, explained, int(tag), label or "", kind, default, oneof)
            )
        elif line.startswith("package "):
            source.package = line.removeprefix("package ").rstrip("; ")
        elif line.startswith("import ") and line.count('"') == 2:
            source.imports.append(line.split('"')[1])
        elif line and line != 'syntax = "proto2";':
            source.unread.append(number)
            scopes += [("oneof", "")] * max(line.count("{") - line.count("}"), 0)
            del scopes[len(scopes) - max(line.count("}") - line.count("{"), 0) :]
    if scopes:
        source.unread.append(text.count("\n") + 1)
    return source
