"""A class to be found."""


class Heavy:
    """Stands for a model."""
