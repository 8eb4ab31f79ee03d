"""`overlap_feature`: how much two texts overlap."""

from tzrec_core.features.feature import BaseFeature


class OverlapFeature(BaseFeature):
    """How much the words of two texts overlap. Read encoded (FG_NONE)."""

    input_fields = ("query", "title")
