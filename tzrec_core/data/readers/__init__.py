"""Sources of rows: the `BaseReader` contract and the built-in Parquet and CSV readers."""

from tzrec_core.data.readers.base import BaseReader, Shuffle
from tzrec_core.data.readers.csv import CsvReader
from tzrec_core.data.readers.parquet import ParquetReader
from tzrec_core.data.readers.row_block import Origin, RowBlock, rebatch

__all__ = ["BaseReader", "CsvReader", "Origin", "ParquetReader", "RowBlock", "Shuffle", "rebatch"]
