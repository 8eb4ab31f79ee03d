"""Every installed model's packaged example trains, evaluates and predicts, and the configs of examples/ train.

Those of examples/third_party_plugin have a plugin of their own: see test_third_party_plugin.py.
"""

import math
from importlib.resources import files
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tzrec_core import api
from tzrec_core.config import load_config
from tzrec_core.plugins import ModelSpec, registry
from tzrec_core.testing.tables import write_example_tables

EXAMPLES = {
    offer.spec.name: files(offer.spec.target.partition(".")[0]) / offer.spec.example
    for offer in registry().offers(ModelSpec)
    if offer.spec.example
}

ROOT = Path(__file__).parents[2]
STORIES = [path for path in sorted(ROOT.glob("examples/*/*.config")) if path.parent.name != "third_party_plugin"]


@pytest.mark.parametrize("model", EXAMPLES)
def test_the_packaged_example_trains_evaluates_and_predicts(model, tmp_path):
    config = load_config(EXAMPLES[model], validate=True)
    assert config.model_config.WhichOneof("model") == model
    paths = write_example_tables(config, tmp_path)
    overrides = [f"{field}={path}" for field, path in paths.items()] + [f"model_dir={tmp_path / 'run'}"]

    trained = api.train(EXAMPLES[model], overrides=overrides)
    assert trained.step == math.ceil(512 / config.data_config.batch_size)
    assert trained.metrics.get("auc", 1.0) > 0.6, "the example does not learn"

    evaluated = api.evaluate(EXAMPLES[model], overrides=overrides)
    assert evaluated.metrics == pytest.approx(trained.metrics)

    output = tmp_path / "predictions.parquet"
    predicted = api.predict(
        EXAMPLES[model], str(paths["eval_input_path"]), str(output), overrides=overrides, reserved_columns=["label"]
    )
    table = pq.read_table(output)
    assert predicted.num_rows == table.num_rows == 512
    assert table["label"] == pq.read_table(paths["eval_input_path"])["label"]
    assert set(table.column_names) - {"label"}, "nothing is predicted"
    assert not any(column.null_count for column in table.columns)


@pytest.mark.parametrize("path", STORIES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_config_of_the_examples_trains_a_step_on_generated_rows(path, tmp_path):
    paths = write_example_tables(load_config(path, validate=True), tmp_path, num_rows=64)
    overrides = [f"{field}={table}" for field, table in paths.items()]
    overrides += [f"model_dir={tmp_path / 'run'}", "train_config.num_steps=1", "data_config.num_workers=0"]
    assert api.train(path, overrides=overrides).step == 1
