"""Warnings about a run that goes on without learning, each with its likely causes."""

import logging
import os
import re
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from tzrec_core.data.batch import Batch
from tzrec_core.engine.callbacks.callback import Callback, Run, StepOutput
from tzrec_core.features import BaseFeature
from tzrec_core.protos.data_pb2 import FG_NORMAL

_log = logging.getLogger(__name__)

_FIRST_BATCHES = 10
_RAW_SCALE = 1e3
_UNSEEN_SHARE = 0.99
_CONSTANT_STD = 1e-6
_CONSTANT_LOGS = 3
_CHANCE, _CHANCE_MARGIN, _CHANCE_STEPS = 0.5, 0.01, 1000
_DATA_WAIT, _DATA_LOGS = 0.5, 3
_VOCABULARIES = ("vocab_list", "vocab_dict", "vocab_file")
_SCORES = re.compile(r"(probs1?|y|similarity)(_|$)")
_SHOWN = 5


class Health(Callback):
    """Says once, on rank 0, when one of these is so.

    Ids: more than 99% of a vocabulary feature's ids in the first 10 batches are the one of unseen words.
    Scale: a number without normalizer is beyond 1,000 in the first 10 batches.
    Constant: predictions of a batch differ by less than a standard deviation of 1e-6, at 3 log steps in a row.
    Chance: an AUC of an evaluation is within 0.49 and 0.51 after 1,000 steps or an epoch.
    Data: more than half of the time was spent waiting for data, from log step to log step, 3 times in a row.
    """

    def __init__(self) -> None:
        self._inputs: _Inputs | None = None
        self._num_constant = 0
        self._num_slow = 0
        self._said: set[str] = set()

    def on_train_start(self, run: Run) -> None:
        """Look at the first batches, on rank 0."""
        if run.is_main:
            self._inputs = _Inputs(run.features)

    def on_step_end(self, run: Run, step_output: StepOutput) -> None:
        """Look at one of the first batches."""
        if self._inputs is not None:
            self._inputs.add(step_output.batch)
            if self._inputs.num_batches == _FIRST_BATCHES:
                self._check_inputs()

    def on_log(self, run: Run, values: dict[str, float]) -> None:
        """Look at the predictions and at the time."""
        if not run.is_main:
            return
        if run.output is not None and "constant" not in self._said:
            self._check_predictions(run, run.output.predictions)
        # a single slow window may be the one in which the data workers start, as they do with each epoch
        self._num_slow = self._num_slow + 1 if values.get("data_wait", 0.0) > _DATA_WAIT else 0
        if self._num_slow == _DATA_LOGS:
            self._say("data", _slow_data(run, values["data_wait"]))

    def on_evaluate(self, run: Run, metrics: dict[str, float]) -> None:
        """Look at the AUCs."""
        if not run.is_main or (run.step < _CHANCE_STEPS and run.epoch < 1):
            return
        for name, value in metrics.items():
            if "auc" in name and abs(value - _CHANCE) <= _CHANCE_MARGIN:
                self._say(
                    name,
                    f"{name} is {value:.4f} at step {run.step}, no better than chance. Common causes: the labels do "
                    "not belong to their rows, such as after a wrong join; the features that matter are missing or "
                    "all unseen; evaluation data that is encoded otherwise than training data; a learning rate (lr) "
                    "that is far too high or too low",
                )

    def on_train_end(self, run: Run) -> None:
        """Look at what a run of few steps has read."""
        self._check_inputs()

    def _check_inputs(self) -> None:
        inputs, self._inputs = self._inputs, None
        if inputs is not None:
            for problem in inputs.problems():
                self._say(problem, problem)

    def _check_predictions(self, run: Run, predictions: dict[str, Tensor]) -> None:
        rows = {
            name: value.reshape(len(value), -1).float()
            for name, value in predictions.items()
            if _SCORES.match(name) and value.dim() and len(value) > 1
        }
        constant = [name for name, value in rows.items() if bool((value.std(0) < _CONSTANT_STD).all())]
        self._num_constant = self._num_constant + 1 if constant else 0
        if self._num_constant < _CONSTANT_LOGS:
            return
        shown = ", ".join(f"{name} = {float(rows[name][0, 0]):.6g}" for name in constant)
        self._say(
            "constant",
            f"the predictions are the same for every row ({shown}) at step {run.step} and the {_CONSTANT_LOGS - 1} log "
            "steps before it: the model has stopped to read its features. Common causes: a learning rate (lr) that is "
            "too high, after which no unit of the net is active; raw features on a large scale, which saturate it: "
            "give them a normalizer; features that are all missing or unseen",
        )

    def _say(self, key: str, text: str) -> None:
        if key not in self._said:
            self._said.add(key)
            _log.warning("%s", text)


