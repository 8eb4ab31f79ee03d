"""`custom_feature`: a feature type of a plugin, named by `operator_name`."""

from tzrec_core.errors import did_you_mean
from tzrec_core.features.feature import BaseFeature
from tzrec_core.plugins import FeatureSpec, registry
from tzrec_core.protos import data_pb2


class CustomFeature(BaseFeature):
    """A feature made outside, as ids or numbers. Read encoded (FG_NONE).

    A plugin's feature type is a `BaseFeature` subclass with `supports_fg_normal` and `parse_raw`; it reads
    `config.operator_params`.
    """

    def problems(self) -> list[str]:
        """See `BaseFeature.problems`."""
        found = super().problems()
        if type(self) is CustomFeature and self.fg_mode == data_pb2.FG_NORMAL:
            name = self.setting("operator_name")
            found_in = registry().offers(FeatureSpec)
            offers = [offer.spec.name for offer in found_in if offer.plugin is not registry().core]
            found.append(
                f"{self.at('operator_name')} {name!r}: no installed plugin offers this feature type."
                f"{did_you_mean(name, offers)} Installed: {', '.join(offers) or 'none'}. See `tzrec list-plugins`."
            )
        for field in ("operator_lib_file", "is_op_thread_safe"):
            if self.explicit(field):
                found.append(f"{self.at(field)} is not supported: custom features are Python plugins. Remove it.")
        return found
