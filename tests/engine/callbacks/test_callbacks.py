import json
import logging
import re

import pytest
import tiny_data

from tzrec_core.config import parse_config
from tzrec_core.engine.callbacks import Callback
from tzrec_core.engine.callbacks.callbacks import Callbacks, Member
from tzrec_core.engine.callbacks.early_stopping import EarlyStopping
from tzrec_core.engine.callbacks.step_timer import StepTimer
from tzrec_core.errors import ConfigError, DataError, PluginError
from tzrec_core.plugins import CallbackSpec, Plugin, Registry, use_registry

STOP = "train_config.callbacks=[{{ [tzrec.dev/acme_ranking.StopAfterRows] {{ {} }} }}]"
SETTINGS = "tzrec_core.protos.train_pb2:GradScaler"  # of any plugin's callback here: the type does not matter


@pytest.fixture
def acme(use_plugins):
    return use_plugins("acme-ranking", files=(tiny_data.MANIFEST,))


def parsed(*overrides):
    return parse_config(tiny_data.CONFIG % {"folder": "nowhere"}, overrides=overrides)


class Recorder(Callback):
    """Notes what it is told."""

    heard = []

    def __init__(self, name="recorder"):
        self.name = name

    def on_train_start(self, run):
        self.heard.append((self.name, "start"))

    def on_log(self, run, values):
        self.heard.append((self.name, values))

    def on_error(self, run, error):
        self.heard.append((self.name, str(error)))


class Failing(Callback):
    def __init__(self, error):
        self.error = error

    def on_evaluate(self, run, metrics):
        raise self.error

    def on_error(self, run, error):
        raise ValueError("again")


@pytest.fixture
def heard():
    Recorder.heard = []
    return Recorder.heard


def test_each_event_reaches_all_callbacks_in_their_order(make_run, heard):
    run = make_run()
    callbacks = Callbacks([Member(Recorder("first"), "first"), Member(Recorder("second"), "second", "acme")])
    callbacks.on_train_start(run)
    callbacks.on_log(run, {"loss": 1.0})
    assert heard == [("first", "start"), ("second", "start"), ("first", {"loss": 1.0}), ("second", {"loss": 1.0})]


def test_at_a_step_only_those_are_called_that_listen(make_run, make_output, heard, monkeypatch):
    monkeypatch.setattr(Callback, "on_step_end", pytest.fail)
    run = make_run()
    callbacks = Callbacks([Member(Recorder(), "recorder")])
    output = make_output(run)
    callbacks.on_step_end(run, output)
    assert run.output is output


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        ((), ["Progress", "MetricsLog", "Health"]),
        (("train_config.use_tensorboard=true",), ["Progress", "MetricsLog", "TensorBoard", "Health"]),
        (
            ("train_config.is_profiling=true", "train_config.early_stopping.metric=auc"),
            ["Progress", "MetricsLog", "Health", "Profiler", "EarlyStopping"],
        ),
    ],
)
def test_the_train_config_decides_which_built_in_callbacks_there_are(overrides, names):
    callbacks = Callbacks.from_config(parsed(*overrides))
    assert [type(member.callback).__name__ for member in callbacks._members] == names


def test_the_settings_of_built_in_callbacks_reach_them():
    overrides = ("early_stopping.metric=auc", "early_stopping.patience=5", "use_tensorboard=true")
    config = parsed(*(f"train_config.{o}" for o in overrides), 'train_config.tensorboard_summaries=["gradient"]')
    found = {type(m.callback).__name__: m.callback for m in Callbacks.from_config(config)._members}
    assert isinstance(found["EarlyStopping"], EarlyStopping)
    assert (found["EarlyStopping"]._patience, found["TensorBoard"]._summaries) == (5, {"gradient"})


# Plugins


