import pytest
import torch

from tzrec_core.engine.callbacks import health
from tzrec_core.engine.callbacks.health import Health

ROWS = 4
TEXT = """
train_input_path: "train"
eval_input_path: "eval"
model_dir: "%(folder)s/run"
train_config { sparse_optimizer { adam_optimizer { lr: 0.1 } } dense_optimizer { adam_optimizer { lr: 0.1 } } }
data_config { batch_size: 16 dataset_type: ParquetDataset label_fields: "click" fg_mode: FG_NORMAL num_workers: 2 }
feature_configs { id_feature { feature_name: "city" expression: "user:city" embedding_dim: 4
  vocab_list: ["paris", "rome", "oslo", "bonn"] } }
feature_configs { raw_feature { feature_name: "price" expression: "item:price" } }
feature_configs { raw_feature { feature_name: "stock" expression: "item:stock"
  normalizer: "method=minmax,min=0,max=1e6" } }
model_config {
  feature_groups { group_name: "deep" feature_names: ["city", "price", "stock"] group_type: DEEP }
  tiny { }
  metrics { auc {} }
  losses { binary_cross_entropy {} }
}
"""


def columns(**changes):
    return {"city": ["rome"] * ROWS, "price": [1.0] * ROWS, "stock": [5e5] * ROWS, **changes}


@pytest.fixture
def read(make_run, make_output, said):
    """What is said after batches of these columns."""

    def make(batches, *, text=TEXT, rank=0):
        run, callback = make_run(text=text, rank=rank), Health()
        callback.on_train_start(run)
        for batch in batches:
            callback.on_step_end(run, make_output(run, batch))
        callback.on_train_end(run)
        return said()

    return make


# Inputs


def test_healthy_inputs_are_not_talked_about(read):
    assert read([columns()] * 12) == []


def test_a_large_number_without_normalizer_is_named_with_its_range(read):
    (text,) = read([columns(price=[-2.5, 1.0, 3.0, 4.0]), columns(price=[9.5e4, 1.0, 1.0, 1.0])])
    assert "in the first 2 batches: raw_feature 'price' from -2.5 to 95000." in text
    assert "give each a normalizer" in text
    assert "stock" not in text


def test_a_large_negative_number_counts_too(read):
    (text,) = read([columns(price=[-2e3, 0.0, 0.0, 0.0])])
    assert "'price' from -2000 to 0" in text


def test_only_the_first_ten_batches_are_looked_at(read):
    assert read([columns()] * 10 + [columns(price=[1e6] * ROWS)] * 10) == []


def test_numbers_that_are_read_as_they_are_cannot_be_normalised_here(read):
    config = TEXT.replace("fg_mode: FG_NORMAL", "fg_mode: FG_NONE")
    (text,) = read([columns(city=[2] * ROWS, price=[5e3] * ROWS, stock=[0.5] * ROWS)], text=config)
    assert "scale the columns, for the data is read as it is (fg_mode: FG_NONE)" in text


def test_numbers_of_a_sequence_are_looked_at(read):
    config = TEXT.replace("feature_configs { raw_feature { feature_name: \"price\"", """
feature_configs { sequence_raw_feature { feature_name: "spent" expression: "user:spent" sequence_length: 9
  sequence_delim: ";" } }
feature_configs { raw_feature { feature_name: "price\"""", 1)  # fmt: skip
    (text,) = read([columns(spent=["1;2000", "", "3", "4"])], text=config)
    assert "sequence_raw_feature 'spent' from 1 to 2000" in text


def test_ids_that_are_all_unseen_name_the_vocabulary_and_the_causes(read):
    (text,) = read([columns(city=[" paris", "Rome", "oslo ", "x"])] * 3)
    assert text.startswith(
        "id_feature 'city': vocab_list: 100.0% of the ids in the first 3 batches are 1, that of unseen words: almost "
        "no value is among the 4 words, such as 'paris', 'rome', 'oslo'."
    )
    assert "spaces or quotes" in text and "upper and lower case" in text


def test_some_known_words_are_enough(read):
    # 2 of 40 ids are known: 95% unseen
    unseen, some = ["x"] * ROWS, ["x", "x", "x", "oslo"]
    assert read([columns(city=unseen)] * 8 + [columns(city=some)] * 2) == []


