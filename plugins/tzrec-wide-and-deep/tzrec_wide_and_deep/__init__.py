"""Wide & Deep for tzrec: a linear part that memorises and a deep network that generalises."""

__version__ = "0.1.0"
