"""Puts `oneof model { ... }` of whatever is installed into the config's root message.

The static protos know no model. `assembled()` clones ModelConfig and EasyRecConfig, adds one field per
installed model and registers the clone under a package named by its content. Configs travel and rest as text:
the clone's numbers differ between machines, so serialising one to bytes or pickling it is an error.
"""

import hashlib
import re
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from google.protobuf.message import DecodeError, Message

from tzrec_core.config.dataclass_message import message_from_dataclass
from tzrec_core.errors import ConfigError, PluginError, TzrecError, did_you_mean
from tzrec_core.plugins.discovery import State
from tzrec_core.plugins.registry import Offer, Registry, registry
from tzrec_core.plugins.spec import KINDS, ModelSpec, Spec
from tzrec_core.protos import model_pb2, pipeline_pb2

_FIRST_NUMBER = 100_000
S = TypeVar("S", bound=Spec)


@dataclass
class Assembled:
    """The config's root for one set of installed plugins.

    Attributes:
        root: the EasyRecConfig class with the assembled `model_config`.
        models: field of the oneof -> who offers it.
        messages: full name of a plugin's settings message -> who offers it, for the Any slots.
    """

    root: type[Message]
    models: dict[str, Offer[ModelSpec]] = field(default_factory=dict)
    messages: dict[str, Offer[Spec]] = field(default_factory=dict)


_cache: WeakKeyDictionary[Registry, Assembled] = WeakKeyDictionary()
_guarded: dict[str, list[type[Message]]] = {}  # protobuf drops a class, and its guards, that nobody holds


def assembled() -> Assembled:
    """The root for the current registry; assembled once per registry."""
    current = registry()
    if current not in _cache:
        _cache[current] = _assemble(current)
    return _cache[current]


def config_class(offer: Offer[Spec]) -> type[Message]:
    """The message class of a spec's settings; one is built when the spec names a dataclass.

    Raises:
        PluginError: the plugin's config module cannot be imported, names neither a message nor, for a model, a
            frozen dataclass, or lacks a field that the spec names.
    """
    found = registry().load_config_class(offer)
    try:
        if not (isinstance(found, type) and issubclass(found, Message)):
            if not isinstance(offer.spec, ModelSpec):
                raise TypeError(f"{offer.spec.config} is not a generated protobuf message")
            found = message_from_dataclass(found)
        _check_named_fields(offer.spec, found.DESCRIPTOR)
    except Exception as error:  # a dataclass can be wrong in many ways: the plugin's fault, not a crash
        raise PluginError(
            f"{offer.spec.label()} {offer.spec.name!r} of {offer.plugin.distribution}: {error}"
        ) from error
    return found


def _check_named_fields(spec: Spec, descriptor: Any) -> None:
    paths = [group.from_field for group in spec.groups if group.from_field] if isinstance(spec, ModelSpec) else []
    if grouping_field := getattr(spec, "grouping_field", ""):
        paths.append(grouping_field)
    for path in paths:
        message = descriptor
        for step in path.split("."):
            if message is None or step not in message.fields_by_name:
                names = [f.name for f in message.fields] if message is not None else []
                raise TypeError(f"the spec names {path!r}, but there is no {step!r}.{did_you_mean(step, names)}")
            message = message.fields_by_name[step].message_type


def _assemble(current: Registry) -> Assembled:
    loaded: list[tuple[Offer[Spec], type[Message]]] = []
    for offer in [offer for kind in KINDS for offer in current.offers(kind) if offer.spec.config]:
        try:
            loaded.append((offer, config_class(offer)))
            if isinstance(offer.spec, ModelSpec):
                _check_model_names(offer)
        except TzrecError as error:  # a broken config module must not stop the runs that do not use it
            current.mark_broken(offer.plugin, error)
    loaded = [(offer, cls) for offer, cls in loaded if offer.plugin.state is not State.BROKEN]
    models: dict[str, Offer[ModelSpec]] = {}
    classes: dict[str, type[Message]] = {}
    messages: dict[str, Offer[Spec]] = {}
    for offer, cls in loaded:
        if isinstance(offer.spec, ModelSpec):
            names = _field_names(current, offer)
            models |= dict.fromkeys(names, cast("Offer[ModelSpec]", offer))
            classes |= dict.fromkeys(names, cls)
        elif offer.plugin is not current.core:
            messages[cls.DESCRIPTOR.full_name] = offer
    return Assembled(_build_root(dict(sorted(classes.items()))), models, messages)


def _check_model_names(offer: Offer[Spec]) -> None:
    for name in offer.spec.names:
        if name in {"model", *model_pb2.ModelConfig.DESCRIPTOR.fields_by_name}:
            raise PluginError(f"model {name!r} has the name of a part of model_config; rename it")


def _field_names(current: Registry, offer: Offer[Spec]) -> list[str]:
    by_name = current.by_name(ModelSpec)
    names = [name for name in offer.spec.names if len(by_name[name]) == 1]
    return names if offer.spec.name in names else [offer.field, *names]


