"""Settings without protoc."""

from dataclasses import dataclass, field
from enum import Enum


class Head(Enum):
    """How the output is made."""

    LINEAR = "linear"
    MEAN = "mean"


@dataclass(frozen=True)
class Layer:
    """One hidden layer."""

    width: int
    dropout: float = 0.0


@dataclass(frozen=True)
class PlainModel:
    """Logistic regression with frills."""

    title: str = field(metadata={"doc": "What the model calls itself."})
    head: Head = field(default=Head.LINEAR, metadata={"doc": "How the output is made."})
    scale: float = 1.0
    use_bias: bool = True
    max_rows: int | None = None
    layers: tuple[Layer, ...] = ()
    names: tuple[str, ...] = ()