def test_a_callback_of_a_plugin_is_made_with_its_settings_and_called(acme, make_run, make_output, capsys):
    run = make_run(STOP.format("rows: 10"))
    callbacks = Callbacks.from_config(run.config)
    stops = []
    for _ in range(3):
        callbacks.on_step_end(run, make_output(run))  # 4 rows
        stops.append(run.stop_reason)
    callbacks.on_train_end(run)
    assert stops == ["", "", "12 rows were read"]
    assert "trained on 12 rows" in capsys.readouterr().err


def test_a_continued_run_hands_each_callback_its_state(acme, make_run, make_output):
    run = make_run(STOP.format("rows: 10"))
    before = Callbacks.from_config(run.config)
    for _ in range(2):
        before.on_step_end(run, make_output(run))
    states = before.state_dict()
    assert states == {"acme-ranking:stop_after_rows": {"rows": 8}}
    after = Callbacks.from_config(run.config)
    after.load_state_dict(states)
    after.on_step_end(run, make_output(run))
    assert run.stop_reason == "12 rows were read"


def test_two_callbacks_of_one_kind_keep_their_states_apart(acme, make_run, make_output):
    slot = "{{ [tzrec.dev/acme_ranking.StopAfterRows] {{ rows: {} }} }}"
    run = make_run(f"train_config.callbacks=[{slot.format(5)}, {slot.format(6)}]")
    callbacks = Callbacks.from_config(run.config)
    first, second = (m.callback for m in callbacks._members if m.plugin)
    callbacks.load_state_dict(
        {"acme-ranking:stop_after_rows": {"rows": 1}, "acme-ranking:stop_after_rows#2": {"rows": 2}}
    )
    assert (first.state_dict(), second.state_dict()) == ({"rows": 1}, {"rows": 2})
    assert list(callbacks.state_dict()) == ["acme-ranking:stop_after_rows", "acme-ranking:stop_after_rows#2"]


def test_the_state_of_a_callback_that_is_gone_is_passed_over(make_run, caplog):
    caplog.set_level(logging.INFO)
    Callbacks([]).load_state_dict({"acme:gone": {"a": 1}})
    assert "state of callback 'acme:gone', which this run does not have" in caplog.text


def test_a_mistake_in_the_settings_names_the_slot_the_callback_and_the_plugin(acme):
    with pytest.raises(PluginError) as caught:
        Callbacks.from_config(parsed(STOP.format("rows: 0")))
    assert str(caught.value) == (
        "train_config.callbacks[0]: callback 'stop_after_rows' of acme-ranking cannot be made: ValueError: rows = 0: "
        "it must be 1 or more"
    )


def test_settings_of_another_kind_are_refused_with_their_place(acme):
    with pytest.raises(PluginError, match=r"callbacks\[0\]: acme_ranking\.Brier is not the settings of a callback\. "):
        Callbacks.from_config(parsed("train_config.callbacks=[{ [tzrec.dev/acme_ranking.Brier] { } }]"))


def test_an_empty_slot_is_refused_with_its_place():
    with pytest.raises(ConfigError, match=r"train_config\.callbacks\[0\]: the slot is empty"):
        Callbacks.from_config(parsed("train_config.callbacks=[{ }]"))


def test_a_target_that_is_not_a_callback_is_refused(tiny_registry):
    spec = CallbackSpec("watcher", "builtins:dict", SETTINGS, "Watches.")
    mine = Plugin(name="mine", distribution="tzrec-mine", version="1", specs=[spec])
    with use_registry(Registry([*tiny_registry.plugins, mine])):
        config = parsed("train_config.callbacks=[{ [tzrec.dev/tzrec_core.protos.GradScaler] { } }]")
        with pytest.raises(PluginError, match="'watcher' of tzrec-mine: builtins:dict is not a Callback but a dict"):
            Callbacks.from_config(config)


# What goes wrong


