"""Callbacks: what watches a training run, built in or from plugins. A plugin's callback subclasses `Callback`."""

from tzrec_core.engine.callbacks.callback import Callback, Run, StepOutput

__all__ = ["Callback", "Run", "StepOutput"]
