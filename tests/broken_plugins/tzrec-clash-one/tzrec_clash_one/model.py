"""A class to be found."""


class One:
    """Stands for a model."""