def test_an_exception_in_a_callback_of_a_plugin_names_both_and_the_event(make_run):
    callbacks = Callbacks([Member(Failing(ZeroDivisionError("by zero")), "watcher", "tzrec-mine")])
    with pytest.raises(PluginError) as caught:
        callbacks.on_evaluate(make_run(), {})
    assert str(caught.value) == ("callback 'watcher' of tzrec-mine failed in on_evaluate: ZeroDivisionError: by zero")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_an_error_for_users_passes_as_it_is(make_run):
    callbacks = Callbacks([Member(Failing(DataError("no rows")), "watcher", "tzrec-mine")])
    with pytest.raises(DataError, match=r"^no rows$"):
        callbacks.on_evaluate(make_run(), {})


def test_a_bug_of_our_own_is_not_blamed_on_a_plugin(make_run):
    with pytest.raises(ZeroDivisionError):
        Callbacks([Member(Failing(ZeroDivisionError()), "watcher")]).on_evaluate(make_run(), {})


def test_an_error_reaches_all_callbacks_even_when_one_of_them_fails(make_run, heard, caplog):
    callbacks = Callbacks([Member(Failing(None), "failing", "tzrec-mine"), Member(Recorder(), "recorder")])
    callbacks.on_error(make_run(), DataError("no rows"))
    assert heard == [("recorder", "no rows")]
    assert "callback 'failing' of tzrec-mine failed in on_error: ValueError: again" in caplog.text


def test_a_state_that_json_cannot_hold_names_the_callback():
    class Odd(Callback):
        def state_dict(self):
            return {"seen": {1, 2}}

    with pytest.raises(PluginError, match=r"'odd' of acme failed in state_dict: TypeError: .*set is not JSON"):
        Callbacks([Member(Odd(), "odd", "acme")]).state_dict()


# The run


def test_the_first_reason_to_stop_counts(make_run):
    run = make_run()
    run.stop("one")
    run.stop("two")
    assert run.stop_reason == "one"


def test_only_rank_0_says_something(make_run, capsys):
    for rank in (0, 1):
        make_run(rank=rank).say(f"rank {rank}")
    assert capsys.readouterr().err == "rank 0\n"


def test_all_built_in_callbacks_see_a_run_from_start_to_end(make_run, make_output, capsys, said):
    run = make_run(
        "train_config.use_tensorboard=true", "train_config.is_profiling=true", "train_config.early_stopping.metric=auc",
        "train_config.early_stopping.patience=1", has_eval_data=True, num_steps=100,
    )  # fmt: skip
    callbacks, timer = Callbacks.from_config(run.config), StepTimer(run.world)
    callbacks.on_train_start(run)
    for _ in timer.batches(range(40)):
        callbacks.on_before_step(run)
        run.step += 1
        timer.step(4)
        callbacks.on_step_end(run, make_output(run))
        if run.step % 10 == 0:
            callbacks.on_log(run, {"loss": 0.5, **timer.values()})
            with callbacks.paused(), timer.paused():
                callbacks.on_save(run, run.model_dir / "model.ckpt-1")
                callbacks.on_evaluate(run, {"auc": 0.9 - run.step / 100})
        if run.stop_reason:
            break
    callbacks.on_train_end(run)
    assert run.stop_reason == "early stopping: auc has not improved on 0.800000 of step 10 in 1 evaluation"
    lines = [json.loads(line) for line in (run.model_dir / "metrics.jsonl").read_text().splitlines()]
    assert [(line["split"], line["step"]) for line in lines] == [(s, n) for n in (10, 20) for s in ("train", "eval")]
    assert lines[0].keys() > {"samples_per_second", "data_wait", "device_wait", "memory_mib", "learning_rate_dense"}
    assert sorted(path.name for path in run.model_dir.iterdir()) == ["metrics.jsonl", "profile", "tensorboard"]
    assert callbacks.state_dict().keys() == {"early_stopping"}
    shown = capsys.readouterr().err
    assert re.search(r"train step 20/100  [\d,]+ samples/s  loss 0\.5  lr sparse 0\.02 dense 0\.001  .* MiB", shown)
    assert said() == []
