"""What each field of train_config and eval_config does to a run."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tzrec_core import api
from tzrec_core.engine import train as engine_train
from tzrec_core.engine.checkpoint import checkpoints, find_checkpoint
from tzrec_core.errors import ConfigError

MODEL = """
feature_configs { id_feature { feature_name: "item" expression: "item:item" num_buckets: 9 embedding_dim: 4 } }
model_config {
  feature_groups { group_name: "wide" group_type: WIDE feature_names: "item" }
  feature_groups { group_name: "deep" group_type: DEEP feature_names: "item" }
  wide_and_deep { deep { hidden_units: 4 } }
  losses { binary_cross_entropy {} }
}
"""
ADAM = "adam_optimizer { lr: 0.01 }"
STILL = "sgd_optimizer { lr: 0 }"
LOSS = "binary_cross_entropy"


@pytest.fixture
def run(tmp_path):
    """Train on 12 rows in batches of 4; gives the model_dir, made new for each call."""
    rows = {"item": [i % 9 for i in range(12)], "label": [i % 2 for i in range(12)]}
    pq.write_table(pa.table(rows), tmp_path / "rows.parquet")
    made = []

    def train(
        train_config="", more="", *, sparse=ADAM, dense=ADAM, model=MODEL, eval_input_path=tmp_path / "rows.parquet"
    ):
        model_dir = tmp_path / f"run{len(made)}"
        made.append(model_dir)
        text = f"""
        train_input_path: "{tmp_path}/rows.parquet"
        eval_input_path: "{eval_input_path}"
        model_dir: "{model_dir}"
        train_config {{
          sparse_optimizer {{ {sparse} }}
          dense_optimizer {{ {dense} }}
          {"" if "use_tensorboard" in train_config else "use_tensorboard: false"}
          {"" if "seed" in train_config else "seed: 1"}
          {train_config}
        }}
        data_config {{ dataset_type: ParquetDataset label_fields: "label" batch_size: 4 num_workers: 0 }}
        {more} {model}
        """
        api.train(text)
        return model_dir

    return train


def steps_saved(model_dir):
    return [step for step, _ in checkpoints(model_dir)]


def lines(model_dir, split):
    found = [json.loads(line) for line in (model_dir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if line["split"] == split]


def weights(model_dir):
    wrapper = api.load_model(model_dir)
    return torch.cat([p.detach().flatten() for p in wrapper.parameters()])


def test_a_run_reads_its_paths_and_writes_to_its_model_dir(run):
    model_dir = run()
    assert steps_saved(model_dir) == [3] and len(lines(model_dir, "eval")) == 1
    assert lines(run(eval_input_path=""), "eval") == []


def test_num_steps_and_num_epochs_say_how_long_to_train(run):
    assert steps_saved(run("num_epochs: 2")) == [6]
    assert steps_saved(run("num_steps: 4")) == [4]
    assert steps_saved(run("num_steps: 1 num_epochs: 2")) == [1]


def test_checkpoints_come_every_so_many_steps(run):
    assert steps_saved(run("num_epochs: 2 save_checkpoints_steps: 4")) == [4, 6]


def test_checkpoints_come_every_so_many_epochs(run):
    assert steps_saved(run("num_epochs: 3 save_checkpoints_epochs: 2")) == [6, 9]


def test_keep_checkpoint_max_keeps_the_latest(run):
    assert steps_saved(run("num_epochs: 2 save_checkpoints_steps: 2 keep_checkpoint_max: 2")) == [4, 6]


def test_log_step_count_steps_is_how_often_training_is_logged(run):
    assert [line["step"] for line in lines(run("num_epochs: 2 log_step_count_steps: 2"), "train")] == [2, 4, 6]


def test_use_tensorboard_false_writes_no_events(run):
    assert not list(run("use_tensorboard: false").rglob("events.out.*"))
    assert list(run("use_tensorboard: true").rglob("events.out.*"))


def test_a_seed_repeats_a_run(run):
    first, again, other = (weights(run(f"seed: {seed}")) for seed in (5, 5, 6))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize(
    "setting", ['mixed_precision: "BF16"', 'mixed_precision: "FP16" grad_scaler {}'], ids=["BF16", "FP16"]
)
def test_mixed_precision_computes_in_half_precision(run, setting):
    assert not torch.equal(weights(run(setting)), weights(run()))


@pytest.fixture
def during(run, monkeypatch):
    """What a function returns in the first step of a run of a config."""

    def ask(question, train_config):
        answers = []
        take_step = engine_train.TrainOptimizer.step

        def step(optimizer):
            answers.append(question())
            take_step(optimizer)

        monkeypatch.setattr(engine_train.TrainOptimizer, "step", step)
        run(train_config)
        return answers[0]

    return ask


@pytest.mark.parametrize(
    ("setting", "backend", "is_allowed"),
    [
        ("cudnn_allow_tf32: false", torch.backends.cudnn, False),
        ("cuda_matmul_allow_tf32: true", torch.backends.cuda.matmul, True),
    ],
    ids=["cudnn", "matmul"],
)
def test_tf32_is_allowed_as_configured(during, setting, backend, is_allowed):
    before = backend.allow_tf32
    try:
        backend.allow_tf32 = not is_allowed
        assert during(lambda: backend.allow_tf32, setting) == is_allowed
        assert backend.allow_tf32 != is_allowed
    finally:
        backend.allow_tf32 = before


def test_deterministic_runs_use_deterministic_operations_only(during):
    assert during(torch.are_deterministic_algorithms_enabled, "deterministic: true")
    assert not torch.are_deterministic_algorithms_enabled()


def test_torch_compile_compiles_the_dense_part(run):
    torch._dynamo.reset()
    graphs = torch._dynamo.utils.counters["stats"]
    before = graphs["unique_graphs"]
    compiled = weights(run("torch_compile: true"))
    assert graphs["unique_graphs"] > before
    torch.testing.assert_close(compiled, weights(run()))


# Where the first parameters come from


def test_fine_tune_checkpoint_is_where_the_first_parameters_come_from(run):
    first = run()
    second = run(f'seed: 2 fine_tune_checkpoint: "{first}"', sparse=STILL, dense=STILL)
    assert torch.equal(weights(first), weights(second))


def test_fine_tune_ckpt_param_map_gives_the_names_in_the_other_checkpoint(run, tmp_path):
    first = run()
    table = "model.embedding_group.emb_impls.__BASE__.ebc.embedding_bags.{}.weight"
    (tmp_path / "names").write_text(
        "".join(f"{table.format(f'thing{end}')} {table.format(f'item_emb{end}')}\n" for end in ("", "_wide"))
    )
    settings = f'seed: 2 fine_tune_checkpoint: "{first}" fine_tune_ckpt_param_map: "{tmp_path}/names"'
    renamed = MODEL.replace("embedding_dim: 4", 'embedding_dim: 4 embedding_name: "thing"')
    second = run(settings, sparse=STILL, dense=STILL, model=renamed)
    assert torch.equal(weights(first), weights(second))


# How tables are split


@pytest.fixture
def plans(monkeypatch):
    """The sharding types of the tables of each run."""
    found = []
    shard = engine_train.shard

    def watched(*args, **kwargs):
        model = shard(*args, **kwargs)
        (tables,) = model.plan.plan.values()
        found.append({name: how.sharding_type for name, how in tables.items()})
        return model

    monkeypatch.setattr(engine_train, "shard", watched)
    return found


def test_embedding_constraints_say_how_tables_are_split_in_a_run(run, plans):
    sgd = "sgd_optimizer { lr: 0.1 }"
    free = run(sparse=sgd)
    constraints = 'embedding_constraints { sharding_types: "%s" }'
    limited = run(f"global_{constraints % 'column_wise'}", sparse=sgd)
    own = MODEL.replace("embedding_dim: 4", f"embedding_dim: 4 {constraints % 'row_wise'}")
    run(f"global_{constraints % 'column_wise'}", sparse=sgd, model=own)
    assert [set(plan.values()) for plan in plans] == [{"table_wise"}, {"column_wise"}, {"row_wise"}]
    torch.testing.assert_close(weights(free), weights(limited))


# What watches a run


def test_is_profiling_writes_a_trace(run):
    folder = run("num_epochs: 5 is_profiling: true") / "profile"
    assert "traceEvents" in json.loads((folder / "step_15.trace.json").read_text())
    assert "CPU" in (folder / "step_15.txt").read_text()


def test_tensorboard_summaries_are_what_tensorboard_shows(run):
    def shown(settings):
        folder = run(f"use_tensorboard: true log_step_count_steps: 1 {settings}") / "tensorboard" / "train"
        events = EventAccumulator(str(folder)).Reload().Tags()
        return {tag.partition("/")[0] for tag in (*events["scalars"], *events["histograms"])}

    always = shown("") - {"loss", "learning_rate"}
    assert shown("") == always | {"loss", "learning_rate"}
    chosen = {"parameter", "gradient", "global_gradient_norm"}
    assert shown(f"tensorboard_summaries: {json.dumps(sorted(chosen))}") == always | chosen


def test_callbacks_of_plugins_take_part(run, use_plugins):
    use_plugins("acme-ranking", "tzrec-wide-and-deep")
    assert steps_saved(run("callbacks { [tzrec.dev/acme_ranking.StopAfterRows] { rows: 8 } }")) == [2]


EACH_STEP = "num_epochs: 3 save_checkpoints_steps: 1"


def last_step(model_dir):
    return steps_saved(model_dir)[-1]


def test_early_stopping_ends_a_run_that_no_longer_improves(run):
    still = {"sparse": STILL, "dense": STILL}
    assert last_step(run(EACH_STEP, **still)) == 9
    assert last_step(run(f'{EACH_STEP} early_stopping {{ metric: "{LOSS}" patience: 2 }}', **still)) == 3


def test_early_stopping_wants_losses_to_fall_unless_it_is_told_otherwise(run):
    assert last_step(run(f'{EACH_STEP} early_stopping {{ metric: "{LOSS}" }}')) == 9
    assert last_step(run(f'{EACH_STEP} early_stopping {{ metric: "{LOSS}" higher_is_better: true }}')) == 4


def test_early_stopping_does_not_count_gains_below_min_delta(run):
    stopping = f'early_stopping {{ metric: "{LOSS}" min_delta: 0.5 }}'
    assert last_step(run(f"{EACH_STEP} {stopping}")) == 4


@pytest.mark.parametrize(
    ("told", "best", "kept"), [("higher_is_better: true", 2, [2, 6]), ("", 6, [6])], ids=["higher", "unset"]
)
def test_best_checkpoint_is_kept_beside_the_latest(run, told, best, kept):
    rule = f'best_checkpoint {{ metric: "{LOSS}" {told} }}'
    model_dir = run(f"num_epochs: 2 save_checkpoints_steps: 2 keep_checkpoint_max: 1 {rule}")
    assert find_checkpoint(model_dir, "best").name == f"model.ckpt-{best}"
    assert steps_saved(model_dir) == kept


@pytest.mark.parametrize("setting", ["early_stopping", "best_checkpoint"])
def test_the_metric_of_early_stopping_and_of_the_best_checkpoint_must_exist(run, setting):
    with pytest.raises(ConfigError, match=rf"train_config\.{setting}\.metric = 'acu' is not a metric"):
        run(f'{setting} {{ metric: "acu" }}')


# Evaluation


def test_use_dense_ema_evaluates_the_averages(run):
    def loss(settings, more="eval_config { use_dense_ema: true }"):
        model_dir = run(more=more, dense=f"{ADAM} {settings}")
        (line,) = lines(model_dir, "eval")
        assert api.evaluate(model_dir / "pipeline.config").metrics[LOSS] == pytest.approx(line[LOSS])
        return line[LOSS]

    last_values = loss("", more="")
    assert loss("ema { decay: 0 }") == pytest.approx(last_values)
    assert loss("ema { decay: 0.5 }") != pytest.approx(last_values)


def test_eval_config_limits_and_logs_evaluation(run, capsys):
    run(more="eval_config { num_steps: 2 log_step_count_steps: 1 }")
    shown = [line.split()[2] for line in capsys.readouterr().err.splitlines() if line.startswith("eval step")]
    assert [step for step in shown if "/" in step] == ["1/2", "2/2"]
