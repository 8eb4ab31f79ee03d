"""Reads protobuf text and finds all of its mistakes, not only the first.

The parser stops at the first mistake. Each one is noted, its field is mended (a misspelt name) or blanked out,
and the rest is read again, so that a user sees everything at once.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from google.protobuf import text_format
from google.protobuf.message import Message

from tzrec_core.config.assemble import Assembled, config_class
from tzrec_core.config.explain import (
    is_assembled_model_config,
    is_repetition,
    message_named,
    plain_message,
    unknown_any_type,
    unknown_field,
    unknown_field_in,
    unknown_model,
    value_mistake,
)
from tzrec_core.config.required import missing_fields
from tzrec_core.errors import ConfigError, TzrecError, nearest

_MISSES_END = re.compile(r'expected "[]},>]"')
_MANY = 30  # mistakes in one text: what follows is rarely a config


@dataclass
class Parsed:
    """What could be read of a config.

    Attributes:
        message: the config without the fields that are wrong.
        problems: the mistakes, each starting with its place.
        complete: whether everything was read.
        set_aside: paths of the fields that are wrong, so that they are not also reported as missing.
        missing: paths of the required fields that the settings in a slot lack; the slot is left out.
        plugin_error: the first mistake that a plugin is to blame for.
        only_plugins: no mistake has another reason.
    """

    message: Message
    problems: list[str] = field(default_factory=list)
    complete: bool = True
    set_aside: set[str] = field(default_factory=set)
    missing: list[str] = field(default_factory=list)
    plugin_error: TzrecError | None = None
    only_plugins: bool = False


def parse_text(text: str, schema: Assembled) -> Parsed:
    """Parse as much of `text` as can be parsed; the mistakes start with `line:column:`."""
    return _Reader(text, schema).read()


class _Reader:
    def __init__(self, text: str, schema: Assembled) -> None:
        self._schema = schema
        self._original = self._text = text
        self._edits: list[tuple[int, int]] = []  # (offset in the text of then, growth)
        self._found: list[tuple[int, str]] = []  # (offset in the original, mistake)
        self._removed: list[tuple[int, str]] = []  # (offset in the original, field name)
        self._mended: set[int] = set()  # offsets in the original
        self._missing: list[tuple[int, str]] = []  # (offset in the original, path)
        self._plugin_errors: list[TzrecError] = []

    def read(self) -> Parsed:
        self._remove_unknown_any_types()
        while True:
            message, before = self._schema.root(), self._text
            self._remove_incomplete_slots()
            try:
                text_format.Parse(self._text, message)
            except text_format.ParseError as error:
                self._handle(error)
            else:
                return self._result(message, complete=True)
            if self._text == before or len(self._found) >= _MANY:
                return self._result(message, complete=False)

    def _result(self, message: Message, *, complete: bool) -> Parsed:
        found = sorted(self._found)
        problems = [f"{_place(self._original, offset)} {text}" for offset, text in found]
        if len(found) >= _MANY:
            problems.append("There may be more; mend these first.")
        tree = _fields(self._text)
        return Parsed(
            message,
            problems,
            complete,
            {_path(tree, self._current(offset), message.DESCRIPTOR) + name for offset, name in self._removed},
            [path for _, path in sorted(self._missing)],
            self._plugin_errors[0] if self._plugin_errors else None,
            bool(found) and len(found) == len(self._plugin_errors),
        )

    def _handle(self, error: text_format.ParseError) -> None:
        offset = _offset(self._text, error.GetLine() or 1, error.GetColumn() or 1)
        tree = _fields(self._text)
        chain = _chain(tree, offset)
        unclosed = next((f for f in _all(tree) if not f.closed), None)
        if unclosed is not None and _MISSES_END.match(plain_message(error)):
            self._note(unclosed.start, f"{unclosed.name} is opened and never closed")
            return
        blamed = _without_value(tree, self._text, offset) or (chain[-1] if chain else None)
        if blamed is None:
            self._note(offset, value_mistake(error, ""))
        elif self._original_offset(blamed.start) in self._mended:
            self._blank(blamed)  # what the mended name was meant to be remains unknown
        elif twin := self._mended_twin(tree, chain, blamed) if is_repetition(error) else None:
            self._blank(twin)
        elif unknown := unknown_field_in(error):
            self._unknown(blamed, *unknown)
        elif not blamed.has_value:
            self._note(blamed.start, f"{blamed.name} has no value")
            self._blank(blamed)
        else:
            self._note(blamed.start if is_repetition(error) else offset, value_mistake(error, blamed.name))
            self._blank(blamed)

    def _mended_twin(self, tree: list["_Field"], chain: list["_Field"], blamed: "_Field") -> "_Field | None":
        level = [f for body in chain[-2].bodies for f in body.fields] if len(chain) > 1 else tree
        twins = (f for f in level if f.name == blamed.name and self._original_offset(f.start) in self._mended)
        return next(twins, None)

    def _unknown(self, blamed: "_Field", descriptor: Any, name: str) -> None:
        names = [f.name for f in descriptor.fields]
        near = nearest(name, names)
        if is_assembled_model_config(descriptor):
            error = unknown_model(name)
            self._note(blamed.start, str(error))
            if not isinstance(error, ConfigError):
                self._plugin_errors.append(error)
                near = None
        else:
            self._note(blamed.start, unknown_field(descriptor, name))
        if near is None:
            self._blank(blamed)
            return
        start, end = blamed.start, blamed.start + len(blamed.name)
        self._mended.add(self._original_offset(start))
        self._text = self._text[:start] + near + self._text[end:]
        self._edits.append((start, len(near) - len(name)))

    def _remove_unknown_any_types(self) -> None:
        """protobuf reports those without a position, so they are found first."""
        for match in _ANY_TYPE.finditer(_without_strings(self._text)):
            full_name = match["type"]
            if full_name in self._schema.messages:
                continue
            error = unknown_any_type(full_name, self._schema.messages)
            self._note(match.start(), str(error))
            self._plugin_errors.append(error)
            chain = _chain(_fields(self._text), match.start())
            if chain:
                self._blank(chain[-2] if len(chain) > 1 else chain[-1])

    def _remove_incomplete_slots(self) -> None:
        """protobuf packs the settings in a slot at once and cannot leave them incomplete."""
        while found := incomplete_slot(self._text, self._schema):
            slot, missing = found
            tree = _fields(self._text)
            path = _path(tree, slot.bodies[0].start + 1, self._schema.root.DESCRIPTOR)
            self._missing += [(self._original_offset(slot.start), path + name) for name in missing]
            chain = _chain(tree, slot.start)
            self._blank(chain[-2] if len(chain) > 1 else slot)

    def _note(self, offset: int, text: str) -> None:
        self._found.append((self._original_offset(offset), text))

    def _blank(self, wrong: "_Field") -> None:
        self._removed.append((self._original_offset(wrong.start), wrong.name))
        blank = re.sub(r"[^\n]", " ", self._text[wrong.start : wrong.end])
        self._text = self._text[: wrong.start] + blank + self._text[wrong.end :]

    def _original_offset(self, offset: int) -> int:
        for position, growth in reversed(self._edits):
            offset = max(position, offset - growth) if offset > position else offset
        return offset

    def _current(self, offset: int) -> int:
        for position, growth in self._edits:
            offset += growth if offset > position else 0
        return offset


def incomplete_slot(text: str, schema: Assembled) -> "tuple[_Field, list[str]] | None":
    """The last slot of a plugin in `text` whose settings lack required fields, and which; None without any."""
    if "[" not in text:
        return None
    for slot in reversed(list(_all(_fields(text)))):  # the last first, so that inner ones come before outer ones
        offer = schema.messages.get(_type_name(slot))
        if not slot.name.startswith("[") or offer is None or not slot.bodies:
            continue
        settings, body = config_class(offer)(), slot.bodies[0]
        try:
            text_format.Parse(text[body.start + 1 : body.end - 1], settings)
        except text_format.ParseError:
            continue
        if missing := list(missing_fields(settings)):
            return slot, missing
    return None


def _place(text: str, offset: int) -> str:
    line = text.count("\n", 0, offset) + 1
    column = offset - (text.rfind("\n", 0, offset) + 1) + 1
    return f"{line}:{column}:"


def _offset(text: str, line: int, column: int) -> int:
    start = 0
    for _ in range(line - 1):
        start = text.find("\n", start) + 1
    return start + column - 1


# The tree of fields in a text, with the extent of each. Brackets decide, so it survives most mistakes.

_TOKEN = re.compile(
    r"""(?P<skip>\s+|\#[^\n]*)
      | (?P<string>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')
      | (?P<word>[\w.+\-/%]+)
      | (?P<mark>.)""",
    re.VERBOSE | re.DOTALL,
)
_ANY_TYPE = re.compile(r"\[\s*(?P<url>[\w.\-]+(?:/[\w.\-]+)*)\s*/\s*(?P<type>[\w.]+)\s*\]\s*:?\s*[{<]")
_OPEN, _CLOSE = "{<", "}>"


@dataclass
class _Body:
    start: int
    end: int = 0
    fields: list["_Field"] = field(default_factory=list)


@dataclass
class _Field:
    name: str
    start: int
    end: int
    has_value: bool = False
    closed: bool = True
    bodies: list[_Body] = field(default_factory=list)


@dataclass
class _Token:
    kind: str
    text: str
    start: int
    end: int


def _without_strings(text: str) -> str:
    """`text` with spaces in place of its strings and comments."""
    parts = []
    for match in _TOKEN.finditer(text):
        hidden = match["string"] or (match["skip"] and match["skip"].startswith("#"))
        parts.append(" " * len(match[0]) if hidden else match[0])
    return "".join(parts)


def _fields(text: str) -> list[_Field]:
    tokens = [
        _Token(m.lastgroup or "", m[0], m.start(), m.end()) for m in _TOKEN.finditer(text) if m.lastgroup != "skip"
    ]
    return _Scanner(tokens, len(text)).fields(outermost=True)


class _Scanner:
    def __init__(self, tokens: list[_Token], length: int) -> None:
        self._tokens = tokens
        self._length = length
        self._at = 0

    def _next_is(self, texts: str) -> bool:
        return self._at < len(self._tokens) and self._tokens[self._at].text in tuple(texts)

    def _take(self) -> _Token:
        self._at += 1
        return self._tokens[self._at - 1]

    def fields(self, *, outermost: bool = False) -> list[_Field]:
        """The fields up to the bracket that closes them, which is left to the caller."""
        found = []
        while self._at < len(self._tokens) and (outermost or not self._next_is(_CLOSE)):
            if self._next_is(",;"):
                self._take()
            else:
                found.append(self._field())
        return found

    def _field(self) -> _Field:
        first = self._tokens[self._at]
        if first.text in _OPEN:  # a body without a name
            found = _Field("", first.start, first.end, has_value=True)
            self._body(found)
            return found
        self._take()
        found = _Field(first.text, first.start, first.end)
        if first.text == "[":  # `[type.url/Name] { ... }`
            while self._at < len(self._tokens) and not self._next_is(_OPEN + _CLOSE):
                token = self._take()
                found.name, found.end = found.name + token.text, token.end
                if token.text == "]":
                    break
        elif first.kind != "word":  # astray
            return _Field("", first.start, first.end, has_value=True)
        colon = self._next_is(":")
        if colon:
            found.end = self._take().end
        self._value(found, colon)
        return found

    def _value(self, found: _Field, colon: bool) -> None:
        if self._next_is(_OPEN):
            self._body(found)
        elif self._next_is("["):
            self._list(found)
        elif self._at < len(self._tokens):
            kind = self._tokens[self._at].kind
            after = self._tokens[self._at + 1].text if self._at + 1 < len(self._tokens) else ""
            if kind == "string" or (colon and kind == "word" and after not in tuple(":{<")):
                found.has_value, found.end = True, self._take().end
                while kind == "string" and self._at < len(self._tokens) and self._tokens[self._at].kind == kind:
                    found.end = self._take().end

    def _list(self, found: _Field) -> None:
        self._take()
        found.has_value = True
        while self._at < len(self._tokens) and not self._next_is("]" + _CLOSE):
            if self._next_is(_OPEN):
                self._body(found)
            else:
                self._take()
        if self._next_is("]"):
            found.end = self._take().end
        else:
            found.end = self._tokens[self._at - 1].end
            found.closed = False

    def _body(self, found: _Field) -> None:
        body = _Body(self._take().start)
        found.has_value = True
        found.bodies.append(body)
        body.fields = self.fields()
        if self._at < len(self._tokens):
            found.end = body.end = self._take().end
        else:
            found.end = body.end = self._length + 1
            found.closed = False


def _chain(level: list[_Field], offset: int) -> list[_Field]:
    """The fields around `offset`, outermost first."""
    chain: list[_Field] = []
    while True:
        inner = next((f for f in level if f.start <= offset < f.end), None)
        if inner is None:
            return chain
        chain.append(inner)
        level = [f for body in inner.bodies for f in body.fields]


def _path(level: list[_Field], offset: int, descriptor: Any) -> str:
    """Path of the message around `offset`, ending in a dot, as protobuf writes it; `level` is in `descriptor`."""
    for inner in level:
        for index, body in enumerate(inner.bodies):
            if not body.start < offset < body.end:
                continue
            if inner.name.startswith("["):
                return _path(body.fields, offset, message_named(_type_name(inner)))
            known = descriptor.fields_by_name.get(inner.name) if descriptor is not None else None
            index += sum(len(f.bodies) for f in level if f.name == inner.name and f.start < inner.start)
            here = f"{inner.name}[{index}]." if known is not None and known.is_repeated else f"{inner.name}."
            return here + _path(body.fields, offset, known.message_type if known is not None else None)
    return ""


def _type_name(slot: _Field) -> str:
    return slot.name.strip("[]").rpartition("/")[2]


def _without_value(level: list[_Field], text: str, offset: int) -> _Field | None:
    """The field without a value that ends right before `offset`, where the parser misses the value."""
    for candidate in _all(level):
        if not candidate.has_value and candidate.end <= offset and not text[candidate.end : offset].strip():
            return candidate
    return None


def _all(level: list[_Field]) -> Iterator[_Field]:
    for found in level:
        yield found
        for body in found.bodies:
            yield from _all(body.fields)
