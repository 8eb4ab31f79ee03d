"""The conformance kit, which proves what a plugin claims, and tools for tests of models; public, for any plugin."""

from tzrec_core.testing.asserts import assert_grad_flows, assert_same_predictions
from tzrec_core.testing.batches import make_batch, make_rows, with_empty_bags, with_empty_sequences, with_nulls
from tzrec_core.testing.check import Check, CheckResult, NotClaimed, Outcome, Skipped, model_check, plugin_check
from tzrec_core.testing.conformance import PluginConformance, check_model, check_plugin
from tzrec_core.testing.subject import ModelSubject, PluginSubject

__all__ = [
    "Check",
    "CheckResult",
    "ModelSubject",
    "NotClaimed",
    "Outcome",
    "PluginConformance",
    "PluginSubject",
    "Skipped",
    "assert_grad_flows",
    "assert_same_predictions",
    "check_model",
    "check_plugin",
    "make_batch",
    "make_rows",
    "model_check",
    "plugin_check",
    "with_empty_bags",
    "with_empty_sequences",
    "with_nulls",
]
