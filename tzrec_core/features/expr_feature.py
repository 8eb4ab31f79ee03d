"""`expr_feature`: an arithmetic expression over columns."""

from tzrec_core.features.feature import BaseFeature


class ExprFeature(BaseFeature):
    """The value of an arithmetic expression over columns. Read encoded (FG_NONE)."""

    input_fields = ("variables",)
