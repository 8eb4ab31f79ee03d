"""`lookup_feature`: the value of a key in a map."""

from tzrec_core.features.feature import BaseFeature


class LookupFeature(BaseFeature):
    """The value that a map column has for a key column. Read encoded (FG_NONE)."""

    input_fields = ("map", "key")
