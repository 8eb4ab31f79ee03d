"""A class to be found."""


class Other:
    """Stands for a model."""