def test_the_id_of_unseen_words_is_the_one_that_the_config_chose(read):
    config = TEXT.replace("embedding_dim: 4\n", "embedding_dim: 4 default_bucketize_value: 3\n")
    (text,) = read([columns(city=["5.0", "6.0", None, "7.0"])], text=config)
    assert "are 3, that of unseen words" in text


def test_other_ranks_say_nothing(read):
    assert read([columns(price=[1e6] * ROWS, city=["x"] * ROWS)], rank=1) == []


# Predictions


def log(run, callback, output, predictions, times=1, **values):
    for _ in range(times):
        run.step += 1
        run.output = output
        run.output.predictions = predictions
        callback.on_log(run, values)


def test_constant_predictions_at_three_log_steps_in_a_row_are_named_once(make_run, make_output, said):
    run, callback = make_run(), Health()
    output = make_output(run)
    constant = {"logits": torch.zeros(8), "probs": torch.full((8,), 0.25)}
    log(run, callback, output, constant, times=2)
    log(run, callback, output, {"probs": torch.linspace(0, 1, 8)})
    log(run, callback, output, constant, times=2)
    assert said() == []
    log(run, callback, output, constant, times=5)
    (text,) = said()
    assert "the same for every row (probs = 0.25) at step 6 and the 2 log steps before it" in text
    assert "learning rate" in text and "normalizer" in text


@pytest.mark.parametrize(
    "predictions",
    [
        {"probs": torch.tensor([[0.5, 0.5], [0.4, 0.6]])},
        {"probs": torch.tensor([0.25])},
        {"embedding": torch.ones(8, 4)},
        {"y_long_name": torch.arange(8)},
    ],
)
def test_predictions_that_differ_or_are_no_scores_are_fine(make_run, make_output, said, predictions):
    run = make_run()
    log(run, Health(), make_output(run), predictions, times=4)
    assert said() == []


def test_constant_classes_and_one_constant_task_of_two_are_named(make_run, make_output, said):
    run = make_run()
    predictions = {"probs_buy": torch.tensor([[0.5, 0.5]] * 4), "probs_click": torch.linspace(0, 1, 4)}
    log(run, Health(), make_output(run), predictions, times=3)
    (text,) = said()
    assert "(probs_buy = 0.5)" in text and "probs_click" not in text


# Evaluations


@pytest.mark.parametrize(("step", "epoch", "is_said"), [(999, 0, False), (1000, 0, True), (20, 1, True)])
def test_an_auc_of_chance_is_named_after_1000_steps_or_an_epoch(make_run, said, step, epoch, is_said):
    callback = Health()
    for _ in range(2):
        callback.on_evaluate(make_run(step=step, epoch=epoch), {"auc": 0.5049, "binary_cross_entropy": 0.5})
    assert len(said()) == is_said
    assert all(text.startswith(f"auc is 0.5049 at step {step}, no better than chance") for text in said())


def test_an_auc_that_is_better_or_worse_than_chance_is_fine(make_run, said):
    Health().on_evaluate(make_run(step=5000), {"auc": 0.52, "grouped_auc": 0.48, "accuracy": 0.5})
    assert said() == []


# Time


@pytest.mark.parametrize(
    ("cores", "fix"),
    [
        (8, "raise data_config.num_workers (it is 2; this machine has 8 cores)"),
        (2, "num_workers = 2 takes all 2 cores"),
    ],
)
def test_a_slow_loader_is_named_once_with_what_to_do(make_run, make_output, said, monkeypatch, cores, fix):
    monkeypatch.setattr(health.os, "cpu_count", lambda: cores)
    run, callback = make_run(text=TEXT), Health()
    log(run, callback, make_output(run, columns()), {}, data_wait=0.9)  # this window holds the start of the workers
    log(run, callback, run.output, {}, data_wait=0.1)
    assert said() == []
    log(run, callback, run.output, {}, times=4, data_wait=0.75)
    (text,) = said()
    assert text.startswith("75% of the time up to step 5 was spent waiting for data")
    assert fix in text


def test_a_loader_that_keeps_up_is_fine(make_run, make_output, said):
    run = make_run(text=TEXT)
    log(run, Health(), make_output(run, columns()), {}, times=3, data_wait=0.4)
    assert said() == []
