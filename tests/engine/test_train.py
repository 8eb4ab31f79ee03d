import json
import logging
import re
import warnings
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import tiny_data
import torch
from checkpoint_tensors import checkpoint_tensors
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from tzrec_core.config import load_config
from tzrec_core.data.loader import BatchLoader
from tzrec_core.engine import pipeline
from tzrec_core.engine import train as module
from tzrec_core.engine.checkpoint import checkpoints, find_checkpoint
from tzrec_core.engine.checkpoint_files import read_meta, write_meta
from tzrec_core.engine.train import train
from tzrec_core.errors import CheckpointError, ConfigError, DataError, TzrecError
from tzrec_core.modules import EmbeddingGroup

SHUFFLED = ("data_config.shuffle=true", "data_config.shuffle_buffer_size=2")
DROPOUT = ("model_config.tiny.dropout=0.5",)


def assert_same(one, other) -> None:
    first, second = checkpoint_tensors(one), checkpoint_tensors(other)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def steps_of(model_dir) -> list[int]:
    return [step for step, _ in checkpoints(model_dir)]


def lines_of(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def run_dir(tmp_path):
    return tmp_path / "run"


# How long


@pytest.mark.parametrize(
    ("limits", "steps"),
    [
        ([], 5),  # one epoch: 72 rows in batches of 16
        (["num_epochs=2"], 10),
        (["num_steps=3"], 3),
        (["num_steps=12"], 12),
        (["num_steps=12", "num_epochs=2"], 10),
        (["num_steps=7", "num_epochs=2"], 7),
    ],
)
def test_a_run_lasts_one_epoch_or_as_long_as_steps_and_epochs_say_whichever_ends_first(config, run_dir, limits, steps):
    result = train(config(*[f"train_config.{limit}" for limit in limits]))
    assert (result.step, result.checkpoint) == (steps, run_dir / f"model.ckpt-{steps}")
    assert result.samples_per_second > 0
    assert steps_of(run_dir) == [steps]


def test_the_config_as_used_lies_beside_the_checkpoints(config, run_dir):
    changed = config("train_config.num_steps=2", "data_config.batch_size=9")
    train(changed)
    assert load_config(run_dir / "pipeline.config") == changed


# The same bits


def test_equal_seeds_give_equal_bits(config, tmp_path):
    one = config(*SHUFFLED, *DROPOUT, f"model_dir={tmp_path}/one")
    two = config(*SHUFFLED, *DROPOUT, f"model_dir={tmp_path}/two")
    other = config(*SHUFFLED, *DROPOUT, f"model_dir={tmp_path}/other", "train_config.seed=8")
    first, second, third = train(one), train(two), train(other)
    assert_same(first.checkpoint, second.checkpoint)
    with pytest.raises(AssertionError):
        assert_same(first.checkpoint, third.checkpoint)


def test_an_unset_seed_is_drawn_and_logged_and_repeats_the_run(config, tmp_path, caplog):
    def make(name, *changes):
        made = config(*DROPOUT, f"model_dir={tmp_path}/{name}", *changes)
        if not changes:
            made.train_config.ClearField("seed")
        return made

    with caplog.at_level(logging.INFO):
        first = train(make("first"))
    (seed,) = re.findall(r"^seed (\d+)$", "\n".join(caplog.messages), re.MULTILINE)
    other = train(make("other"))
    again = train(make("again", f"train_config.seed={seed}"))
    assert_same(first.checkpoint, again.checkpoint)
    assert read_meta(first.checkpoint)["seed"] == int(seed) != read_meta(other.checkpoint)["seed"]


@pytest.mark.parametrize("stops", [["num_epochs=1"], ["num_steps=3"], ["num_steps=5"], ["num_steps=2", "num_steps=7"]])
def test_a_run_in_parts_equals_one_without_a_stop_bit_for_bit(config, tmp_path, stops):
    changes = [*SHUFFLED, *DROPOUT, "train_config.num_epochs=2"]
    straight = train(config(*changes, f"model_dir={tmp_path}/straight", "train_config.save_checkpoints_steps=0"))
    parts = [*changes, f"model_dir={tmp_path}/parts"]
    for stop in stops:
        train(config(*parts, f"train_config.{stop}"))
    last = train(config(*parts))
    assert last.step == straight.step == 10
    assert_same(straight.checkpoint, last.checkpoint)


def test_evaluating_on_the_way_does_not_change_what_is_learnt(config, tmp_path):
    quiet = train(config(*DROPOUT, f"model_dir={tmp_path}/quiet", 'eval_input_path=""'))
    busy = train(config(*DROPOUT, f"model_dir={tmp_path}/busy", "train_config.save_checkpoints_steps=2"))
    assert_same(quiet.checkpoint, busy.checkpoint)


def test_a_finished_run_has_nothing_left_to_do(config, run_dir):
    first = train(config())
    before = sorted(p.name for p in run_dir.iterdir())
    again = train(config())
    assert (again.step, again.checkpoint, again.samples_per_second) == (5, first.checkpoint, 0.0)
    assert again.metrics == first.metrics != {}
    assert sorted(p.name for p in run_dir.iterdir()) == before


def test_a_run_cannot_go_on_inside_an_epoch_with_other_batches(config):
    train(config("train_config.num_steps=3"))
    with pytest.raises(
        CheckpointError, match=r"stopped within an epoch at batch_size 16, but data_config.batch_size is 8"
    ):
        train(config("data_config.batch_size=8"))


def test_other_rows_inside_an_epoch_are_said(config, tmp_path, caplog):
    train(config(*SHUFFLED, "train_config.num_steps=3"))
    with caplog.at_level(logging.WARNING):
        train(config(*SHUFFLED, "train_config.seed=8", "train_config.num_steps=4"))
    assert "seed was 7 and is 8: some rows of this epoch will be seen twice, others not at all" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        train(config(*SHUFFLED, "train_config.seed=8", "train_config.num_steps=5"))
    assert "seen twice" not in caplog.text


def test_another_version_of_a_plugin_is_said(config, caplog, run_dir):
    train(config("train_config.num_steps=3"))
    meta = read_meta(run_dir / "model.ckpt-3")
    assert meta["plugins"] == {tiny_data.MANIFEST: ""}
    write_meta(run_dir / "model.ckpt-3", {**meta, "plugins": {tiny_data.MANIFEST: "0.9"}})
    with caplog.at_level(logging.WARNING):
        train(config("train_config.num_steps=4"))
    assert f"the checkpoint was written with {tiny_data.MANIFEST} 0.9" in caplog.text


# Checkpoints on the way


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        (["save_checkpoints_steps=2"], [2, 4, 6, 8, 10]),
        (["save_checkpoints_steps=0"], [10]),
        (["save_checkpoints_epochs=1"], [5, 10]),
        (["save_checkpoints_steps=4", "save_checkpoints_epochs=0"], [4, 8, 10]),
        (["save_checkpoints_steps=4", "save_checkpoints_epochs=1"], [4, 5, 8, 10]),
        (["save_checkpoints_steps=3", "keep_checkpoint_max=2"], [9, 10]),
    ],
)
def test_checkpoints_are_saved_by_steps_and_by_epochs_and_at_the_end(config, run_dir, settings, steps):
    train(config("train_config.num_epochs=2", *[f"train_config.{s}" for s in settings]))
    assert steps_of(run_dir) == steps


