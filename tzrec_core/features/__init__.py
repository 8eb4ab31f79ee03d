"""Features: what a model reads, from columns to ids and numbers."""

from tzrec_core.features.create import create_features
from tzrec_core.features.feature import BaseFeature
from tzrec_core.features.rows import Parsed

__all__ = ["BaseFeature", "Parsed", "create_features"]
