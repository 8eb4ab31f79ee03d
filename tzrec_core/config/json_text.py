"""Reads JSON configs and finds all of their mistakes; protobuf's own reader stops at the first."""

import json
from typing import Any

from google.protobuf import json_format, message_factory
from google.protobuf.descriptor import FieldDescriptor

from tzrec_core.config.assemble import Assembled, config_class
from tzrec_core.config.explain import (
    is_assembled_model_config,
    not_in_enum,
    plain_message,
    two_of_oneof,
    unknown_any_type,
    unknown_field,
    unknown_model,
)
from tzrec_core.config.required import missing_fields
from tzrec_core.config.text import Parsed
from tzrec_core.errors import ConfigError, TzrecError, nearest

_WHOLE = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
_KINDS = {FieldDescriptor.CPPTYPE_BOOL: "true or false", FieldDescriptor.CPPTYPE_STRING: "a string"}


def parse_json(text: str, schema: Assembled) -> Parsed:
    """Parse as much of `text` as can be parsed; the mistakes start with a path or `line:column:`."""
    reader = _Reader(schema)
    config = schema.root()
    try:
        data = json.loads(text, object_pairs_hook=reader.unique)
    except json.JSONDecodeError as error:
        return Parsed(config, [f"{error.lineno}:{error.colno}: not valid JSON: {error.msg}"], complete=False)
    except ValueError as error:  # a number with thousands of digits
        return Parsed(config, [f"not valid JSON: {error}"], complete=False)
    reader.message(data, schema.root.DESCRIPTOR, "")
    parsed = Parsed(config, reader.problems, True, reader.set_aside, reader.missing)
    try:
        json_format.ParseDict(data, config)
    except json_format.ParseError as error:
        parsed.problems.append(plain_message(error))
        parsed.complete = False
    parsed.plugin_error = reader.plugin_errors[0] if reader.plugin_errors else None
    parsed.only_plugins = bool(reader.problems) and len(reader.problems) == len(reader.plugin_errors)
    return parsed


