"""What a checkpoint holds, for tests that compare runs."""

from pathlib import Path

import torch

from tzrec_core.engine.checkpoint_files import Ranks, read_metadata, read_tensors


def checkpoint_tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    """All of it by name: parameters, buffers, optimizer states."""
    found = {}
    for part in ("model", "optimizer"):
        known = read_metadata(checkpoint, part, Ranks.of(None)).state_dict_metadata
        state = {name: torch.empty(it.size, dtype=it.properties.dtype) for name, it in known.items()}
        read_tensors(checkpoint / part, state)
        found |= state
    return found
