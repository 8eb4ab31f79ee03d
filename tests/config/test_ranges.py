import pytest

from tzrec_core.config import find_mistakes, parse_config


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


def test_numbers_in_range_pass():
    text = "data_config { batch_size: 1 } train_config { sparse_optimizer { adam_optimizer { lr: 0 } } }"
    assert find_mistakes(parse_config(text, partial=True), partial=True) == []


def test_an_empty_model_dir_is_refused():
    config = parse_config('model_dir: ""', partial=True)
    assert any(line.startswith("model_dir is empty") for line in find_mistakes(config))
