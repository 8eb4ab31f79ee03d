"""`metrics.jsonl`: all numbers of a run, a line of JSON per log step and evaluation."""

from typing import TextIO

from tzrec_core.engine.callbacks.callback import Callback, Run
from tzrec_core.engine.results import json_line

METRICS_FILE = "metrics.jsonl"


class MetricsLog(Callback):
    """Writes `<model_dir>/metrics.jsonl` on rank 0, and goes on where an earlier run in the same folder stopped.

    Each line is `{"split": "train" | "eval", "step": int, "epoch": int, ...values}`; a train line also holds
    `learning_rate_<part>`. Lines can be read as soon as they are written.
    """

    def __init__(self) -> None:
        self._file: TextIO | None = None

    def on_train_start(self, run: Run) -> None:
        """Open the file."""
        if run.is_main:
            run.model_dir.mkdir(parents=True, exist_ok=True)
            self._file = (run.model_dir / METRICS_FILE).open("a", encoding="utf-8")

    def on_log(self, run: Run, values: dict[str, float]) -> None:
        """A line of the train split."""
        rates = {f"learning_rate_{part}": rate for part, rate in run.optimizer.learning_rates().items()}
        self._write("train", run, {**values, **rates})

    def on_evaluate(self, run: Run, metrics: dict[str, float]) -> None:
        """A line of the eval split."""
        self._write("eval", run, metrics)

    def on_train_end(self, run: Run) -> None:
        """Close the file."""
        self._close()

    def on_error(self, run: Run, error: BaseException) -> None:
        """Close the file."""
        self._close()

    def _write(self, split: str, run: Run, values: dict[str, float]) -> None:
        if self._file is not None:
            self._file.write(json_line({"split": split, "step": run.step, "epoch": run.epoch, **values}))
            self._file.flush()

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
