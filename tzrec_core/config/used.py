"""Which plugins a config uses."""

from collections.abc import Iterator
from typing import Any

from google.protobuf.message import Message

from tzrec_core.config.assemble import assembled, model_offer
from tzrec_core.config.features import feature_entries
from tzrec_core.plugins.registry import Offer, registry
from tzrec_core.plugins.spec import FeatureSpec


def used_plugins(config: Any) -> dict[str, str]:
    """Distribution -> version of every plugin whose model, settings or features a config names; the core left out."""
    offers: list[Offer] = []
    if config.model_config.WhichOneof("model"):
        offers.append(model_offer(config.model_config))
    offers += [assembled().messages[name] for name in _any_types(config) if name in assembled().messages]
    features = registry().by_name(FeatureSpec)
    for entry in feature_entries(config.feature_configs):
        if entry.kind == "custom_feature":
            offers += features.get(entry.config.operator_name, [])
    used = {o.plugin.distribution: o.plugin.version for o in offers if o.plugin is not registry().core}
    return dict(sorted(used.items()))


def _any_types(message: Message) -> Iterator[str]:
    for field, value in message.ListFields():
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        for item in value if field.is_repeated else [value]:
            if field.message_type.full_name == "google.protobuf.Any":
                yield item.TypeName()
            else:
                yield from _any_types(item)
