"""`combine_feature`: several values combined into one number or id."""

from tzrec_core.features.feature import BaseFeature


class CombineFeature(BaseFeature):
    """Several values combined into one number or id. Read encoded (FG_NONE)."""
