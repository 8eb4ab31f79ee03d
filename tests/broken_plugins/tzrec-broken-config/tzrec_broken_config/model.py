"""A class to be found."""


class BrokenConfig:
    """Stands for a model."""
