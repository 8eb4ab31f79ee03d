import math

import pyarrow.parquet as pq
import pytest
import tiny_data
import torch
from sklearn.metrics import log_loss, roc_auc_score

from tzrec_core.data.loader import create_dataloader
from tzrec_core.engine.evaluate import evaluate_model
from tzrec_core.engine.setup import build
from tzrec_core.errors import DataError
from tzrec_core.models import TrainWrapper

CPU = torch.device("cpu")


def setup(config):
    torch.manual_seed(1)
    made = build(config)
    wrapper = TrainWrapper(made.model)
    return wrapper, create_dataloader(config.data_config, made.features, config.eval_input_path, mode="eval")


def test_metrics_are_those_of_all_rows_in_eval_mode(config):
    wrapper, loader = setup(config("model_config.tiny.dropout=0.9"))
    metrics = evaluate_model(wrapper, loader, CPU)
    wrapper.eval()
    with torch.no_grad():
        batches = list(loader)
        probs = torch.cat([wrapper(batch)[1][1]["probs"] for batch in batches]).tolist()
    clicks = torch.cat([batch.labels["click"] for batch in batches]).tolist()
    assert metrics["auc"] == pytest.approx(roc_auc_score(clicks, probs), abs=1e-6)
    assert len(clicks) == 40
    assert metrics["binary_cross_entropy"] == pytest.approx(log_loss(clicks, probs), rel=1e-5)


def test_the_model_is_left_as_it_was_and_metrics_start_afresh(config):
    wrapper, loader = setup(config())
    wrapper.train()
    before = {k: v.clone() for k, v in wrapper.state_dict().items()}
    assert evaluate_model(wrapper, loader, CPU) == evaluate_model(wrapper, loader, CPU)
    assert wrapper.training
    assert all(torch.equal(v, before[k]) for k, v in wrapper.state_dict().items())
    wrapper.eval()
    evaluate_model(wrapper, loader, CPU)
    assert not wrapper.training


def test_num_steps_stops_early(config, tmp_path):
    wrapper, loader = setup(config())
    first, everything = evaluate_model(wrapper, loader, CPU, num_steps=1), evaluate_model(wrapper, loader, CPU)
    pq.write_table(pq.read_table(tmp_path / "eval.parquet").slice(0, 16), tmp_path / "eval.parquet")
    assert first == evaluate_model(*setup(config()), CPU) != everything


def test_a_metric_with_a_value_per_class_gets_a_name_per_class(config):
    made = config("model_config.num_class=2", "model_config.losses=[{softmax_cross_entropy {}}]")
    wrapper, loader = setup(made)
    wrapper.model.compute_metric = lambda: {"auc": torch.tensor(0.5), "each": torch.tensor([0.25, 0.75])}
    assert evaluate_model(wrapper, loader, CPU) == {"auc": 0.5, "each_0": 0.25, "each_1": 0.75}


def test_rows_of_one_class_have_no_auc_but_the_run_goes_on(config, tmp_path):
    table = tiny_data.table(20, 3)
    index = table.schema.get_field_index("click")
    pq.write_table(table.set_column(index, "click", [[1] * 20]), tmp_path / "eval.parquet")
    metrics = evaluate_model(*setup(config()), CPU)
    assert math.isnan(metrics["auc"]) or 0 <= metrics["auc"] <= 1
    assert metrics["binary_cross_entropy"] > 0


def test_a_table_without_rows_is_an_error(config, tmp_path):
    tiny_data.write_tables(tmp_path, num_eval=0)
    with pytest.raises(DataError, match="no rows to evaluate on; check eval_input_path"):
        evaluate_model(*setup(config()), CPU)
