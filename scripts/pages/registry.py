"""The registry for programs: a whole one for the docs, and the part of it that the core ships."""

from typing import Any

from pages.sources import Conformance, projects
from tzrec_core.config.assemble import config_class
from tzrec_core.config.describe import field_rows
from tzrec_core.plugins import ModelSpec, Offer, Registry


def whole(registry: Registry) -> dict[str, Any]:  # Any: JSON
    """registry_docs/registry.json: every plugin and model, with what the pages say of them."""
    conformance = Conformance.read()
    return {
        "generated_by": "make docs",
        "plugins": {
            plugin.distribution: {
                "version": projects()[plugin.distribution].version,
                "core": projects()[plugin.distribution].core,
                "offers": [{"kind": spec.kind, "name": spec.name} for spec in plugin.specs],
            }
            for plugin in sorted(registry.plugins, key=lambda plugin: plugin.distribution)
        },
        "models": {offer.spec.name: _model(offer, conformance) for offer in registry.offers(ModelSpec)},
    }


def _model(offer: Offer[ModelSpec], conformance: Conformance) -> dict[str, Any]:
    spec = offer.spec
    return {
        "package": offer.plugin.distribution,
        "task": str(spec.task),
        "summary": spec.summary,
        "paper": spec.paper,
        "aliases": list(spec.aliases),
        "replaces": list(spec.replaces),
        "groups": [
            {"name": g.name, "from_field": g.from_field, "types": list(g.types), "required": g.required}
            for g in spec.groups
        ],
        "traits": sorted(spec.traits),
        "traits_proved": conformance.proved(offer),
        "fields": field_rows(config_class(offer).DESCRIPTOR),
        "page": f"models/{spec.name}.md",
    }


def shipped(registry: Registry) -> dict[str, Any]:  # Any: JSON
    """tzrec_core/plugins/registry.json, from which the core names the package of a model that is not installed."""
    models: dict[str, dict[str, str]] = {}
    for offer in registry.offers(ModelSpec):
        spec = offer.spec
        entry = {"package": offer.plugin.distribution, "task": str(spec.task), "summary": spec.summary}
        models[spec.name] = entry
        models |= {alias: {**entry, "alias_of": spec.name} for alias in spec.aliases}
    return {"models": models}