class _Inputs:
    """What the first batches hold: the range of each number, and how many ids are those of unseen words."""

    def __init__(self, features: Sequence[BaseFeature]) -> None:
        self.num_batches = 0
        self._numbers = {f.name: f for f in features if not f.is_sparse and not f.explicit("normalizer")}
        self._words = {f.name: f for f in features if f.encoding in _VOCABULARIES}
        # by feature; tensors, so that a GPU is not waited for at each step
        self._ranges: dict[str, tuple[Tensor, Tensor]] = {}
        self._unseen: dict[str, tuple[Tensor, int]] = {}

    def add(self, batch: Batch) -> None:
        """Look at one more batch."""
        self.num_batches += 1
        for keyed in batch.dense_features.values():
            for name, numbers in keyed.to_dict().items():
                self._add_numbers(name, numbers)
        for name, jagged in batch.sequence_dense_features.items():
            self._add_numbers(name, jagged.values())
        for ids in batch.sparse_features.values():
            for name in self._words.keys() & set(ids.keys()):
                self._add_ids(name, ids[name].values())

    def problems(self) -> Iterable[str]:
        """A text for each problem that shows."""
        found = []
        for name, (low, high) in self._ranges.items():
            ends = float(low), float(high)
            if max(map(abs, ends)) > _RAW_SCALE:
                found.append((self._numbers[name], *ends))
        if found:
            yield _raw_scale(found, self.num_batches)
        for name, (unseen, count) in self._unseen.items():
            share = float(unseen) / max(count, 1)
            if share > _UNSEEN_SHARE:
                yield _all_unseen(self._words[name], share, self.num_batches)

    def _add_numbers(self, name: str, numbers: Tensor) -> None:
        if name not in self._numbers or not numbers.numel():
            return
        low, high = torch.aminmax(numbers)
        if name in self._ranges:
            before = self._ranges[name]
            low, high = torch.minimum(low, before[0]), torch.maximum(high, before[1])
        self._ranges[name] = low, high

    def _add_ids(self, name: str, ids: Tensor) -> None:
        unseen, count = self._unseen.get(name, (torch.zeros((), device=ids.device), 0))
        self._unseen[name] = unseen + (ids == _unseen_id(self._words[name])).sum(), count + ids.numel()


def _unseen_id(feature: BaseFeature) -> int:
    """The id of words that are not in the vocabulary, as `features.vocab` gives it."""
    fallback = feature.explicit("default_bucketize_value")
    return 1 if fallback is None else int(fallback)


def _raw_scale(found: list[tuple[BaseFeature, float, float]], num_batches: int) -> str:
    shown = "; ".join(f"{f.at()} from {low:g} to {high:g}" for f, low, high in found[:_SHOWN])
    more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    encoded = found[0][0].fg_mode != FG_NORMAL  # as all others
    fix = (
        "scale the columns, for the data is read as it is (fg_mode: FG_NONE)"
        if encoded
        else 'give each a normalizer, such as "method=zscore,mean=...,standard_deviation=...", or boundaries'
    )
    return (
        f"numbers on a large scale in the first {num_batches} batches: {shown}{more}. They drown the other features "
        f"and make training diverge: {fix}"
    )


def _all_unseen(feature: BaseFeature, share: float, num_batches: int) -> str:
    words = feature.words
    examples = ", ".join(repr(word) for word in words[:3])
    causes = (
        "another type in the data than in the vocabulary (1.0 and 1), spaces or quotes around the values, upper and "
        "lower case, missing values, or the wrong list"
        if feature.fg_mode == FG_NORMAL
        else "the columns were encoded so when the data was made (fg_mode: FG_NONE)"
    )
    return (
        f"{feature.at(feature.encoding)}: {share:.1%} of the ids in the first {num_batches} batches are "
        f"{_unseen_id(feature)}, that of unseen words: almost no value is among the {len(words)} words, such as "
        f"{examples}. Common causes: {causes}"
    )


def _slow_data(run: Run, share: float) -> str:
    workers, cores, processes = run.config.data_config.num_workers, os.cpu_count() or 1, run.world.local_size
    if workers * processes < cores:
        per_process = f" in each of {processes} processes" if processes > 1 else ""
        fix = f"raise data_config.num_workers (it is {workers}{per_process}; this machine has {cores} cores)"
    else:
        fix = f"data_config.num_workers = {workers} takes all {cores} cores of this machine already"
    return (
        f"{share:.0%} of the time up to step {run.step} was spent waiting for data, so reading it is the bottleneck: "
        f"{fix}; "
        "read Parquet instead of CSV, with several row groups per worker; leave out columns and features that no "
        "feature group uses"
    )
