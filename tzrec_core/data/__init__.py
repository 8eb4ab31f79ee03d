"""Tables in, batches out: readers, the parser, the loader and writers."""

from tzrec_core.config import BASE_DATA_GROUP, NEG_DATA_GROUP
from tzrec_core.data.batch import Batch
from tzrec_core.data.loader import create_dataloader
from tzrec_core.data.parser import DataParser
from tzrec_core.data.readers import BaseReader

__all__ = ["BASE_DATA_GROUP", "NEG_DATA_GROUP", "BaseReader", "Batch", "DataParser", "create_dataloader"]
