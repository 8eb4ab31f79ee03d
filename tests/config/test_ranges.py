import pytest

from tzrec_core.config import find_mistakes, parse_config
from tzrec_core.config.ranges import range_mistakes


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("data_config { batch_size: 0 }", "data_config.batch_size = 0: it must be 1 or more"),
        ("data_config { eval_batch_size: 0 }", "data_config.eval_batch_size = 0: it must be 1 or more"),
        (
            "train_config { sparse_optimizer { adam_optimizer { lr: -1 } } }",
            "train_config.sparse_optimizer.adam_optimizer.lr = -1: it must be a number that is not negative",
        ),
        (
            "train_config { dense_optimizer { sgd_optimizer { lr: nan } } }",
            "train_config.dense_optimizer.sgd_optimizer.lr = nan: it must be a number that is not negative",
        ),
        ('train_config { mixed_precision: "BF61" }', "train_config.mixed_precision = 'BF61' is not one of BF16, FP16."),
        (
            "model_config { losses { binary_cross_entropy { label_smoothing: 1 } } }",
            "model_config.losses[0].binary_cross_entropy.label_smoothing = 1: it must be from 0 up to",
        ),
        (
            "model_config { metrics { auc { thresholds: 0 } } }",
            "model_config.metrics[0].auc.thresholds = 0: it must be 1",
        ),
    ],
)
def test_a_number_out_of_range_names_its_path_and_the_range(text, mistake):
    found = find_mistakes(parse_config(text, partial=True), partial=True)
    assert [line for line in found if line.startswith(mistake)]


DENSE = "train_config { dense_optimizer { %s } }"
SPARSE = "train_config { sparse_optimizer { %s } }"
TRAIN = "train_config { %s }"


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        (
            DENSE % "sgd_optimizer { lr: 1 momentum: 1 }",
            "dense_optimizer.sgd_optimizer.momentum = 1: it must be from 0",
        ),
        (DENSE % "sgd_optimizer { lr: 1 dampening: 2 }", "sgd_optimizer.dampening = 2: it must be from 0 to 1"),
        (
            DENSE % "sgd_optimizer { lr: 1 weight_decay: -1 }",
            "sgd_optimizer.weight_decay = -1: it must be a number that",
        ),
        (
            DENSE % "sgd_optimizer { lr: 1 nesterov: true momentum: 0 }",
            "sgd_optimizer.nesterov: it needs momentum greater than 0 and dampening 0",
        ),
        (DENSE % "sgd_optimizer { lr: 1 nesterov: true dampening: 0.5 }", "sgd_optimizer.nesterov: it needs momentum"),
        (DENSE % "adam_optimizer { lr: 1 beta1: 1 }", "adam_optimizer.beta1 = 1: it must be from 0 up to"),
        (DENSE % "adamw_optimizer { lr: 1 beta2: -1 }", "adamw_optimizer.beta2 = -1: it must be from 0 up to"),
        (DENSE % "adam_optimizer { lr: 1 eps: 0 }", "adam_optimizer.eps = 0: it must be a number greater than 0"),
        (
            DENSE % "adagrad_optimizer { lr: 1 initial_accumulator_value: -2 }",
            "adagrad_optimizer.initial_accumulator_value = -2: it must be a number that is not negative",
        ),
        (DENSE % "adadelta_optimizer { lr: 1 rho: 1 }", "adadelta_optimizer.rho = 1: it must be from 0 up to"),
        (DENSE % "rmsprop_optimizer { lr: 1 alpha: 1.5 }", "rmsprop_optimizer.alpha = 1.5: it must be from 0 up to"),
        (DENSE % "ema { decay: 1 }", "dense_optimizer.ema.decay = 1: it must be from 0 up to"),
        (
            DENSE % 'part_optimizers { regex_pattern: "(" sgd_optimizer { lr: -1 } }',
            "dense_optimizer.part_optimizers[0].regex_pattern = '(' is not a regular expression: missing )",
        ),
        (
            DENSE % 'part_optimizers { regex_pattern: "x" sgd_optimizer { lr: -1 } }',
            "dense_optimizer.part_optimizers[0].sgd_optimizer.lr = -1: it must be",
        ),
        (
            SPARSE % "sgd_optimizer { lr: 1 max_gradient: 0 }",
            "sgd_optimizer.max_gradient = 0: it must be a number greater",
        ),
        (SPARSE % "lamb_optimizer { lr: 1 beta1: 1 }", "lamb_optimizer.beta1 = 1: it must be from 0 up to"),
        (
            SPARSE % "lars_sgd_optimizer { lr: 1 momentum: 1 }",
            "lars_sgd_optimizer.momentum = 1: it must be from 0 up to",
        ),
        (TRAIN % "gradient_accumulation_steps: 0", "gradient_accumulation_steps = 0: it must be 1 or more"),
        (TRAIN % "log_step_count_steps: 0", "log_step_count_steps = 0: it must be 1 or more"),
        (
            TRAIN % 'grad_clipping { clipping_type: "nrom" }',
            "grad_clipping.clipping_type = 'nrom' is not one of none, norm",
        ),
        (
            TRAIN % "grad_clipping { max_gradient: 0 }",
            "grad_clipping.max_gradient = 0: it must be a number greater than 0",
        ),
        (TRAIN % "grad_clipping { norm_type: 0 }", "grad_clipping.norm_type = 0: it must be greater than 0"),
        (TRAIN % "grad_scaler { init_scale: 0 }", "grad_scaler.init_scale = 0: it must be a number greater than 0"),
        (TRAIN % "grad_scaler { growth_factor: 1 }", "grad_scaler.growth_factor = 1: it must be greater than 1"),
        (TRAIN % "grad_scaler { backoff_factor: 1 }", "grad_scaler.backoff_factor = 1: it must be between 0 and 1"),
        (TRAIN % "grad_scaler { growth_interval: 0 }", "grad_scaler.growth_interval = 0: it must be 1 or more"),
        (TRAIN % "grad_scaler { }", "grad_scaler is for FP16 only; write mixed_precision"),
        (TRAIN % 'mixed_precision: "BF16" grad_scaler { }', "grad_scaler is for FP16 only; write mixed_precision"),
        (TRAIN % 'mixed_precision: "FP16"', "mixed_precision = 'FP16' needs train_config.grad_scaler"),
        (TRAIN % 'early_stopping { metric: "auc" patience: 0 }', "early_stopping.patience = 0: it must be 1 or more"),
        (
            TRAIN % 'early_stopping { metric: "auc" min_delta: -1 }',
            "early_stopping.min_delta = -1: it must be a number",
        ),
        (
            TRAIN % "save_checkpoints_timestamp_quorum: 2",
            "save_checkpoints_timestamp_quorum = 2: it must be greater than 0",
        ),
    ],
)
def test_settings_of_optimizers_and_of_training_have_ranges(text, mistake):
    found = find_mistakes(parse_config(text, partial=True), partial=True)
    assert [line for line in found if line.startswith("train_config.") and mistake in line], found


