"""Rows of different lengths: splitting, padding and pooling them, traceable by torch.fx and scriptable.

Call these as `jagged.<function>`: torch.fx replaces them in this module's namespace only.
"""

# B rows, N values (or steps) of all rows together, T steps of the longest row, D width

import torch
from torch import Tensor
from torchrec import KeyedJaggedTensor, KeyedTensor

from tzrec_core.errors import DataError


@torch.fx.wrap
def split_columns(keyed: KeyedTensor) -> dict[str, Tensor]:
    """The columns (B, width) of each key; one split, so that the backward pass is one concatenation."""
    columns = torch.split(keyed.values(), keyed.length_per_key(), dim=1)
    found: dict[str, Tensor] = {}
    for i, key in enumerate(keyed.keys()):
        found[key] = columns[i]
    return found


def join_columns(parts: list[Tensor]) -> Tensor:
    """The columns of `parts`, each (B, width), side by side; a single part is not copied."""
    return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]


@torch.fx.wrap
def longest(lengths: Tensor) -> int:
    """T: the largest of `lengths` (B,), 0 without rows. Waits for the device."""
    if lengths.numel() == 0:
        return 0
    if torch.jit.is_scripting():
        return int(lengths.max().item())
    else:
        # int() would fix the number in a torch.export graph
        num_steps = lengths.max().item()
        torch._check(num_steps >= 0)
        return num_steps  # type: ignore[return-value]


@torch.fx.wrap
def pad_rows(values: Tensor, lengths: Tensor, num_steps: int) -> Tensor:
    """Make rows of `values` (N, D) equally long, (B, num_steps, D), with zeros after short ones."""
    offsets = torch.ops.fbgemm.asynchronous_complete_cumsum(lengths)
    return torch.ops.fbgemm.jagged_to_padded_dense(values, [offsets], [num_steps], 0.0)


@torch.fx.wrap
def first_of_rows(values: Tensor, lengths: Tensor) -> Tensor:
    """The first value (B, D) of each row of `values` (N, D); zeros for an empty row."""
    offsets = torch.ops.fbgemm.asynchronous_complete_cumsum(lengths)
    return torch.ops.fbgemm.jagged_to_padded_dense(values, [offsets], [1], 0.0).squeeze(1)


@torch.fx.wrap
def pool_rows(values: Tensor, lengths: Tensor, is_mean: bool) -> Tensor:
    """Sum or mean (B, D) over each row of `values` (N, D); zeros for an empty row."""
    pooled = torch.segment_reduce(values, "sum", lengths=lengths, axis=0, unsafe=True)
    if is_mean:
        pooled = pooled / lengths.clamp(min=1).unsqueeze(1).to(pooled.dtype)
    return pooled


@torch.fx.wrap
def concat_steps(parts: list[Tensor], names: list[str]) -> Tensor:
    """Concatenate the widths of `parts`, each (N, D), as (N, sum of D).

    Raises:
        DataError: the features `names` do not have the same number of steps.
    """
    if not torch.jit.is_scripting():
        _check_equal_steps(parts, names)
    return torch.cat(parts, dim=1)


@torch.jit.unused
def _check_equal_steps(parts: list[Tensor], names: list[str]) -> None:
    if torch.compiler.is_compiling():
        return
    if any(part.size(0) != parts[0].size(0) for part in parts):
        steps = ", ".join(f"{name} {part.size(0)}" for name, part in zip(names, parts))
        raise DataError(
            f"features that stand side by side have different numbers of steps in this batch: {steps}. "
            "Every row needs as many steps in one as in the others."
        )


@torch.fx.wrap
def mean_weights(features: KeyedJaggedTensor, mean_features: list[str]) -> KeyedJaggedTensor:
    """Divide the weights of `mean_features` by their row's number of ids: a weighted sum is then the mean."""
    lengths = features.lengths().view(len(features.keys()), -1)
    scales: list[Tensor] = []
    for i, key in enumerate(features.keys()):
        row_lengths = lengths[i].clamp(min=1).to(features.weights().dtype)
        scales.append(1.0 / row_lengths if key in mean_features else torch.ones_like(row_lengths))
    scale = torch.repeat_interleave(torch.cat(scales), features.lengths(), output_size=features.values().numel())
    return KeyedJaggedTensor(
        keys=features.keys(),
        values=features.values(),
        weights=features.weights() * scale,
        lengths=features.lengths(),
    )
