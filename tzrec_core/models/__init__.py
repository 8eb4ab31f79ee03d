"""Abstract models, the factory and the wrappers; concrete models are plugins."""

from tzrec_core.models.base import BaseModel
from tzrec_core.models.factory import create_model
from tzrec_core.models.rank import RankModel
from tzrec_core.models.wrappers import PredictWrapper, ScriptWrapper, TrainWrapper

__all__ = ["BaseModel", "PredictWrapper", "RankModel", "ScriptWrapper", "TrainWrapper", "create_model"]
