import json

from tzrec_core.engine.callbacks.metrics_log import MetricsLog


def lines(run):
    return [json.loads(line) for line in (run.model_dir / "metrics.jsonl").read_text().splitlines()]


def test_lines_of_both_splits_are_readable_while_the_run_goes_on(make_run):
    run, log = make_run(step=7, epoch=1), MetricsLog()
    log.on_train_start(run)
    log.on_log(run, {"loss": 0.5, "samples_per_second": 10.0})
    log.on_evaluate(run, {"auc": float("nan")})
    assert lines(run) == [
        {"split": "train", "step": 7, "epoch": 1, "loss": 0.5, "samples_per_second": 10.0,
         "learning_rate_sparse": 0.02, "learning_rate_dense": 0.001},
        {"split": "eval", "step": 7, "epoch": 1, "auc": None},
    ]  # fmt: skip
    log.on_train_end(run)
    log.on_error(run, ValueError())


def test_a_second_run_in_a_folder_goes_on_in_its_file(make_run):
    for step in (1, 2):
        run, log = make_run(step=step), MetricsLog()
        log.on_train_start(run)
        log.on_evaluate(run, {"auc": 0.5})
        log.on_error(run, ValueError())
    assert [line["step"] for line in lines(run)] == [1, 2]


def test_other_ranks_write_nothing(make_run):
    run, log = make_run(rank=1), MetricsLog()
    log.on_train_start(run)
    log.on_log(run, {"loss": 0.5})
    log.on_evaluate(run, {"auc": 0.5})
    log.on_train_end(run)
    assert not run.model_dir.exists()
