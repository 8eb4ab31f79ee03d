"""Settings without protoc."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Slow:
    """Settings of a model for tests."""

    size: int = 4
