"""Abstract models, the factory and the wrappers; concrete models are plugins."""

from tzrec_core.models.base import BaseModel
from tzrec_core.models.factory import create_model
from tzrec_core.models.match import MatchModel, MatchTower, MatchTowerWoEG, TowerWoEGWrapper, TowerWrapper
from tzrec_core.models.multi_task import MultiTaskRank
from tzrec_core.models.rank import RankModel
from tzrec_core.models.wrappers import PredictWrapper, ScriptWrapper, TrainWrapper

__all__ = [
    "BaseModel",
    "MatchModel",
    "MatchTower",
    "MatchTowerWoEG",
    "MultiTaskRank",
    "PredictWrapper",
    "RankModel",
    "ScriptWrapper",
    "TowerWoEGWrapper",
    "TowerWrapper",
    "TrainWrapper",
    "create_model",
]
