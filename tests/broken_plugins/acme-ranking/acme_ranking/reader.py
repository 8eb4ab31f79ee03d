"""A reader."""

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from acme_ranking.config_pb2 import Counting
from tzrec_core.data.readers import BaseReader, RowBlock


class CountingReader(BaseReader):
    """Rows that count from zero; their number stands in `data_config.reader`."""

    def __init__(self, paths: str, *, columns: Sequence[str] | None = None, **kwargs: Any) -> None:
        super().__init__(paths, columns=columns, **kwargs)
        self._settings = Counting()
        self.data_config.reader.Unpack(self._settings)
        self._names = list(self._settings.columns if columns is None else columns)

    @property
    def schema(self) -> pa.Schema:
        """Names and types of the columns that are read."""
        return pa.schema([(name, pa.int64()) for name in self._names])

    @property
    def num_rows(self) -> int:
        """As the settings say."""
        return int(self._settings.rows)

    @property
    def num_units(self) -> int:
        """All rows are one unit."""
        return 1

    def read(self, unit: int) -> Iterator[RowBlock]:
        """All rows in one block."""
        counts = pa.array(range(self.num_rows), pa.int64())
        rows = pa.record_batch([counts for _ in self.schema], schema=self.schema)
        yield RowBlock.of("thin air", 0, rows)
