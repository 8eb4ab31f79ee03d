"""A class to be found."""


class Two:
    """Stands for a model."""
