"""Records a few steps with the PyTorch profiler."""

import logging
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from tzrec_core.engine.callbacks.callback import Callback, Run, StepOutput

_log = logging.getLogger(__name__)

_WAIT, _WARMUP, _ACTIVE = 10, 2, 5
_NUM_OPS = 40


class Profiler(Callback):
    """Records steps 13 to 17 of a run on rank 0, after 10 that pass and 2 that warm the profiler up.

    Writes `<model_dir>/profile/step_<n>.trace.json` for chrome://tracing or Perfetto, and `step_<n>.txt`, the
    operations that took the most time. n is the last step recorded.
    """

    def __init__(self) -> None:
        self._profile: profile | None = None
        self._run: Run | None = None
        self._num_steps = 0
        self._is_written = False

    def on_train_start(self, run: Run) -> None:
        """Start to count."""
        if not run.is_main:
            return
        self._run = run
        activities = [ProfilerActivity.CPU]
        if run.world.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        plan = schedule(wait=_WAIT, warmup=_WARMUP, active=_ACTIVE, repeat=1)
        self._profile = profile(activities=activities, schedule=plan, on_trace_ready=self._write)
        self._profile.start()

    def on_step_end(self, run: Run, step_output: StepOutput) -> None:
        """Go on to the next step of the plan; after the last one there is nothing left to pay."""
        if self._profile is None:
            return
        self._num_steps += 1
        self._profile.step()
        if self._num_steps == _WAIT + _WARMUP + _ACTIVE:
            self._stop()

    def on_train_end(self, run: Run) -> None:
        """Write what a short run recorded."""
        self._stop()
        if self._run is not None and not self._is_written:
            _log.warning(
                "train_config.is_profiling: nothing was recorded, for recording starts after %d steps and this run "
                "took %d",
                _WAIT + _WARMUP,
                self._num_steps,
            )

    def on_error(self, run: Run, error: BaseException) -> None:
        """Write what was recorded."""
        self._stop()

    def _stop(self) -> None:
        if self._profile is not None:
            self._profile.stop()
            self._profile = None

    def _write(self, recorded: Any) -> None:  # Any: the profiler, whose type torch gives as a base class
        assert self._run is not None
        self._is_written = True
        folder = self._run.model_dir / "profile"
        folder.mkdir(parents=True, exist_ok=True)
        name = f"step_{self._run.step}"
        recorded.export_chrome_trace(str(folder / f"{name}.trace.json"))
        order = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        table = recorded.key_averages().table(sort_by=order, row_limit=_NUM_OPS)
        (folder / f"{name}.txt").write_text(table, encoding="utf-8")
        self._run.say(f"profile written to {folder / name}.trace.json and .txt")
