"""FwFM for tzrec: a factorization machine that weighs the pairs of fields; and the Poly-1 loss."""

__version__ = "0.1.0"
