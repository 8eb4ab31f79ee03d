"""A class to be found."""


class Future:
    """Stands for a model."""