def test_checkpoints_by_epochs_alone_switch_off_the_default_by_steps(config, run_dir):
    settings = config("train_config.save_checkpoints_epochs=2").train_config
    assert not settings.HasField("save_checkpoints_steps")
    training = object.__new__(module._Training)
    training.settings, training.run = settings, SimpleNamespace(step=1000)
    assert not training._is_save_step()
    settings.save_checkpoints_epochs = 0
    assert training._is_save_step()


def test_what_the_model_does_at_the_end_of_training_is_in_the_last_checkpoint_and_done_once(
    config, monkeypatch, run_dir
):
    from tiny_model import Tiny

    calls = []

    def on_train_end(self):
        calls.append(1)
        with torch.no_grad():
            self.output.bias.fill_(1000.0)

    monkeypatch.setattr(Tiny, "on_train_end", on_train_end, raising=False)
    result = train(config("train_config.save_checkpoints_steps=5"))
    assert checkpoint_tensors(result.checkpoint)["model.output.bias"].tolist() == [1000.0]
    assert (len(calls), steps_of(run_dir)) == (1, [5])
    train(config("train_config.save_checkpoints_steps=5"))
    assert len(calls) == 1


# Evaluation and logs


def test_each_checkpoint_is_evaluated_and_the_results_are_written(config, run_dir):
    result = train(config("train_config.save_checkpoints_steps=2"))
    written = lines_of(run_dir / "train_eval_result.txt")
    assert [line["global_step"] for line in written] == [2, 4, 5]
    assert set(written[0]) == {"global_step", "auc", "binary_cross_entropy"}
    assert {k: v for k, v in written[-1].items() if k != "global_step"} == result.metrics
    evaluations = [line for line in lines_of(run_dir / "metrics.jsonl") if line["split"] == "eval"]
    assert [(line["step"], line["epoch"]) for line in evaluations] == [(2, 0), (4, 0), (5, 1)]
    assert evaluations[-1]["auc"] == result.metrics["auc"]


