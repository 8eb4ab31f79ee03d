"""Where the rows of a batch lie in the predictions of each task, which decides what checks may compare."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor

from tzrec_core.config import model_offer
from tzrec_core.config.tasks import towers_in
from tzrec_core.models.objectives import loss_spec
from tzrec_core.plugins import Output, Task
from tzrec_core.testing.check import Skipped

ROWS, WIDTH = "B", "D"  # sizes of a dimension: the rows of the batch; whatever the model chooses
Shape: TypeAlias = tuple[int | str, ...]


@dataclass(frozen=True)
class Layout:
    """The predictions that a model must have, with the dimensions in which the rows of a batch lie.

    Predictions beyond these have the rows in dimension 0.

    Attributes:
        shapes: by key; a size is a number, ROWS or WIDTH. `similarity` of each row and each is (ROWS, ROWS).
    """

    shapes: Mapping[str, Shape]

    def shape(self, name: str, num_rows: int) -> Shape:
        """The shape of a prediction that a model must have, of so many rows."""
        return tuple(num_rows if size == ROWS else size for size in self.shapes[name])

    def row_dims(self, name: str) -> list[int]:
        """The dimensions of a prediction in which the rows lie."""
        return [dim for dim, size in enumerate(self.shapes.get(name, (ROWS,))) if size == ROWS]

    def take(self, predictions: Mapping[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
        """What a batch of some of the rows only, in that order, should have as predictions.

        Args:
            predictions: of the whole batch.
            rows: their numbers (n,), int64.
        """
        taken = dict(predictions)
        for name in taken:
            for dim in self.row_dims(name):
                taken[name] = taken[name].index_select(dim, rows)
        return taken

    def of_pairs(self, predictions: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The predictions as inference has them, which compares a row with itself only."""
        return {
            name: value.diagonal() if self.shapes.get(name) == (ROWS, ROWS) else value
            for name, value in predictions.items()
        }


def layout_of(task: Task, config: Any, *, is_inference: bool = False) -> Layout:
    """The layout of the predictions of a model.

    Args:
        task: the model's.
        config: an EasyRecConfig; its losses decide, see `tzrec_core.plugins.Output`.
        is_inference: as the model is set; else those of training and evaluation.

    Raises:
        Skipped: the core has no base class, and so no rules, for the task yet.
    """
    if task is Task.RANK:
        return Layout(_scores(config.model_config))
    if task is Task.MULTITASK:
        return Layout({f"{key}_{t.tower_name}": shape for t in towers(config) for key, shape in _scores(t).items()})
    if task is Task.MATCH:
        if is_inference:
            return Layout({"similarity": (ROWS,), "user_tower_emb": (ROWS, WIDTH), "item_tower_emb": (ROWS, WIDTH)})
        return Layout({"similarity": (ROWS, ROWS)})
    raise Skipped(f"checks for task {task} come with its base class")


def _scores(holder: Any) -> dict[str, Shape]:
    """Of the losses of a model, or of a tower with its own."""
    shapes: dict[str, Shape] = {}
    for loss_config in holder.losses:
        output = loss_spec(loss_config)[0].output
        if output is Output.VALUE:
            shapes["y"] = (ROWS,)
            continue
        shape: Shape = (ROWS, holder.num_class) if output is Output.SOFTMAX else (ROWS,)
        shapes |= {"logits": shape, "probs": shape}
        if output is Output.SOFTMAX and holder.num_class == 2:
            shapes["probs1"] = (ROWS,)
    return shapes


def task_of(config: Any) -> Task:
    """The task of the model that a config names; RANK when it names none."""
    try:
        return model_offer(config.model_config).spec.task
    except ValueError:
        return Task.RANK


def towers(config: Any) -> list[Any]:
    """The tasks of a multi-task model: the messages in its settings that hold losses, such as a TaskTower."""
    settings = getattr(config.model_config, config.model_config.WhichOneof("model"))
    return [tower for _, tower in towers_in(settings)]
