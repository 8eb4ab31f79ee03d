"""What each field of train_config, eval_config and the optimizers does."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tzrec_core import api
from tzrec_core.config import parse_config
from tzrec_core.engine.checkpoint import checkpoints
from tzrec_core.engine.optim import build_optimizers
from tzrec_core.testing.golden import golden_batch

MODEL = """
feature_configs { id_feature { feature_name: "item" expression: "item:item" num_buckets: 9 embedding_dim: 4 } }
model_config {
  feature_groups { group_name: "wide" group_type: WIDE feature_names: "item" }
  feature_groups { group_name: "deep" group_type: DEEP feature_names: "item" }
  wide_and_deep { deep { hidden_units: 4 } }
  losses { binary_cross_entropy {} }
}
"""

# Optimizers

SPARSE_CLIPPING = ("gradient_clipping: true", ""), ("max_gradient: 0.5", "gradient_clipping: true")
ADAM = ("beta1: 0.5", ""), ("beta2: 0.5", ""), ("weight_decay: 0.5", "")
SETTINGS = {
    ("sparse", "sgd"): SPARSE_CLIPPING,
    ("sparse", "adagrad"): (*SPARSE_CLIPPING, ("initial_accumulator_value: 0.5", "")),
    ("sparse", "rowwise_adagrad"): (
        *SPARSE_CLIPPING,
        ("weight_decay: 0.5", "weight_decay_mode: L2"),
        ("weight_decay_mode: DECOUPLE", "weight_decay: 0.5"),
    ),
    ("sparse", "adam"): (*SPARSE_CLIPPING, *ADAM),
    ("sparse", "partial_rowwise_adam"): (*SPARSE_CLIPPING, *ADAM),
    ("dense", "sgd"): (
        ("momentum: 0.5", ""),
        ("weight_decay: 0.5", ""),
        ("dampening: 0.5", ""),
        ("nesterov: true", ""),
    ),
    ("dense", "adagrad"): (("weight_decay: 0.5", ""), ("initial_accumulator_value: 0.5", ""), ("eps: 0.5", "")),
    ("dense", "adam"): (*ADAM, ("eps: 0.5", ""), ("amsgrad: true", "beta2: 0.5")),
    ("dense", "adamw"): (*ADAM, ("eps: 0.5", ""), ("amsgrad: true", "beta2: 0.5")),
    ("dense", "adadelta"): (("rho: 0.5", ""), ("eps: 0.5", ""), ("weight_decay: 0.5", "")),
    ("dense", "rmsprop"): (("alpha: 0.5", ""), ("eps: 0.5", ""), ("weight_decay: 0.5", "")),
}
CASES = [
    pytest.param(part, f"{name}_optimizer", setting, others, id=f"{part}-{name}-{setting.partition(':')[0]}")
    for (part, name), settings in SETTINGS.items()
    for setting, others in (("lr: 0.25", ""), *settings)
]


@pytest.fixture
def after_steps(model_of):
    """An optimizer and the parameters that it moves, after steps along gradients that shrink."""

    def run(part, optimizer, settings):
        plain = {"sparse": "sgd_optimizer { lr: 0.1 }", "dense": "sgd_optimizer { lr: 0.1 }"}
        texts = {**plain, part: f"{optimizer} {{ {settings} }}"}
        text = " ".join(f"{name}_optimizer {{ {text} constant_learning_rate {{}} }}" for name, text in texts.items())
        config = parse_config(f"train_config {{ {text} }}", partial=True)
        model = model_of(MODEL).train()
        chosen = build_optimizers(config.train_config, model)[part]
        column = {"lengths": [1] * 6, "values": [1, 2, 3, 1, 2, 3]}
        generator = torch.Generator().manual_seed(0)
        for scale in (9.0, 0.1, 0.1):
            chosen.zero_grad()
            logits = model.predict(golden_batch({"sparse": {"__BASE__": {"item": column}}}))["logits"]
            (logits * scale * torch.randn(6, generator=generator)).sum().backward()
            chosen.step()
        return chosen, torch.cat([p.detach().flatten() for group in chosen.param_groups for p in group["params"]])

    return run


@pytest.mark.parametrize(("part", "optimizer", "setting", "others"), CASES)
def test_every_setting_of_an_optimizer_changes_its_steps(after_steps, part, optimizer, setting, others):
    lr = "" if setting.startswith("lr") else "lr: 0.1"
    plain = f"{lr or 'lr: 0.1'} {others}"
    (_, without), (_, found) = (after_steps(part, optimizer, s) for s in (plain, f"{lr} {others} {setting}"))
    assert not torch.equal(without, found)


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "adam", "adamw"])
def test_fused_uses_torchs_fused_kernel(after_steps, optimizer):
    assert after_steps("dense", f"{optimizer}_optimizer", "lr: 0.1 fused: true")[0].param_groups[0]["fused"]


@pytest.mark.parametrize("part", ["sparse", "dense"])
def test_a_constant_learning_rate_stays(after_steps, part):
    chosen, _ = after_steps(part, "adam_optimizer", "lr: 0.1")
    assert [group["lr"] for group in chosen.param_groups] == [pytest.approx(0.1)]


# Runs


@pytest.fixture
def run(tmp_path):
    """Train on 12 rows in batches of 4; gives the model_dir, made new for each call."""
    rows = {"item": [i % 9 for i in range(12)], "label": [i % 2 for i in range(12)]}
    pq.write_table(pa.table(rows), tmp_path / "rows.parquet")
    made = []

    def train(train_config="", more="", eval_input_path=tmp_path / "rows.parquet"):
        model_dir = tmp_path / f"run{len(made)}"
        made.append(model_dir)
        text = f"""
        train_input_path: "{tmp_path}/rows.parquet"
        eval_input_path: "{eval_input_path}"
        model_dir: "{model_dir}"
        train_config {{
          sparse_optimizer {{ adam_optimizer {{ lr: 0.01 }} }}
          dense_optimizer {{ adam_optimizer {{ lr: 0.01 }} }}
          {"" if "use_tensorboard" in train_config else "use_tensorboard: false"}
          {"" if "seed" in train_config else "seed: 1"}
          {train_config}
        }}
        data_config {{ dataset_type: ParquetDataset label_fields: "label" batch_size: 4 num_workers: 0 }}
        {more} {MODEL}
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


def test_mixed_precision_computes_in_bfloat16(run):
    assert not torch.equal(weights(run('mixed_precision: "BF16"')), weights(run()))


@pytest.fixture
def tf32():
    """The backends of TF32, left as they were."""
    backends = {"cudnn": torch.backends.cudnn, "matmul": torch.backends.cuda.matmul}
    before = {name: backend.allow_tf32 for name, backend in backends.items()}
    yield backends
    for name, backend in backends.items():
        backend.allow_tf32 = before[name]


@pytest.mark.parametrize(
    ("setting", "name", "is_allowed"),
    [("cudnn_allow_tf32: false", "cudnn", False), ("cuda_matmul_allow_tf32: true", "matmul", True)],
)
def test_tf32_is_allowed_as_configured(run, tf32, setting, name, is_allowed):
    tf32[name].allow_tf32 = not is_allowed
    run(setting)
    assert tf32[name].allow_tf32 == is_allowed


def test_eval_config_limits_and_logs_evaluation(run, capsys):
    run(more="eval_config { num_steps: 2 log_step_count_steps: 1 }")
    shown = [line.split()[2] for line in capsys.readouterr().err.splitlines() if line.startswith("eval step")]
    assert [step for step in shown if "/" in step] == ["1/2", "2/2"]