def test_without_eval_input_path_nothing_is_evaluated(config, run_dir):
    result = train(config('eval_input_path=""'))
    assert result.metrics == {}
    assert not (run_dir / "train_eval_result.txt").exists()


def test_train_lines_come_every_log_step_count_steps(config, run_dir):
    metrics = "model_config.train_metrics=[{auc { thresholds: 10 } decay_rate: 0.9 decay_step: 1}]"
    train(config("train_config.log_step_count_steps=2", "train_config.num_epochs=2", metrics))
    lines = [line for line in lines_of(run_dir / "metrics.jsonl") if line["split"] == "train"]
    assert [(line["step"], line["epoch"]) for line in lines] == [(2, 0), (4, 0), (6, 1), (8, 1), (10, 1)]
    assert set(lines[0]) == {
        "split", "step", "epoch", "loss", "auc", "samples_per_second", "data_wait", "device_wait", "memory_mib",
        "learning_rate_dense", "learning_rate_sparse",
    }  # fmt: skip
    assert all(line["samples_per_second"] > 0 for line in lines)


def test_tensorboard_holds_the_scalars_of_both_splits(config, run_dir):
    train(config("train_config.use_tensorboard=true", "train_config.log_step_count_steps=2"))
    written = lines_of(run_dir / "metrics.jsonl")
    for split, name in (("train", "loss"), ("eval", "auc")):
        events = EventAccumulator(str(run_dir / "tensorboard" / split))
        events.Reload()
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert found == [(w["step"], pytest.approx(w[name])) for w in written if w["split"] == split]


def test_tensorboard_can_be_left_out(config, run_dir):
    train(config("train_config.use_tensorboard=false"))
    assert not (run_dir / "tensorboard").exists()


def test_without_a_terminal_plain_lines_tell_how_it_goes(config, capfd):
    train(config("train_config.log_step_count_steps=2"))
    said = capfd.readouterr().err
    assert re.search(
        r"^train step 4/5  [\d,]+ samples/s  loss 0\.\d+  lr 0\.02  data wait \d+%  [\d,]+ MiB  \d+:\d\d left$",
        said,
        re.MULTILINE,
    )
    assert re.search(r"^eval step 5  auc 0\.\d{6}  binary_cross_entropy 0\.\d{6}$", said, re.MULTILINE)


