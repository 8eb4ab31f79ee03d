"""`kv_dot_product`: the dot product of two sparse vectors."""

from tzrec_core.features.feature import BaseFeature


class KvDotProduct(BaseFeature):
    """The dot product of two sparse key:value vectors. Read encoded (FG_NONE)."""

    input_fields = ("query", "document")
