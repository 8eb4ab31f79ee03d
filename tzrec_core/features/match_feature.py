"""`match_feature`: the value of two keys in a map of maps."""

from tzrec_core.features.feature import BaseFeature


class MatchFeature(BaseFeature):
    """The value that a map of maps has for a primary and a secondary key. Read encoded (FG_NONE)."""

    input_fields = ("nested_map", "pkey", "skey")