# What is learnt


def test_training_learns_what_there_is_to_learn(config, tmp_path):
    tiny_data.write_tables(tmp_path, num_train=800, num_eval=200)
    before = train(config("train_config.num_steps=1")).metrics
    after = train(config("train_config.num_epochs=6")).metrics
    assert after["auc"] > 0.9 > before["auc"]
    assert after["binary_cross_entropy"] < before["binary_cross_entropy"]


def test_bf16_learns_too(config, tmp_path):
    tiny_data.write_tables(tmp_path, num_train=800, num_eval=200)
    assert train(config("train_config.num_epochs=6", 'train_config.mixed_precision="BF16"')).metrics["auc"] > 0.9


def test_rows_of_weight_zero_teach_nothing(config, tmp_path):
    path = tmp_path / "train.parquet"
    table = pq.read_table(path)
    weights = [float(row % 2) for row in range(table.num_rows)]
    wrong = [int(1 - click) if not weight else int(click) for click, weight in zip(table["click"].to_pylist(), weights)]
    results = []
    for clicks in (table["click"].to_pylist(), wrong):
        weighted = table.set_column(table.schema.get_field_index("weight"), "weight", [weights])
        pq.write_table(weighted.set_column(table.schema.get_field_index("click"), "click", [clicks]), path)
        made = config('data_config.sample_weight_fields=["weight"]', f"model_dir={tmp_path}/{len(results)}")
        results.append(train(made).checkpoint)
    assert_same(*results)


def test_frozen_tables_keep_their_first_values(config):
    frozen = ("feature_configs[0].id_feature.trainable=false",)
    one = checkpoint_tensors(train(config(*frozen, "train_config.num_steps=1")).checkpoint)
    five = checkpoint_tensors(train(config(*frozen)).checkpoint)
    name = "model.embedding_group.emb_impls.__BASE__.ebc.embedding_bags.{}_emb.weight"
    assert torch.equal(one[name.format("user")], five[name.format("user")])
    assert not torch.equal(one[name.format("item")], five[name.format("item")])


# What is wrong


def test_data_without_rows_is_an_error_and_leaves_no_checkpoint(config, tmp_path, run_dir):
    tiny_data.write_tables(tmp_path, num_train=0)
    with pytest.raises(DataError, match=r"there are no rows to train on in .*train\.parquet"):
        train(config())
    assert checkpoints(run_dir) == []
    tiny_data.write_tables(tmp_path, num_train=9)
    with pytest.raises(DataError, match=r"or fewer than batch_size = 16 for each process and drop_remainder is true"):
        train(config("data_config.drop_remainder=true"))


def test_missing_data_is_an_error_and_leaves_no_checkpoint(config, tmp_path, run_dir):
    for field in ("train_input_path", "eval_input_path"):
        with pytest.raises(DataError, match="nowhere"):
            train(config(f'{field}="{tmp_path}/nowhere.parquet"'))
    assert checkpoints(run_dir) == []


def test_a_model_dir_that_cannot_be_written_to_is_said(config, tmp_path):
    with pytest.raises(ConfigError, match=r"model_dir = '.*train\.parquet/run' cannot be written to: Not a directory"):
        train(config(f"model_dir={tmp_path}/train.parquet/run"))


def test_a_damaged_latest_checkpoint_stops_the_run_and_says_how_to_go_on(config, run_dir):
    train(config("train_config.num_steps=3"))
    (run_dir / "model.ckpt-3/model/__0_0.distcp").write_bytes(b"")
    with pytest.raises(CheckpointError, match="delete this one to go on from the one before it"):
        train(config())