@pytest.mark.parametrize("part", ["dense_optimizer", "sparse_optimizer"])
@pytest.mark.parametrize(
    ("schedule", "mistake"),
    [
        ("exponential_decay_learning_rate {}", ".decay_size is missing: write the number of steps"),
        ("exponential_decay_learning_rate { decay_size: 0 }", ".decay_size = 0: it must be 1 or more"),
        (
            "exponential_decay_learning_rate { decay_size: 1 decay_factor: 0 }",
            ".decay_factor = 0: it must be greater than 0",
        ),
        (
            "exponential_decay_learning_rate { decay_size: 1 decay_factor: 2 }",
            ".decay_factor = 2: it must be greater than 0",
        ),
        (
            "exponential_decay_learning_rate { decay_size: 1 min_learning_rate: -1 }",
            ".min_learning_rate = -1: it must be",
        ),
        ("cosine_annealing_learning_rate {}", ".T_max is missing: write the number of steps"),
        ("cosine_annealing_learning_rate { T_max: 0 }", ".T_max = 0: it must be 1 or more"),
        (
            "cosine_annealing_learning_rate { T_max: 1 warmup_learning_rate: -1 }",
            ".warmup_learning_rate = -1: it must be",
        ),
        ("cosine_annealing_warm_restarts_learning_rate {}", ".T_0 is missing: write the number of steps"),
        ("cosine_annealing_warm_restarts_learning_rate { T_0: 0 }", ".T_0 = 0: it must be 1 or more"),
        ("cosine_annealing_warm_restarts_learning_rate { T_0: 1 T_mult: 0 }", ".T_mult = 0: it must be 1 or more"),
        ("manual_step_learning_rate {}", ".schedule_sizes is missing: write the steps"),
        (
            "manual_step_learning_rate { schedule_sizes: [1, 2] learning_rates: [1] }",
            ".learning_rates has 1 entries and ",
        ),
        (
            "manual_step_learning_rate { schedule_sizes: [2, 2] learning_rates: [1, 1] }",
            ".schedule_sizes = [2, 2]: each must be greater than the one before it",
        ),
        (
            "manual_step_learning_rate { schedule_sizes: [0] learning_rates: [1] }",
            ".schedule_sizes = [0]: each must be",
        ),
        (
            "manual_step_learning_rate { schedule_sizes: [1] learning_rates: [0] }",
            ".learning_rates = 0: it must be a number",
        ),
    ],
)
def test_a_schedule_without_its_sizes_or_with_impossible_ones_is_refused(part, schedule, mistake):
    text = f"train_config {{ {part} {{ {schedule} }} }}"
    found = list(range_mistakes(parse_config(text, partial=True)))
    place = f"train_config.{part}.{schedule.split()[0]}{mistake}"
    assert [line for line in found if line.startswith(place)], found


def test_settings_and_schedules_in_range_pass():
    text = """train_config {
      mixed_precision: "FP16" grad_scaler { init_scale: 2 } gradient_accumulation_steps: 4
      grad_clipping { clipping_type: "norm" norm_type: inf }
      sparse_optimizer { lars_sgd_optimizer { lr: 0.1 }
        manual_step_learning_rate { schedule_sizes: [1, 5] learning_rates: [0.1, 0.01] } }
      dense_optimizer { sgd_optimizer { lr: 0.1 nesterov: true } ema {}
        part_optimizers { regex_pattern: "^model\\\\.a" adam_optimizer { lr: 0.1 } constant_learning_rate {} }
        exponential_decay_learning_rate { decay_size: 1 decay_factor: 1 } }
    }"""
    assert list(range_mistakes(parse_config(text, partial=True))) == []


def test_numbers_in_range_pass():
    text = "data_config { batch_size: 1 } train_config { sparse_optimizer { adam_optimizer { lr: 0 } } }"
    assert find_mistakes(parse_config(text, partial=True), partial=True) == []


def test_an_empty_model_dir_is_refused():
    config = parse_config('model_dir: ""', partial=True)
    assert any(line.startswith("model_dir is empty") for line in find_mistakes(config))
