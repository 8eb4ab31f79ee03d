"""Builds a protobuf message from a frozen dataclass, so that a plugin's config needs no protoc."""

import dataclasses
import enum
import hashlib
import types
import typing
from typing import Any, get_args, get_origin, get_type_hints

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message

_FieldProto = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    bool: _FieldProto.TYPE_BOOL,
    int: _FieldProto.TYPE_INT64,
    float: _FieldProto.TYPE_DOUBLE,
    str: _FieldProto.TYPE_STRING,
}

_sources: dict[str, type] = {}


def message_from_dataclass(cls: type) -> type[Message]:
    """The message class for a frozen dataclass.

    bool, int, float and str become scalars, `list[T]` and `tuple[T, ...]` repeated fields, an Enum an enum, a
    nested frozen dataclass a message, and a generated message, such as `tzrec_core.protos.module_pb2.MLP`, itself. A
    field without default is required; `T | None = None` is optional. Field numbers follow the order of the fields.
    What a field means stands in its metadata, `{"doc": "..."}`.

    Raises:
        TypeError: `cls` is no frozen dataclass, or a field has a type or a default that a config cannot hold.
    """
    package = cls.__module__.replace(".", "_") + "_config"
    file = descriptor_pb2.FileDescriptorProto(syntax="proto2", package=package)
    added: dict[str, type] = {}
    _add_message(file, cls, package, added)
    digest = hashlib.sha256(file.SerializeToString(deterministic=True)).hexdigest()[:16]
    file.name = f"{package}/{digest}.proto"
    file.package = f"{package}.v{digest}"
    for message in file.message_type:
        for field in message.field:
            if field.type_name.startswith(f".{package}."):
                field.type_name = field.type_name.replace(f".{package}.", f".{file.package}.", 1)
    pool = descriptor_pool.Default()
    try:
        pool.FindFileByName(file.name)
    except KeyError:
        pool.AddSerializedFile(file.SerializeToString())
    _sources.update({f"{file.package}.{name}": source for name, source in added.items()})
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{file.package}.{cls.__name__}"))


def dataclass_of(full_name: str) -> type | None:
    """The dataclass that a message was built from, None for a message from a .proto."""
    return _sources.get(full_name)


def _add_message(file: descriptor_pb2.FileDescriptorProto, cls: type, package: str, added: dict[str, type]) -> None:
    params = getattr(cls, "__dataclass_params__", None)
    if params is None or not params.frozen:
        raise TypeError(f"{cls.__module__}.{cls.__name__} is not a frozen dataclass (@dataclass(frozen=True))")
    if added.get(cls.__name__) is cls:
        return
    _register(cls, added)
    message = file.message_type.add(name=cls.__name__)
    hints = get_type_hints(cls)
    for number, field in enumerate(dataclasses.fields(cls), 1):
        kind, repeated = _strip(hints[field.name])
        proto = message.field.add(name=field.name, number=number)
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if repeated:
            proto.label = _FieldProto.LABEL_REPEATED
        elif default is dataclasses.MISSING:
            proto.label = _FieldProto.LABEL_REQUIRED
        else:
            proto.label = _FieldProto.LABEL_OPTIONAL
        if kind in _SCALARS:
            proto.type = _SCALARS[kind]
        elif isinstance(kind, type) and issubclass(kind, enum.Enum):
            proto.type, proto.type_name = _FieldProto.TYPE_ENUM, _add_enum(file, kind, package, added)
        elif isinstance(kind, type) and dataclasses.is_dataclass(kind):
            _add_message(file, kind, package, added)
            proto.type, proto.type_name = _FieldProto.TYPE_MESSAGE, f".{package}.{kind.__name__}"
        elif isinstance(kind, type) and issubclass(kind, Message):
            proto.type, proto.type_name = _FieldProto.TYPE_MESSAGE, f".{kind.DESCRIPTOR.full_name}"
            if kind.DESCRIPTOR.file.name not in file.dependency:
                file.dependency.append(kind.DESCRIPTOR.file.name)
        else:
            raise TypeError(
                f"{cls.__name__}.{field.name}: a config field cannot be a {hints[field.name]}; use bool, int, "
                f"float, str, an Enum, a frozen dataclass, a generated message, or a list or tuple of one of them"
            )
        if default is dataclasses.MISSING or default is None:
            continue
        if repeated or proto.type == _FieldProto.TYPE_MESSAGE:
            _refuse_lost_default(cls, field.name, default, [] if repeated else kind)
        else:
            proto.default_value = _default_text(default)


def _register(cls: type, added: dict[str, type]) -> None:
    known = added.setdefault(cls.__name__, cls)
    if known is not cls:
        raise TypeError(f"{cls!r} and {known!r} are both parts of one config; give them different names")


def _strip(hint: Any) -> tuple[Any, bool]:
    """The element type of a hint and whether it is repeated; `T | None` counts as T."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (typing.Union, types.UnionType):
        rest = [a for a in args if a is not type(None)]
        return _strip(rest[0]) if len(rest) == 1 else (hint, False)
    if origin is list and args:
        return args[0], True
    if origin is tuple and len(args) == 2 and args[1] is Ellipsis:
        return args[0], True
    return hint, False


def _add_enum(
    file: descriptor_pb2.FileDescriptorProto, cls: type[enum.Enum], package: str, added: dict[str, type]
) -> str:
    """Add an enum and return its name; within a message of its own, as two enums may share a value's name."""
    outer = f"{cls.__name__}Enum"
    if added.get(cls.__name__) is not cls:
        _register(cls, added)
        proto = file.message_type.add(name=outer).enum_type.add(name=cls.__name__)
        for number, name in enumerate(cls.__members__):
            proto.value.add(name=name, number=number)
    return f".{package}.{outer}.{cls.__name__}"


def _default_text(value: Any) -> str:
    if isinstance(value, enum.Enum):
        return value.name
    return str(value).lower() if isinstance(value, bool) else str(value)


def _is_required(field: "dataclasses.Field[Any]") -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _refuse_lost_default(cls: type, name: str, default: Any, kind: Any) -> None:
    """An unset list is empty and an unset message has its own defaults: no other default can be kept."""
    if isinstance(kind, type) and issubclass(kind, Message):
        lost = default != kind() or not default.IsInitialized()
        fix = f"write {kind.__name__} | None = None, and read None as your default"
    elif isinstance(kind, type):
        required = [f.name for f in dataclasses.fields(kind) if _is_required(f)]
        lost = bool(required) or default != kind()
        fix = f"give the fields of {kind.__name__} that default"
    else:
        lost = bool(default)
        fix = "let it be empty, and read an empty one as your default"
    if lost:
        raise TypeError(f"{cls.__name__}.{name}: a config cannot hold the default {default!r}; {fix}")
