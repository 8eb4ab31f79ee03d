"""A callback."""

from typing import Any

from tzrec_core.engine.callbacks import Callback, Run, StepOutput


class StopAfterRows(Callback):
    """Ends a run after so many rows; a continued run counts on."""

    def __init__(self, rows: int) -> None:
        if rows < 1:
            raise ValueError(f"rows = {rows}: it must be 1 or more")
        self._limit = rows
        self._rows = 0

    def on_step_end(self, run: Run, step_output: StepOutput) -> None:
        """Count the rows of the step."""
        self._rows += len(next(iter(step_output.batch.labels.values())))
        if self._rows >= self._limit:
            run.stop(f"{self._rows} rows were read")

    def on_train_end(self, run: Run) -> None:
        """Say how many it was."""
        run.say(f"trained on {self._rows} rows")

    def state_dict(self) -> dict[str, Any]:
        """The rows so far."""
        return {"rows": self._rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Count on."""
        self._rows = state["rows"]
