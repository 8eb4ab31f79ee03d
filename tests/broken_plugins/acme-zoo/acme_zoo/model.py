"""Classes to be found."""


class TwoTasks:
    """Stands for a multi-task model."""


class TwoTowers:
    """Stands for a matching model."""
