"""Drafted configs of the official models train."""

import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "tiny_plugin"))
import draft_data

from tzrec_core import api
from tzrec_core.config import load_config
from tzrec_core.data.draft import draft_config
from tzrec_core.data.lint import lint_data
from tzrec_core.plugins import ModelSpec, registry

MOVIELENS = Path(__file__).parents[2] / "examples/movielens/data"
MODELS = pytest.mark.parametrize("model", ["deepfm", "wide_and_deep"])


def drafted(model, train, evaluation, folder, label="click"):
    offer, run = registry().get(ModelSpec, model), str(folder / "run")
    text = draft_config(offer, str(train), labels=[label], eval_data=str(evaluation), model_dir=run)
    path = folder / f"{model}.config"
    path.write_text(text, encoding="utf-8")
    return path


@MODELS
@pytest.mark.parametrize("label", ["click", "stars", "price"])
def test_a_table_of_every_type_trains(model, label, tmp_path):
    pq.write_table(draft_data.every_type(), tmp_path / "train.parquet")
    pq.write_table(draft_data.every_type(100, seed=1), tmp_path / "eval.parquet")
    path = drafted(model, tmp_path / "train.parquet", tmp_path / "eval.parquet", tmp_path, label)
    assert not lint_data(load_config(path)).has_errors
    assert api.train(path, overrides=["train_config.num_steps=3"]).step == 3


@MODELS
@pytest.mark.skipif(not (MOVIELENS / "train.parquet").exists(), reason="make demo fetches MovieLens")
def test_movielens_trains_without_the_columns_that_mislead(model, tmp_path):
    path = drafted(model, MOVIELENS / "train.parquet", MOVIELENS / "eval.parquet", tmp_path, "label")
    text = path.read_text(encoding="utf-8")
    assert '#   "rating": gives the label away (AUC 1.000' in text
    assert '#   "timestamp": looks like the time of the row' in text
    report = lint_data(load_config(path))
    assert [finding.what for finding in report.findings] == ["columns that nothing reads: timestamp, rating"]
    assert report.num_read == report.num_rows == 80_367
    steps = ["train_config.num_steps=3", "data_config.num_workers=0", 'eval_input_path=""']
    assert api.train(path, overrides=steps).step == 3


@pytest.mark.slow
@pytest.mark.skipif(not (MOVIELENS / "train.parquet").exists(), reason="make demo fetches MovieLens")
def test_a_drafted_deepfm_beats_logistic_regression_on_movielens(tmp_path):
    path = drafted("deepfm", MOVIELENS / "train.parquet", MOVIELENS / "eval.parquet", tmp_path, "label")
    assert api.train(path).metrics["auc"] > 0.782  # regularised logistic regression: 0.782 to 0.787