def test_an_epoch_reads_the_rows_in_an_order_of_its_own(config, monkeypatch):
    epochs = []
    start = BatchLoader.start
    monkeypatch.setattr(BatchLoader, "start", lambda self, e, b: epochs.append(e) or start(self, e, b))
    train(config(*SHUFFLED, "train_config.num_epochs=3"))
    assert epochs == [0, 1, 2]


@pytest.mark.parametrize("every", [1, 100])
def test_a_loss_that_is_not_finite_ends_the_run_and_leaves_no_checkpoint(config, run_dir, every):
    rate = "train_config.dense_optimizer.adam_optimizer.lr=1e37"
    with pytest.raises(
        TzrecError, match=r"the loss is .* at step \d: .*learning rate.*raw features.*normalizer"
    ) as caught:
        train(config(rate, f"train_config.log_step_count_steps={every}"))
    assert caught.value.exit_code == 1
    assert steps_of(run_dir) == []


def test_parameters_that_are_not_finite_are_not_saved(config, monkeypatch, run_dir):
    from tiny_model import Tiny

    def on_train_end(self):
        with torch.no_grad():
            self.output.bias.fill_(float("inf"))

    monkeypatch.setattr(Tiny, "on_train_end", on_train_end, raising=False)
    with pytest.raises(TzrecError, match=r"model\.output\.bias holds inf at step 5"):
        train(config())
    assert steps_of(run_dir) == []


def test_what_torchmetrics_warns_of_is_one_log_line(config, monkeypatch, caplog, recwarn):
    from tiny_model import Tiny

    compute = Tiny.compute_metric

    def compute_metric(self):
        for _ in range(2):
            warnings.warn("No positive samples in targets", UserWarning, stacklevel=5)
        return compute(self)

    monkeypatch.setattr(Tiny, "compute_metric", compute_metric)
    train(config())
    assert [m for m in caplog.messages if "positive samples" in m] == ["metrics: No positive samples in targets"]
    assert not [w for w in recwarn if "positive samples" in str(w.message)]


def test_the_pipeline_of_cuda_devices_trains_as_that_of_cpus(config, monkeypatch):
    fused = "train_config.sparse_optimizer={rowwise_adagrad_optimizer { lr: 0.02 }}"
    settings = (fused, "train_config.save_checkpoints_steps=2", "train_config.num_epochs=2")
    one = train(config(*settings))
    monkeypatch.setitem(pipeline._BY_DEVICE, "cpu", pipeline._SparseDist)
    other = train(config(*settings, "model_dir=" + one.model_dir + "_sparse_dist"))
    assert_same(one.checkpoint, other.checkpoint)
    assert one.metrics == other.metrics


def test_a_run_that_stopped_early_does_not_go_on(config):
    early = "train_config.early_stopping={metric: 'auc' patience: 2 min_delta: 0.9}"
    settings = (early, "train_config.save_checkpoints_steps=2", "train_config.num_epochs=9")
    stopped = train(config(*settings))
    assert (stopped.step, stopped.stopped[:31]) == (6, "early stopping: auc has not imp")
    again = train(config(*settings))
    assert (again.step, again.metrics, again.samples_per_second) == (6, stopped.metrics, 0.0)


def test_the_best_checkpoint_outlives_the_newer_ones(config, run_dir):
    best = "train_config.best_checkpoint={metric: 'binary_cross_entropy' higher_is_better: true}"
    train(config(best, "train_config.save_checkpoints_steps=1", "train_config.keep_checkpoint_max=1"))
    results = {
        line["global_step"]: line["binary_cross_entropy"] for line in lines_of(run_dir / "train_eval_result.txt")
    }
    assert find_checkpoint(run_dir, "best").name == f"model.ckpt-{max(results, key=results.get)}"
    assert steps_of(run_dir) == sorted({max(results, key=results.get), 5})


