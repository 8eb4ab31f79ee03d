"""Settings of the DLRM-shaped model."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class DLRMShapedConfig:
    bottom: tuple[int, ...] = field(
        default=(), metadata={"doc": "Widths of the net over group `dense`; the last is that of the embeddings."}
    )
    top: tuple[int, ...] = field(default=(), metadata={"doc": "Widths of the net over the dot products."})
