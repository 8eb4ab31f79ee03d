"""Building blocks of models: embedding groups, MLPs, sequence encoders."""

from tzrec_core.modules.activation import Dice, create_activation
from tzrec_core.modules.base import BaseModule, Kernel
from tzrec_core.modules.embedding_group import EmbeddingGroup
from tzrec_core.modules.fm import FactorizationMachine
from tzrec_core.modules.mlp import MLP, Perceptron
from tzrec_core.modules.numeric_embedding import AutoDisEmbedding, MLPEmbedding
from tzrec_core.modules.sequence import (
    DINEncoder,
    MultiWindowDINEncoder,
    PoolingEncoder,
    SelfAttentionEncoder,
    SequenceEncoder,
    SimpleAttention,
)
from tzrec_core.modules.task_tower import TaskTower
from tzrec_core.modules.variational_dropout import VariationalDropout

__all__ = [
    "MLP",
    "AutoDisEmbedding",
    "BaseModule",
    "DINEncoder",
    "Dice",
    "EmbeddingGroup",
    "FactorizationMachine",
    "Kernel",
    "MLPEmbedding",
    "MultiWindowDINEncoder",
    "Perceptron",
    "PoolingEncoder",
    "SelfAttentionEncoder",
    "SequenceEncoder",
    "SimpleAttention",
    "TaskTower",
    "VariationalDropout",
    "create_activation",
]