def test_an_evaluation_in_which_a_run_was_killed_is_made_up_for(config, run_dir, monkeypatch):
    best = "train_config.best_checkpoint={metric: 'auc'}"
    settings = (best, "train_config.num_epochs=2", "train_config.save_checkpoints_steps=3")

    def killed(*args, **kwargs):
        raise MemoryError

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(module, "evaluate_model", killed)
        train(config(*settings))
    assert read_meta(find_checkpoint(run_dir))["owes_evaluation"]
    train(config(*settings))
    assert [line["global_step"] for line in lines_of(run_dir / "train_eval_result.txt")] == [3, 6, 9, 10]
    assert not any(read_meta(run_dir / f"model.ckpt-{step}")["owes_evaluation"] for step in (3, 6, 9, 10))


def test_a_config_that_does_not_fit_the_checkpoints_does_not_replace_the_one_beside_them(config, run_dir):
    train(config())
    before = (run_dir / "pipeline.config").read_text()
    with pytest.raises(CheckpointError, match="does not fit the config"):
        train(config("model_config.tiny.hidden=3"))
    assert (run_dir / "pipeline.config").read_text() == before


def test_another_programs_checkpoint_goes_on_with_the_schedules_where_they_were(config, run_dir, monkeypatch):
    decay = "{decay_size: 1 decay_factor: 0.5}"
    parts = [f"train_config.{part}_optimizer.exponential_decay_learning_rate" for part in ("sparse", "dense")]
    logs = ("train_config.use_tensorboard=true", "train_config.log_step_count_steps=1")
    settings = [*(f"{part}={decay}" for part in parts), *logs]
    train(config(*settings, "train_config.num_steps=4"))
    monkeypatch.setattr(module, "read_meta", lambda checkpoint: {"step": 4})
    train(config(*settings))
    found = EventAccumulator(str(run_dir / "tensorboard" / "train"))
    found.Reload()
    rates = {event.step: event.value for event in found.Scalars("learning_rate/dense")}
    assert rates[5] == pytest.approx(rates[4] / 2) == pytest.approx(rates[3] / 4)
    assert steps_of(run_dir) == [4, 5]


def test_a_last_batch_of_one_row_is_refused_where_a_batch_is_normalised(config, tmp_path):
    settings = ("data_config.batch_size=3", "train_config.save_checkpoints_steps=0")
    made = config(*settings)
    table = pq.read_table(made.train_input_path).slice(0, 10)
    with pytest.raises(ConfigError, match=r"last batch of each epoch has one row .* data_config.drop_remainder"):
        train(made, train_data=table)
    made.train_config.num_steps = 3
    assert train(made, train_data=table).step == 3


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        (["train_config.best_checkpoint={metric: 'auc'}", 'eval_input_path=""'], ConfigError, "no evaluation data"),
        (["train_config.best_checkpoint={metric: 'acu'}"], ConfigError, "best_checkpoint.metric = 'acu' .*'auc'"),
        (['eval_input_path="none.parquet"'], DataError, "no rows to evaluate on"),
    ],
)
def test_what_no_evaluation_could_do_is_found_before_the_first_step(
    config, tmp_path, run_dir, monkeypatch, changes, error, words
):
    table = pq.read_table(config().eval_input_path)
    pq.write_table(table.slice(0, 0), tmp_path / "none.parquet")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=words):
        train(config(*changes))
    assert steps_of(run_dir) == []


def test_parts_in_containers_and_beside_tables_are_compiled():
    class Tower(nn.Module):
        def __init__(self):
            super().__init__()
            self.group = object.__new__(EmbeddingGroup)
            nn.Module.__init__(self.group)
            self.mlp = nn.Linear(2, 2)

    model = nn.Module()
    model.tower, model.heads, model.plain = Tower(), nn.ModuleList([nn.Linear(2, 1)]), nn.ReLU()
    assert pipeline.compile_dense(model) == 2
    assert model.tower.mlp._compiled_call_impl and model.heads[0]._compiled_call_impl
    assert not model.tower._compiled_call_impl and not model.heads._compiled_call_impl
