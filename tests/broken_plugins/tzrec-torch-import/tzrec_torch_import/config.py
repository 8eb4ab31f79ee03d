"""Settings without protoc."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Heavy:
    """Settings of a model for tests."""

    size: int = 4
