"""protobuf's error messages in the words of somebody who writes a config."""

import re
from collections.abc import Iterable
from typing import Any

from google.protobuf import descriptor_pool

from tzrec_core.errors import ConfigError, PluginError, TzrecError, did_you_mean, nearest
from tzrec_core.plugins.registry import how_to_enable, registry
from tzrec_core.plugins.spec import ModelSpec
from tzrec_core.protos import model_pb2

_UNKNOWN = re.compile(r'Message type "(?P<type>[\w.]+)" has no field named "(?P<name>[\w.]+)"')
_ONEOF = re.compile(r'Field "(?P<second>\w+)" is specified along with field "(?P<first>\w+)".* oneof "(?P<oneof>\w+)"')
_TWICE = re.compile(r'Message type "(?P<type>[\w.]+)" should not have multiple "(?P<name>\w+)" fields')
_ENUM = re.compile(r'Enum type "(?P<type>[\w.]+)" has no value (?:named|with number) "?(?P<name>.+?)"?\.$')
_POSITION = re.compile(r"^\d+:\d+ : (?:'.*': )?", re.DOTALL)
_PACKAGE = re.compile(r"\btzrec_assembled_\w+\.|\btzrec_core\.protos\.|\b\w+_config\.v[0-9a-f]{16}\.")


def plain_message(error: Exception) -> str:
    """What protobuf says, without the position and without the packages of messages."""
    text = _PACKAGE.sub("", _POSITION.sub("", str(error))).strip().rstrip(".")
    return f"{text[:1].lower()}{text[1:]}"


def is_assembled_model_config(descriptor: Any) -> bool:
    """Whether a message is the ModelConfig that `assemble` puts the models into."""
    return bool(re.fullmatch(r"tzrec_assembled_\w+\.ModelConfig", descriptor.full_name))


def unknown_model(name: str) -> TzrecError:
    """What to say about a field of model_config that does not exist.

    Returns:
        a PluginError when a plugin is to blame, a ConfigError when the name is.
    """
    error = registry().unknown(ModelSpec, name)
    near = nearest(name, [f.name for f in model_pb2.ModelConfig.DESCRIPTOR.fields])
    if near and isinstance(error, ConfigError) and nearest(name, [near, *registry().by_name(ModelSpec)]) == near:
        return ConfigError(f"ModelConfig has no field {name!r}. Did you mean {near!r}?")
    return error


def unknown_any_type(full_name: str, known: Iterable[str]) -> PluginError:
    """What to say about `[tzrec.dev/<full_name>]` when no installed plugin offers such a message."""
    package = full_name.partition(".")[0]
    owner = next((p for p in registry().plugins if p.module.partition(".")[0] == package), None)
    if owner is None:
        advice = f"Is its plugin installed (pip install {package.replace('_', '-')})?"
    elif owner.reason:
        advice = f"{owner.distribution} is {owner.state}: {owner.reason.rstrip('.')}.{how_to_enable(owner)}"
    else:
        advice = f"{owner.distribution} offers no such message."
    error = PluginError(
        f"no installed plugin offers {full_name!r}.{did_you_mean(full_name, known)} {advice} See `tzrec list-plugins`."
    )
    error.__cause__ = owner.cause if owner else None
    return error


def unknown_field(descriptor: Any, name: str) -> str:
    """What to say about a field that a message does not have."""
    names = [f.name for f in descriptor.fields]
    if near := did_you_mean(name, names):
        return f"{descriptor.name} has no field {name!r}.{near}"
    listing = f"Its fields are: {', '.join(names)}." if names else "It has no fields."
    return f"{descriptor.name} has no field {name!r}. {listing}"


def two_of_oneof(first: str, second: str, oneof: str) -> str:
    """What to say about two members of a oneof."""
    if oneof == "model":
        return f"model_config names two models, {first!r} and {second!r}; keep one of them"
    return f"{second!r} cannot stand beside {first!r}: only one {oneof} is allowed here"


def not_in_enum(descriptor: Any, name: str) -> str:
    """What to say about a value that an enum does not have."""
    names = [value.name for value in descriptor.values]
    return f"{name!r} is not one of {', '.join(names)}.{did_you_mean(name, names)}"


def unknown_field_in(error: Exception) -> tuple[Any, str] | None:
    """The message type and the name, when the parser's mistake is a field that does not exist."""
    match = _UNKNOWN.search(str(error))
    return (_pool().FindMessageTypeByName(match["type"]), match["name"]) if match else None


def is_repetition(error: Exception) -> bool:
    """Whether the parser's mistake is a field that is set twice."""
    return bool(_TWICE.search(str(error)))


def value_mistake(error: Exception, name: str) -> str:
    """What to say about any other mistake of the text parser, made in the field `name` (may be empty)."""
    raw = str(error)
    if match := _ONEOF.search(raw):
        return two_of_oneof(match["first"], match["second"], match["oneof"])
    if match := _TWICE.search(raw):
        return f"{match['name']!r} is set twice in one {match['type'].rpartition('.')[2]}; keep one"
    if match := _ENUM.search(raw):
        prefix = f"{name}: " if name else ""
        return prefix + not_in_enum(_pool().FindEnumTypeByName(match["type"]), match["name"])
    if "does not have extensions" in raw or 'does not contain "/"' in raw:
        return (
            f"{name} cannot stand here; the settings of a plugin stand in a slot, as "
            f"plugin {{ [tzrec.dev/pkg.Message] {{ ... }} }}"
        )
    return f"{name}: {plain_message(error)}" if name else plain_message(error)


def message_named(full_name: str) -> Any:
    """The descriptor of a message type; None when there is none."""
    try:
        return _pool().FindMessageTypeByName(full_name)
    except KeyError:
        return None


def _pool() -> Any:  # the stubs of descriptor pools lack the lookups
    return descriptor_pool.Default()