def _build_root(models: dict[str, type[Message]]) -> type[Message]:
    model_config = descriptor_pb2.DescriptorProto()
    model_pb2.ModelConfig.DESCRIPTOR.CopyToProto(model_config)
    root = descriptor_pb2.DescriptorProto()
    pipeline_pb2.EasyRecConfig.DESCRIPTOR.CopyToProto(root)
    file = descriptor_pb2.FileDescriptorProto(syntax="proto2")
    dependencies = {model_pb2.DESCRIPTOR.name, pipeline_pb2.DESCRIPTOR.name}
    dependencies |= {f.name for module in (model_pb2, pipeline_pb2) for f in module.DESCRIPTOR.dependencies}
    dependencies |= {cls.DESCRIPTOR.file.name for cls in models.values()}
    file.dependency.extend(sorted(dependencies))
    if models:
        model_config.oneof_decl.add(name="model")
    json_names = {_camel(f.name) for f in model_config.field}
    for number, (name, cls) in enumerate(models.items(), _FIRST_NUMBER):
        json_name = name if _camel(name) in json_names else _camel(name)  # `a_1` and `a1` are both `a1` in JSON
        json_names.add(json_name)
        model_config.field.add(
            name=name,
            json_name=json_name,
            number=number,
            label=descriptor_pb2.FieldDescriptorProto.LABEL_OPTIONAL,
            type=descriptor_pb2.FieldDescriptorProto.TYPE_MESSAGE,
            type_name=f".{cls.DESCRIPTOR.full_name}",
            oneof_index=len(model_config.oneof_decl) - 1,
        )
    file.message_type.extend([model_config, root])
    digest = hashlib.sha256(file.SerializeToString(deterministic=True)).hexdigest()[:16]
    file.name = f"tzrec_assembled/{digest}.proto"
    file.package = f"tzrec_assembled_{digest}"
    for proto_field in root.field:
        if proto_field.name == "model_config":
            proto_field.type_name = f".{file.package}.ModelConfig"
    del file.message_type[:]
    file.message_type.extend([model_config, root])
    pool = descriptor_pool.Default()
    try:
        pool.FindFileByName(file.name)
    except KeyError:
        pool.AddSerializedFile(file.SerializeToString())
    cls = message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{file.package}.EasyRecConfig"))
    model_cls = message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{file.package}.ModelConfig"))
    for assembled_class in (cls, model_cls):
        _forbid_bytes(assembled_class)
        # protobuf's own __str__ prints the settings in a slot as bytes
        assembled_class.__str__ = text_format.MessageToString  # type: ignore[method-assign, assignment]
    _guarded[file.package] = [cls, model_cls]
    return cls


def _camel(name: str) -> str:
    return re.sub(r"_+(.?)", lambda match: match[1].upper(), name)


def _forbid_bytes(cls: Any) -> None:
    def refuse(self: Message, *args: Any, **kwargs: Any) -> bytes:
        raise TypeError(
            "an assembled config depends on the installed plugins and travels as text: use str(config) and "
            "tzrec_core.config.parse_config"
        )

    for name in (
        "SerializeToString",
        "SerializePartialToString",
        "__reduce__",
        "__reduce_ex__",
        "__getstate__",
    ):
        setattr(cls, name, refuse)


def model_name(model_config: Any) -> str:
    """The field of a ModelConfig that is its model, such as `deepfm`; empty when it names none."""
    if "model" not in model_config.DESCRIPTOR.oneofs_by_name:  # no model is installed
        return ""
    return model_config.WhichOneof("model") or ""


def model_offer(model_config: Any) -> Offer[ModelSpec]:
    """Who offers the model that a ModelConfig names.

    Raises:
        ValueError: the config names no model.
    """
    name = model_name(model_config)
    if not name:
        raise ValueError("model_config names no model")
    return assembled().models[name]


def spec_of(kind: type[S], oneof_name: str, settings: Message) -> tuple[Offer[S], Message]:
    """The offer behind a oneof member of LossConfig, MetricConfig and their like, and its settings.

    Args:
        kind: the spec class.
        oneof_name: the member that is set; `plugin` for the Any slot.
        settings: the member's message.

    Raises:
        ConfigError: the Any slot is empty or cannot be read.
        PluginError: the Any slot holds a message that no plugin of this kind offers.
    """
    if oneof_name != "plugin":
        return registry().get(kind, oneof_name), settings
    offer = any_offer(kind, settings)
    return offer, unpack(offer, settings)


def any_offer(kind: type[S], slot: Any) -> Offer[S]:
    """Who offers the settings that an Any slot holds.

    Raises:
        ConfigError: the slot is empty.
        PluginError: no plugin offers such settings for this kind.
    """
    full_name = slot.TypeName()
    messages = assembled().messages
    offer = messages.get(full_name)
    if offer is not None and isinstance(offer.spec, kind):
        return cast("Offer[S]", offer)
    known = sorted(name for name, o in messages.items() if isinstance(o.spec, kind))
    listing = f"Installed: {', '.join(known) or 'none'}. See `tzrec list-plugins`."
    if not full_name:
        raise ConfigError(f"the slot is empty; write [tzrec.dev/pkg.Message] {{ ... }} into it. {listing}")
    raise PluginError(f"{full_name} is not the settings of a {kind.label()}. {listing}")


def unpack(offer: Offer[Spec], slot: Any) -> Message:
    """The settings that an Any slot holds.

    Raises:
        ConfigError: its bytes are not such settings.
    """
    settings = config_class(offer)()
    try:
        slot.Unpack(settings)
    except DecodeError:
        raise ConfigError(
            f"the bytes in the slot are not a {slot.TypeName()}; write [tzrec.dev/{slot.TypeName()}] {{ ... }}"
        ) from None
    return settings
