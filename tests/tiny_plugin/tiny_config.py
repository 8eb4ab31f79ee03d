from dataclasses import dataclass, field


@dataclass(frozen=True)
class Part:
    width: int = field(default=4, metadata={"doc": "Width of a part."})


@dataclass(frozen=True)
class TinyConfig:
    """Settings of the tiny model."""

    hidden: int = field(default=8, metadata={"doc": "Width of the hidden layer."})
    dropout: float = 0.0
    unused_layer: bool = False
    first: Part | None = None
    second: Part | None = None
