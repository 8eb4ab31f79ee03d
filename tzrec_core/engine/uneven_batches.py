"""Row-wise tables on CPUs when the processes' batches differ in size, as the last ones of an epoch may by one row.

torchrec gathers the gradients of pooled row-wise tables with `all_gather`, which gloo, unlike NCCL, offers for tensors
of equal sizes only.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torchrec.distributed import comm_ops

_Wait: Any = comm_ops.ReduceScatterV_Wait  # Any: torchrec's autograd functions are not typed


class _Done:
    """What torchrec waits for, when there is nothing left to wait for."""

    def wait(self) -> None:
        pass


class _UnevenWait(_Wait):  # type: ignore[misc]
    """torchrec's function, whose backward pads what gloo is to gather."""

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        info = ctx.myreq.rsi
        if info.equal_splits or info.codecs is not None or dist.get_backend(ctx.pg) != "gloo":
            return _Wait.backward(ctx, grad_output)
        sizes = info.input_splits
        padded = grad_output.new_zeros(max(sizes), *grad_output.shape[1:])
        padded[: len(grad_output)] = grad_output
        gathered = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(gathered, padded, group=ctx.pg)
        ctx.myreq.req = _Done()
        ctx.myreq.tensor = torch.cat([rows[:size] for rows, size in zip(gathered, sizes)])
        return None, None, ctx.myreq.dummy_tensor


def allow_uneven_batches() -> None:
    """Make torchrec use it; may be called again."""
    comm_ops.ReduceScatterV_Wait = _UnevenWait  # type: ignore[misc]
