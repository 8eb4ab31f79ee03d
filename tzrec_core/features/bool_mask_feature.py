"""`bool_mask_feature`: a list of ids, filtered by a list of booleans."""

from tzrec_core.features.feature import IdLikeFeature


class BoolMaskFeature(IdLikeFeature):
    """A list of ids, filtered by a list of booleans. Read encoded (FG_NONE)."""
