"""How many different codes a set of items got."""

# B batch, L codes per row

import torch
from torch import Tensor

from tzrec_core.metrics._rows import RowMetric


class UniqueRatio(RowMetric):
    """Number of different rows of codes over the number of rows, of all batches together.

    1 says that no two rows share their codes. Keeps the different rows only.

    Returns of `compute`:
        Scalar float32 in (0, 1]; NaN without any row.
    """

    higher_is_better = True

    def __init__(self) -> None:
        super().__init__()
        self._add_column("codes", torch.int64)
        self.add_state("num_rows", default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("width", default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="max")

    def update(self, codes: Tensor) -> None:
        """Add a batch of integer codes (B, L); L is the same in all batches."""
        width = codes.shape[1]
        self.num_rows += len(codes)
        self.width = torch.full_like(self.width, width)

        def merge(chunks: list[Tensor]) -> Tensor:
            return torch.cat(chunks).view(-1, width).unique(dim=0).flatten()

        self._append("codes", merge([codes.flatten()]), merge)

    def compute(self) -> Tensor:
        """The share over all rows of all ranks."""
        codes = self._column("codes")
        if len(codes) == 0:
            return torch.full((), torch.nan, device=codes.device)
        return (len(codes.view(-1, int(self.width)).unique(dim=0)) / self.num_rows.double()).float()
