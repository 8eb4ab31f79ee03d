import json
import os
import signal
from pathlib import Path

from tzrec_core.engine.callbacks import Callback, Run, StepOutput


class Recorder(Callback):
    """Writes `rows-<rank>.jsonl` into the folder `value`: a line `[step, [row, ...]]` for each step.

    A file `<signal>-<rank>-<step>` in the folder, such as SIGKILL-1-7, makes the process send itself that signal after
    the step, once.
    """

    def __init__(self, value: str) -> None:
        self.folder = Path(value)

    def on_step_end(self, run: Run, step_output: StepOutput) -> None:
        rows = step_output.batch.sparse_features["__BASE__"]["row"].values().tolist()
        with (self.folder / f"rows-{run.world.rank}.jsonl").open("a") as file:
            file.write(json.dumps([run.step, rows]) + "\n")
        for order in self.folder.glob(f"SIG*-{run.world.rank}-{run.step}"):
            order.unlink()
            os.kill(os.getpid(), getattr(signal, order.name.partition("-")[0]))
