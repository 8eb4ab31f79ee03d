"""DeepFM for tzrec: a factorization machine and a deep network over shared embeddings."""

__version__ = "0.1.0"