class _Reader:
    """Takes what is wrong out of the data, and notes it."""

    def __init__(self, schema: Assembled) -> None:
        self._schema = schema
        self.problems: list[str] = []
        self.set_aside: set[str] = set()
        self.missing: list[str] = []
        self.plugin_errors: list[TzrecError] = []

    def unique(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """A JSON object; the json module keeps the last of two equal keys in silence."""
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                self.problems.append(f"{key!r} is written twice in one object; keep one")
            found[key] = value
        return found

    def message(self, data: dict[str, Any], descriptor: Any, path: str) -> None:
        """Check an object against a message."""
        seen: dict[str, str] = {}
        for key in list(data):
            here = f"{path}{key}"
            field = _field(descriptor, key)
            if field is None:
                field, data = self._mend(data, descriptor, key, here)
                if field is None:
                    continue
                key = field.name
            elif field.name in seen:
                self.problems.append(f"{here} is written twice, also as {seen[field.name]!r}; keep one")
                del data[key]
                continue
            seen[field.name] = key
            if data[key] is None:  # JSON's way to leave a field unset
                continue
            oneof = field.containing_oneof
            members = {f.name for f in oneof.fields} - {field.name} if oneof else set()
            other = next((n for n in seen if n in members and data.get(seen[n]) is not None), None)
            if other and oneof:
                self.problems.append(f"{here}: {two_of_oneof(other, field.name, oneof.name)}")
                del data[key]
            elif not self._value(data[key], field, here):
                self.set_aside.add(f"{path}{field.name}")
                del data[key]

    def _mend(
        self, data: dict[str, Any], descriptor: Any, key: str, here: str
    ) -> tuple[FieldDescriptor | None, dict[str, Any]]:
        """Report a key that is no field; go on under the name that was probably meant."""
        near = nearest(key, [f.name for f in descriptor.fields])
        if is_assembled_model_config(descriptor):
            error = unknown_model(key)
            self.problems.append(f"{here}: {error}")
            if not isinstance(error, ConfigError):
                self.plugin_errors.append(error)
                near = None
            if near is None:
                self.set_aside.add(f"model_config.{key}")
        else:
            self.problems.append(f"{here}: {unknown_field(descriptor, key)}")
        value = data.pop(key)
        field = _field(descriptor, near) if near else None
        if field is None or field.name in data or field.json_name in data:
            return None, data
        data[field.name] = value
        return field, data

    def _value(self, value: Any, field: FieldDescriptor, path: str) -> bool:
        """Whether `value` can be read; mistakes deeper inside are taken out."""
        message_type: Any = field.message_type
        if message_type is None or message_type.GetOptions().map_entry:
            return self._plain(value, field, path)
        if message_type.full_name.startswith("google.protobuf.") and message_type.name != "Any":
            return self._plain(value, field, path)
        if field.is_repeated and not isinstance(value, list):
            self.problems.append(f"{path}: expected a list, [...], but found {json.dumps(value)[:60]}")
            return False
        for index, item in enumerate(value if field.is_repeated else [value]):
            here = f"{path}[{index}]" if field.is_repeated else path
            if not isinstance(item, dict):
                self.problems.append(f"{here}: expected an object, {{...}}, but found {json.dumps(item)[:60]}")
                return False
            if message_type.name == "Any":
                if not self._any(item, here):
                    return False
            else:
                self.message(item, message_type, f"{here}.")
        return True

    def _any(self, item: dict[str, Any], path: str) -> bool:
        url = item.get("@type")
        if not isinstance(url, str) or "/" not in url:
            self.problems.append(f'{path}: name the settings, as "@type": "tzrec.dev/pkg.Message"')
            return False
        full_name = url.rpartition("/")[2]
        offer = self._schema.messages.get(full_name)
        if offer is None:
            error = unknown_any_type(full_name, self._schema.messages)
            self.problems.append(f"{path}: {error}")
            self.plugin_errors.append(error)
            return False
        rest = {key: value for key, value in item.items() if key != "@type"}
        self.message(rest, config_class(offer).DESCRIPTOR, f"{path}.")
        if missing := list(missing_fields(json_format.ParseDict(rest, config_class(offer)()), f"{path}.")):
            self.missing += missing
            return False
        item.clear()
        item.update({"@type": url, **rest})
        return True

    def _plain(self, value: Any, field: FieldDescriptor, path: str) -> bool:
        if field.enum_type is not None:
            values = value if isinstance(value, list) else [value]
            names = [value.name for value in field.enum_type.values]
            wrong = [v for v in values if isinstance(v, str) and v not in names]
            self.problems += [f"{path}: {not_in_enum(field.enum_type, v)}" for v in wrong]
            if wrong:
                return False
        owner: Any = field.containing_type
        scratch = message_factory.GetMessageClass(owner)()
        try:
            json_format.ParseDict({field.name: value}, scratch)
        except (json_format.ParseError, ValueError, OverflowError) as error:
            # the latter two of Infinity and half characters
            detail = plain_message(error).partition(" field: ")[2] or plain_message(error)
            self.problems.append(f"{path}: {_expected(value, field) or detail}")
            return False
        return True


def _expected(value: Any, field: FieldDescriptor) -> str:
    """What is wrong with the type of a value, or an empty string when protobuf's words have to do."""
    entry: Any = field.message_type
    if entry is not None and not entry.GetOptions().map_entry:
        return ""
    one = entry.fields_by_name["value"] if entry is not None else field
    kind, found = _kind(one), value
    if entry is not None:
        kind = f"an object, each value {kind}"
        if isinstance(value, dict):
            found = next((v for v in value.values() if not _reads({"": v}, field)), value)
    elif field.is_repeated:
        kind = f"a list, each {kind}"
        if isinstance(value, list):
            found = next((v for v in value if not _reads([v], field)), value)
    of_right_type = isinstance(found, str) and one.type == FieldDescriptor.TYPE_STRING
    if of_right_type and (found is not value or not field.is_repeated):
        return ""  # half a character
    return f"expected {kind}, but found {json.dumps(found)[:60]}"


def _reads(value: Any, field: FieldDescriptor) -> bool:
    owner: Any = field.containing_type
    try:
        json_format.ParseDict({field.name: value}, message_factory.GetMessageClass(owner)())
    except (json_format.ParseError, ValueError, OverflowError):
        return False
    return True


def _kind(field: FieldDescriptor) -> str:
    if field.enum_type is not None:
        return f"one of {', '.join(value.name for value in field.enum_type.values)}"
    if field.cpp_type in _WHOLE:
        low, high = _WHOLE[field.cpp_type]
        return f"a whole number, {low} to {high}"
    return _KINDS.get(field.cpp_type, "a number")


def _field(descriptor: Any, key: str) -> FieldDescriptor | None:
    found = (f for f in descriptor.fields if key in (f.name, f.json_name))
    return next(found, None)
