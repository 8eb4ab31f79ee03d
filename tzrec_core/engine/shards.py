"""The tensors of a state dict, each whole or in shards, as this process holds them."""

import math
from collections.abc import Iterable, Mapping

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.tensor import DTensor

from tzrec_core.engine.world import World


def local_shards(tensor: torch.Tensor) -> list[tuple[tuple[int, ...], torch.Tensor]]:
    """What this process holds of a tensor, as (offsets of the shard in the whole, shard).

    The shards are the tensor's own memory. A plain tensor is one shard at offset 0; a sharded one can have none here.
    """
    if isinstance(tensor, ShardedTensor):
        return [(tuple(shard.metadata.shard_offsets), shard.tensor) for shard in tensor.local_shards()]
    if isinstance(tensor, DTensor):
        chunks = tensor.__create_chunk_list__()
        return [(tuple(c.offsets), tensor.__get_tensor_shard__(MetadataIndex("", c.offsets))) for c in chunks]
    return [((0,) * tensor.dim(), tensor)]


def size_of(tensor: torch.Tensor) -> torch.Size:
    """The size of the whole tensor; asking a ShardedTensor itself costs a warning of torch's."""
    return tensor.metadata().size if isinstance(tensor, ShardedTensor) else tensor.size()


def num_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Memory of what this process holds of the tensors, in bytes."""
    return sum(shard.nbytes for tensor in tensors for _, shard in local_shards(tensor))


def first_not_finite(tensors: Mapping[str, torch.Tensor], world: World) -> tuple[str, float] | None:
    """The first tensor with a value that is not finite, and such a value; None when all are finite.

    Every rank must call it, with the tensors in the same order; all get the same answer. Integers are skipped.
    """
    found = world.gather(_first_not_finite_here(tensors))
    first = min((entry for entry in found if entry is not None), key=lambda entry: entry[0], default=None)
    return None if first is None else first[1:]


def _first_not_finite_here(tensors: Mapping[str, torch.Tensor]) -> tuple[int, str, float] | None:
    places, ends = [], []
    for place, (name, tensor) in enumerate(tensors.items()):
        for _, shard in local_shards(tensor):
            if shard.is_floating_point() and shard.numel():
                places.append((place, name))
                ends.append(torch.stack(torch.aminmax(shard.detach())).double())
    if not ends:
        return None
    for (place, name), values in zip(places, torch.stack([end.to(ends[0].device) for end in ends]).tolist()):
        for value in values:
            if not math.isfinite(value):
                return place, name, value
    return None


def sync_buffers(module: nn.Module, world: World) -> None:
    """Make the persistent buffers of a module, such as BatchNorm's statistics, the same on all ranks, in place.

    Floating-point ones become the average over the ranks, others become rank 0's. Sharded ones are left alone.
    """
    if world.size == 1:
        return
    persistent = module.state_dict()
    buffers = [b for name, b in module.named_buffers() if name in persistent and type(b) is torch.Tensor]
    averaged = [b for b in buffers if b.is_floating_point()]
    copied = [b for b in buffers if not b.is_floating_point()]
    if averaged:
        flat = _flat(averaged, torch.float64, world.device)
        dist.all_reduce(flat)
        _put_back(flat / world.size, averaged)
    if copied:
        flat = _flat(copied, torch.int64, world.device)
        dist.broadcast(flat, src=0)
        _put_back(flat, copied)


def _flat(tensors: list[torch.Tensor], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """One vector, so that there is one exchange."""
    return torch.cat([t.detach().reshape(-1).to(device, dtype) for t in tensors])


def _put_back(flat: torch.Tensor, tensors: list[torch.Tensor]) -> None:
    with torch.no_grad():
        for tensor, values in zip(tensors, flat.split([t.numel() for t in tensors])):
            tensor.copy_(values.view_as(tensor))
