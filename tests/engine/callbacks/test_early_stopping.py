import math

import pytest

from tzrec_core.engine.callbacks.early_stopping import EarlyStopping
from tzrec_core.errors import ConfigError


@pytest.fixture
def watch(make_run):
    """The evaluation, from 1, after which a run stops; 0 = it does not."""

    def make(values, **settings):
        run, callback = make_run(has_eval_data=True), EarlyStopping("auc", **settings)
        callback.on_train_start(run)
        for number, value in enumerate(values, 1):
            run.step = 10 * number
            callback.on_evaluate(run, {"auc": value})
            if run.stop_reason:
                return number, run.stop_reason
        return 0, ""

    return make


def test_a_run_stops_after_so_many_evaluations_without_a_better_one(watch):
    number, reason = watch([0.6, 0.7, 0.69, 0.7, 0.65, 0.9], patience=3)
    assert number == 5
    assert reason == "early stopping: auc has not improved on 0.700000 of step 20 in 3 evaluations"


def test_unset_the_metric_says_what_is_better(make_run):
    def after(metric, *values):
        run, callback = make_run(has_eval_data=True), EarlyStopping(metric, patience=1)
        callback.on_train_start(run)
        for run.step, value in enumerate(values, 1):
            callback.on_evaluate(run, {metric: value})
        return run.stop_reason

    assert not after("auc", 0.6, 0.7, 0.8)
    assert not after("binary_cross_entropy", 0.8, 0.7, 0.6)
    assert "of step 1 in 1 evaluation" in after("auc", 0.7, 0.6)
    assert "of step 1 in 1 evaluation" in after("binary_cross_entropy", 0.6, 0.7)


def test_of_a_metric_that_does_not_say_what_is_better_the_settings_must(make_run):
    run = make_run("model_config.metrics={calibration {}}", has_eval_data=True)
    with pytest.raises(ConfigError, match=r"'calibration' does not say .*write higher_is_better: true or false"):
        EarlyStopping("calibration").on_train_start(run)
    EarlyStopping("calibration", higher_is_better=False).on_train_start(run)


@pytest.mark.parametrize(
    ("values", "settings", "expected"),
    [
        ([0.6, 0.5, 0.7, 0.6, 0.8], {"patience": 2}, 0),
        ([0.6, 0.6], {"patience": 1}, 2),
        ([0.9, 0.8, 0.7, 0.8], {"patience": 1, "higher_is_better": False}, 4),
        ([0.50, 0.505, 0.51, 0.52], {"patience": 3, "min_delta": 0.015}, 0),
        ([0.50, 0.505, 0.51, 0.512], {"patience": 3, "min_delta": 0.015}, 4),
        ([math.nan, math.nan, 0.5], {"patience": 3}, 0),
        ([0.5, math.nan, math.nan, 0.9], {"patience": 2}, 3),
        ([math.nan, math.nan], {"patience": 2}, 2),
    ],
)
def test_what_counts_as_better_is_as_the_settings_say(watch, values, settings, expected):
    assert watch(values, **settings)[0] == expected


def test_a_continued_run_counts_on(make_run):
    run, before = make_run(has_eval_data=True), EarlyStopping("auc", patience=2)
    before.on_train_start(run)
    assert before.state_dict() == {}
    for value in (0.7, 0.6):
        run.step += 10
        before.on_evaluate(run, {"auc": value})
    after = EarlyStopping("auc", patience=2)
    after.load_state_dict(before.state_dict())
    after.on_train_start(run)
    assert not run.stop_reason
    after.on_evaluate(run, {"auc": 0.65})
    assert "0.700000 of step 10 in 2 evaluations" in run.stop_reason


def test_a_run_that_stopped_early_does_not_start_again_until_it_may_wait_longer(make_run):
    state = {"metric": "auc", "best": 0.7, "best_step": 10, "num_worse": 2}
    for patience, stops in ((2, True), (3, False)):
        run, callback = make_run(has_eval_data=True), EarlyStopping("auc", patience=patience)
        callback.load_state_dict(state)
        callback.on_train_start(run)
        assert bool(run.stop_reason) is stops


def test_another_metric_starts_afresh(make_run):
    callback = EarlyStopping("binary_cross_entropy", higher_is_better=False)
    callback.load_state_dict({"metric": "auc", "best": 0.7, "best_step": 10, "num_worse": 9})
    assert callback.state_dict() == {}


def test_an_unknown_metric_is_refused_at_the_start_with_those_there_are(make_run):
    with pytest.raises(ConfigError) as caught:
        EarlyStopping("acu").on_train_start(make_run(has_eval_data=True))
    assert str(caught.value) == (
        "train_config.early_stopping.metric = 'acu' is not a metric of the evaluation. Metrics are: auc, "
        "binary_cross_entropy. Did you mean 'auc'?"
    )


def test_a_metric_that_no_evaluation_gives_is_refused_there(make_run):
    run, callback = make_run(has_eval_data=True), EarlyStopping("auc_0")
    callback.on_train_start(run)  # a metric `auc` of several values would be called so
    with pytest.raises(ConfigError, match=r"'auc_0' is not a metric.*Metrics are: auc\."):
        callback.on_evaluate(run, {"auc": 0.5})


def test_a_run_without_evaluation_data_is_refused(make_run):
    with pytest.raises(ConfigError, match=r"early_stopping .*no evaluation data; set eval_input_path"):
        EarlyStopping("auc").on_train_start(make_run())
