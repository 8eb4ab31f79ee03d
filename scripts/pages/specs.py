"""Every kind of spec: its fields, what its target has to do, and what the core has built in."""

import inspect
from enum import Enum
from typing import Any

import griffe

from pages import api
from pages.markdown import anchor, arguments, docstring, generated, table
from tzrec_core.config.assemble import config_class
from tzrec_core.config.describe import field_tables
from tzrec_core.plugins import CallbackSpec, FeatureSpec, ModelSpec, Offer, ReaderSpec, Registry, SeqEncoderSpec, Spec
from tzrec_core.plugins.spec import KINDS

# What every kind has; the kinds' own tables leave these out.
SHARED = ("name", "target", "config", "summary")
# What the target of a kind is a subclass of; kinds without one say in their docstring what a target does.
BASES: dict[type[Spec], str] = {
    SeqEncoderSpec: "modules.SequenceEncoder",
    FeatureSpec: "features.BaseFeature",
    ReaderSpec: "data.BaseReader",
    CallbackSpec: "engine.callbacks.Callback",
}
_HEAD = ("field", "type", "default", "meaning")


def page(registry: Registry) -> str:
    """specs.md."""
    shared = arguments(Spec.__doc__ or "") | {"summary": arguments(ModelSpec.__doc__ or "")["summary"]}
    parts = [
        generated("tzrec_core/plugins/spec.py and tzrec_core/builtin.py"),
        "# Specs: what a plugin can offer\n",
        "A manifest's `tzrec_specs()` returns a list of specs: frozen dataclasses that name things by "
        '`"module:attribute"`, so that listing them imports nothing. The core offers what it has built in through the '
        "same hook. [Specs and hooks](guides/specs_and_hooks.md) tells how to write them.\n",
        "Every spec has these fields:\n",
        table(_HEAD, [_field(p, shared) for p in _parameters(ModelSpec) if p.name in SHARED]),
    ]
    return "\n".join([*parts, *(_kind(kind, registry) for kind in KINDS)])


def _parameters(kind: type[Spec]) -> list[griffe.Parameter]:
    found = api.core()["plugins"][kind.__name__].final_target
    return [parameter for parameter in found.parameters if parameter.name != "self"]


def _field(parameter: griffe.Parameter, meanings: dict[str, str]) -> list[str]:
    default = "required" if parameter.default is None else f"`{parameter.default}`"
    return [f"`{parameter.name}`", f"`{parameter.annotation}`", default, meanings[parameter.name]]


def _kind(kind: type[Spec], registry: Registry) -> str:
    meanings = arguments(kind.__doc__ or "")
    own = [_field(p, meanings) for p in _parameters(kind) if p.name not in SHARED]
    parts = [f"## {kind.__name__}\n", docstring(inspect.getdoc(kind) or "", leave_out=("Args",)) + "\n"]
    if target := _target(kind):
        parts.append(target)
    if own:
        parts.append(table(_HEAD, own))
    if offers := [offer for offer in registry.offers(kind) if offer.plugin is registry.core]:
        parts += ["Built in:\n", _builtin(offers, [row[0].strip("`") for row in own])]
    return "\n".join(parts)


def _target(kind: type[Spec]) -> str:
    """What a kind's target is a subclass of, and what such a class must write."""
    bases = _models() if kind is ModelSpec else [BASES[kind]] if kind in BASES else []
    lines = []
    for base in bases:
        found = api.core()[base].final_target
        members = [member.final_target if member.is_alias else member for member in found.all_members.values()]
        todo = ", ".join(f"`{member.name}`" for member in members if api.is_for_subclasses(member))
        writes = f" that writes {todo}" if todo else ""
        lines.append(f"- `target`: a subclass of [`tzrec_core.{base}`](api.md#{anchor(found.name)}){writes}.\n")
    return "".join(lines)


def _models() -> list[str]:
    """The base classes of models, one per task."""
    models = api.core()["models"]
    found = {name: models[name].final_target for name in models.exports or [] if not name.endswith("Wrapper")}
    return [f"models.{name}" for name, c in found.items() if c.is_class and "BaseModel" in [b.name for b in c.mro()]]


def _builtin(offers: list[Offer[Any]], shown: list[str]) -> str:
    """A table of what the core offers, with the fields that only their kind has."""
    rows = []
    for offer in offers:
        values = [_shown(getattr(offer.spec, name)) for name in shown]
        rows.append([f"`{offer.spec.name}`", offer.spec.summary, *values, _settings(offer)])
    return table(["name", "summary", *shown, "settings"], rows)


def _shown(value: object) -> str:
    if isinstance(value, tuple | frozenset):
        words = ["any" if item is None else _shown(item) for item in value]
        return ", ".join(sorted(words) if isinstance(value, frozenset) else words)
    return str(value.name) if isinstance(value, Enum) else str(value)


def _settings(offer: Offer[Any]) -> str:
    if not offer.spec.config:
        return ""
    _, rows = next(field_tables("", config_class(offer).DESCRIPTOR))
    return "; ".join(f"`{row['field']}`: {row['type']}, {row['default']}" for row in rows)
