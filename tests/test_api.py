import json
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent / "tiny_plugin"))
import tiny_data

from tzrec_core import api
from tzrec_core.config import parse_config
from tzrec_core.data.loader import create_dataloader
from tzrec_core.errors import CheckpointError, ConfigError, DataError
from tzrec_core.features import create_features
from tzrec_core.plugins import Registry, Selection, use_registry


@pytest.fixture(scope="module")
def tiny_registry():
    return Registry.find(Selection(only=frozenset(), files=(tiny_data.MANIFEST,)))


@pytest.fixture(autouse=True)
def _only_the_tiny_model(tiny_registry):
    with use_registry(tiny_registry):
        yield


@pytest.fixture
def text(tmp_path) -> str:
    return tiny_data.write_tables(tmp_path)


@pytest.fixture
def trained(text) -> str:
    api.train(text, overrides=["train_config.num_steps=3"])
    return text


@pytest.mark.parametrize("form", ["path", "path as text", "text", "JSON", "message"])
def test_a_config_may_be_a_path_a_text_or_a_message(text, tmp_path, form):
    from google.protobuf import json_format

    path = tmp_path / "tiny.config"
    path.write_text(text)
    message = parse_config(text)
    given = {
        "path": path,
        "path as text": str(path),
        "text": text,
        "JSON": json_format.MessageToJson(message, preserving_proto_field_name=True, indent=None),
        "message": message,
    }[form]
    assert api.as_config(given) == message
    changed = api.as_config(given, overrides=["data_config.batch_size=3"])
    assert changed.data_config.batch_size == 3
    assert message.data_config.batch_size == 16


def test_all_mistakes_of_a_config_come_before_anything_runs(text, tmp_path):
    wrong = text.replace('"item", "price"]', '"itme", "price"]').replace("auc {}", "recall_at_k { top_k: 3 }")
    for given in (wrong, parse_config(wrong)):
        with pytest.raises(ConfigError) as caught:
            api.train(given)
        assert len(caught.value.problems) == 2
    assert not (tmp_path / "run").exists()


def test_evaluation_writes_its_result_and_returns_it(trained, tmp_path):
    result = api.evaluate(trained)
    again = api.evaluate(trained, checkpoint=tmp_path / "run/model.ckpt-3")
    assert (result.checkpoint, result.step) == (tmp_path / "run/model.ckpt-3", 3)
    assert result.metrics == again.metrics
    lines = [json.loads(line) for line in (tmp_path / "run/eval_result.txt").read_text().splitlines()]
    assert lines == [{"global_step": 3, **result.metrics}] * 2


def test_evaluation_of_another_table_or_of_fewer_batches(trained, tmp_path):
    pq.write_table(tiny_data.table(16, 2), tmp_path / "first.parquet")
    other = api.evaluate(trained, data=str(tmp_path / "first.parquet"))
    assert other.metrics != api.evaluate(trained).metrics
    fewer = api.evaluate(trained, overrides=["eval_config.num_steps=1"])
    whole = api.evaluate(trained, overrides=["data_config.eval_batch_size=40"])
    assert fewer.metrics != whole.metrics == pytest.approx(api.evaluate(trained).metrics)


def test_evaluation_needs_a_table_and_a_checkpoint(text, trained, tmp_path):
    with pytest.raises(ConfigError, match="eval_input_path is empty; set it, or say what to evaluate on"):
        api.evaluate(trained, overrides=['eval_input_path=""'])
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        api.evaluate(text, overrides=[f"model_dir={tmp_path}/other"])
    with pytest.raises(DataError, match="nowhere"):
        api.evaluate(trained, data=str(tmp_path / "nowhere.parquet"))


def test_prediction_from_python(trained, tmp_path):
    result = api.predict(trained, str(tmp_path / "eval.parquet"), str(tmp_path / "out.parquet"), batch_size=9)
    assert result.num_rows == 40
    assert pq.read_table(tmp_path / "out.parquet").column_names == ["logits", "probs"]


def test_a_trained_model_is_loaded_from_its_folder_alone(trained, tmp_path):
    api.predict(trained, str(tmp_path / "eval.parquet"), str(tmp_path / "out.parquet"))
    wrapper = api.load_model(tmp_path / "run")
    assert not wrapper.training
    config = parse_config(trained)
    loader = create_dataloader(
        config.data_config,
        create_features(config.feature_configs, config.data_config),
        config.eval_input_path,
        mode="predict",
    )
    with torch.no_grad():
        probs = torch.cat([wrapper(batch)[1][0]["probs"] for batch in loader])
    assert probs.tolist() == pytest.approx(pq.read_table(tmp_path / "out.parquet")["probs"].to_pylist())


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"pipeline\.config does not exist"):
        api.load_model(tmp_path)


def test_everything_public_is_there():
    assert api.__all__ == sorted(api.__all__)
    assert all(hasattr(api, name) for name in api.__all__)


def test_tables_in_memory_train_evaluate_and_predict_like_their_files(trained, tmp_path):
    table = tiny_data.table(40, 3)
    pq.write_table(table, tmp_path / "first.parquet")
    from_file = api.predict(trained, str(tmp_path / "first.parquet"))
    from_table = api.predict(trained, table)
    assert from_file.output_path is None
    assert from_table.table.equals(from_file.table)
    assert from_table.num_rows == from_table.table.num_rows == table.num_rows
    on_file = api.evaluate(trained, str(tmp_path / "first.parquet")).metrics
    assert api.evaluate(trained, table).metrics == on_file
    result = api.train(trained, overrides=[f"model_dir={tmp_path / 'again'}"], train_data=table, eval_data=table)
    assert result.step > 0
    assert set(result.metrics) == set(on_file)


def test_mistakes_of_features_are_named_with_all_others(text):
    overrides = ["data_config.batch_size=0", "feature_configs[0].id_feature.embedding_dim=0"]
    with pytest.raises(ConfigError) as caught:
        api.train(text, overrides=overrides)
    assert "batch_size = 0" in str(caught.value)
    assert "embedding_dim" in str(caught.value)
