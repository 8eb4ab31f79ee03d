"""A class to be found."""


class Slow:
    """Stands for a model."""
