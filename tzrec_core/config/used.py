"""Which plugins a config uses."""

from typing import Any

from google.protobuf.any_pb2 import Any as AnyMessage

from tzrec_core.config.assemble import assembled, model_name, model_offer
from tzrec_core.config.features import feature_entries
from tzrec_core.config.walk import messages_in
from tzrec_core.plugins.registry import Offer, registry
from tzrec_core.plugins.spec import FeatureSpec, Spec


def used_plugins(config: Any) -> dict[str, str]:
    """Distribution -> version of every plugin whose model, settings or features a config names; the core left out."""
    offers: list[Offer[Spec]] = []
    if model_name(config.model_config):
        offers.append(model_offer(config.model_config))
    messages = assembled().messages
    slots = (message for _, message in messages_in(config) if isinstance(message, AnyMessage))
    offers += [messages[slot.TypeName()] for slot in slots if slot.TypeName() in messages]
    features = registry().by_name(FeatureSpec)
    for entry in feature_entries(config.feature_configs):
        if entry.kind == "custom_feature":
            offers += features.get(entry.config.operator_name, [])
    used = {o.plugin.distribution: o.plugin.version for o in offers if o.plugin is not registry().core}
    return dict(sorted(used.items()))
