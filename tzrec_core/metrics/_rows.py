"""Metrics that need the rows themselves, and how they keep them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.distributed import gather_all_tensors

from tzrec_core.errors import DataError


class RowMetric(Metric):
    """A metric whose states are columns of rows: flat tensors in chunks, concatenated across ranks.

    Chunks are merged by size, so that there are few of them however small the batches are. A rank without a
    single row takes part in the exchange with empty columns: torchmetrics would wait for it for ever.
    """

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self._column_dtypes: dict[str, torch.dtype] = {}

    def _add_column(self, name: str, dtype: torch.dtype) -> None:
        self.add_state(name, default=[], dist_reduce_fx="cat")
        self._column_dtypes[name] = dtype

    def _append(self, name: str, chunk: Tensor, merge: Callable[[list[Tensor]], Tensor] = torch.cat) -> None:
        chunks = getattr(self, name)
        chunks.append(chunk.detach().flatten().to(self._column_dtypes[name]))
        while len(chunks) > 1 and len(chunks[-1]) >= len(chunks[-2]):
            last = chunks.pop()
            chunks[-1] = merge([chunks[-1], last])

    def _column(self, name: str) -> Tensor:
        """The whole column, (N,); a plain tensor already while ranks are in sync."""
        chunks = getattr(self, name)
        if isinstance(chunks, Tensor):
            return chunks
        return torch.cat(chunks) if chunks else torch.empty(0, dtype=self._column_dtypes[name], device=self.device)

    def _num_rows(self, name: str) -> int:
        return sum(len(chunk) for chunk in getattr(self, name))

    # Any: the process group's type is torchmetrics' choice.
    def _sync_dist(
        self, dist_sync_fn: Callable[..., Any] = gather_all_tensors, process_group: Any | None = None
    ) -> None:
        for name in self._column_dtypes:
            setattr(self, name, [self._column(name)])
        super()._sync_dist(dist_sync_fn, process_group=process_group)


def checked_classes(labels: Tensor, num_class: int, metric: str) -> Tensor:
    """Labels as int64, flat.

    Args:
        labels: of any numeric dtype.
        num_class: how many classes there are, numbered from 0; 2 for a binary metric.
        metric: what the message calls the metric.

    Raises:
        DataError: a label is not a whole number in [0, num_class).
    """
    labels_B = labels.detach().flatten()
    classes_B = labels_B.long()
    wrong_B = (classes_B != labels_B) | (classes_B < 0) | (classes_B >= num_class)
    if wrong_B.any():
        raise DataError(
            f"{metric} takes the labels 0 to {num_class - 1}, got {labels_B[wrong_B][0].item()}: "
            "take a metric for numbers, or turn the label into classes."
        )
    return classes_B
