"""From the columns that tables put out to those of feature groups, with as few copies as can be, forward and back.

A step of a small net spends a noticeable part of its time on copying embeddings, so columns that stand side by side
travel together, and each gradient is written where the tables read it. Traceable by torch.fx and scriptable.
"""

# B rows, W width

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torchrec import KeyedTensor

from tzrec_core.modules import jagged


@torch.fx.wrap
def by_group(keyed: list[KeyedTensor], single: dict[str, Tensor], groups: list[list[str]]) -> list[Tensor]:
    """The columns of each group's keys side by side, (B, sum of widths).

    A group whose columns already stand side by side is not copied: do not change the results in place.

    Args:
        keyed: where the columns are; no two have a key in common.
        single: columns (B, width) that replace those of the same key.
        groups: the keys of each group, in order; a key may be in several.
    """
    if torch.jit.is_scripting():
        found: dict[str, Tensor] = {}
        for columns in keyed:
            parts = torch.split(columns.values(), columns.length_per_key(), dim=1)
            for i, key in enumerate(columns.keys()):
                found[key] = parts[i]
        for key, value in single.items():
            found[key] = value
        return [jagged.join_columns([found[key] for key in keys]) for keys in groups]
    else:
        return _by_group(keyed, single, groups)


@torch.jit.unused
def _by_group(keyed: list[KeyedTensor], single: dict[str, Tensor], groups: list[list[str]]) -> list[Tensor]:
    sources = [*(columns.values() for columns in keyed), *single.values()]
    names = [*(tuple(columns.keys()) for columns in keyed), *((key,) for key in single)]
    widths = [*(tuple(columns.length_per_key()) for columns in keyed), *((value.size(1),) for value in single.values())]
    plan = _plan(tuple(names), tuple(widths), tuple(map(tuple, groups)))
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return _gather(sources, plan)
    return list(_Regroup.apply(plan, *sources))


@dataclass(frozen=True)
class _Plan:
    """Who reads what.

    Attributes:
        spans: of each group: (source, first column, column after the last).
        uses: of each source, all its columns cut into pieces: (first column, column after the last, readers), a
            reader being (group, its first column of the piece).
    """

    spans: tuple[tuple[tuple[int, int, int], ...], ...]
    uses: tuple[tuple[tuple[int, int, tuple[tuple[int, int], ...]], ...], ...]


@lru_cache(maxsize=256)
def _plan(
    names: tuple[tuple[str, ...], ...], widths: tuple[tuple[int, ...], ...], groups: tuple[tuple[str, ...], ...]
) -> _Plan:
    """Plan for sources with these keys and widths; a later source's key counts."""
    at: dict[str, tuple[int, int, int]] = {}
    for source, (keys, key_widths) in enumerate(zip(names, widths)):
        start = 0
        for key, width in zip(keys, key_widths):
            at[key] = source, start, start + width
            start += width
    spans = tuple(_merged([at[key] for key in keys]) for keys in groups)
    return _Plan(spans, tuple(_uses(source, sum(key_widths), spans) for source, key_widths in enumerate(widths)))


def _merged(spans: Sequence[tuple[int, int, int]]) -> tuple[tuple[int, int, int], ...]:
    merged: list[tuple[int, int, int]] = []
    for source, start, end in spans:
        if merged and merged[-1][0] == source and merged[-1][2] == start:
            merged[-1] = source, merged[-1][1], end
        else:
            merged.append((source, start, end))
    return tuple(merged)


def _uses(
    source: int, width: int, groups: Sequence[Sequence[tuple[int, int, int]]]
) -> tuple[tuple[int, int, tuple[tuple[int, int], ...]], ...]:
    reads: list[tuple[int, int, int, int]] = []  # of this source: first column, column after, group, column there
    for group, spans in enumerate(groups):
        column = 0
        for other, start, end in spans:
            if other == source:
                reads.append((start, end, group, column))
            column += end - start
    cuts = sorted({0, width, *(read[0] for read in reads), *(read[1] for read in reads)})
    return tuple(
        (low, high, tuple((group, column + low - start) for start, end, group, column in reads if start <= low < end))
        for low, high in pairwise(cuts)
    )


def _gather(sources: Sequence[Tensor], plan: _Plan) -> list[Tensor]:
    return [jagged.join_columns([sources[i][:, start:end] for i, start, end in spans]) for spans in plan.spans]


class _Regroup(torch.autograd.Function):
    """`_gather`, with a backward pass that writes each gradient once.

    That of autograd adds up the gradients of the columns that several groups read, and then copies all.
    """

    @staticmethod
    def forward(ctx: Any, plan: _Plan, *sources: Tensor) -> tuple[Tensor, ...]:  # Any: torch has no name for it
        ctx.plan, ctx.num_rows = plan, sources[0].size(0)
        ctx.dtypes = [source.dtype for source in sources]
        ctx.set_materialize_grads(False)
        outputs = _gather(sources, plan)
        needed = ctx.needs_input_grad[1:]
        reads_none = [not any(needed[source] for source, _, _ in spans) for spans in plan.spans]
        ctx.mark_non_differentiable(*(output for output, is_fixed in zip(outputs, reads_none) if is_fixed))
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[1:]
        return None, *(
            _source_grad(pieces, grads, ctx.num_rows, dtype) if is_needed else None
            for pieces, dtype, is_needed in zip(ctx.plan.uses, ctx.dtypes, needed)
        )


def _source_grad(
    pieces: Sequence[tuple[int, int, Sequence[tuple[int, int]]]],
    grads: Sequence[Tensor | None],
    num_rows: int,
    dtype: torch.dtype,
) -> Tensor | None:
    wanted = [
        [grad[:, column : column + end - start] for group, column in readers if (grad := grads[group]) is not None]
        for start, end, readers in pieces
    ]
    first = next((parts[0] for parts in wanted if parts), None)
    if first is None or (len(pieces) == 1 and len(wanted[0]) == 1):
        return first
    whole = torch.empty(num_rows, pieces[-1][1], dtype=dtype, device=first.device)
    for (start, end, _), parts in zip(pieces, wanted):
        into = whole[:, start:end]
        if not parts:
            into.zero_()
        elif len(parts) == 1:
            into.copy_(parts[0])
        else:
            torch.add(parts[0], parts[1], out=into)
            for part in parts[2:]:
                into.add_(part)
    return whole
