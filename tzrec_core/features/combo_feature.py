"""`combo_feature`: crosses of several columns as ids."""

from tzrec_core.features.feature import IdLikeFeature


class ComboFeature(IdLikeFeature):
    """The cross of several columns, as ids. Read encoded (FG_NONE)."""
