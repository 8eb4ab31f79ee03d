import gc
import json
import math
import sys
import warnings
import weakref
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
import tiny_data
import torch
from sklearn.metrics import log_loss, roc_auc_score

from tzrec_core.config import parse_config
from tzrec_core.data import Batch
from tzrec_core.data.loader import create_dataloader
from tzrec_core.engine.checkpoint import CheckpointSaver
from tzrec_core.engine.evaluate import EVAL_RESULT, evaluate, evaluate_model
from tzrec_core.engine.results import read_result
from tzrec_core.engine.setup import build
from tzrec_core.engine.sharders import materialise_tables
from tzrec_core.engine.train import train
from tzrec_core.engine.world import in_world, join_world
from tzrec_core.errors import CheckpointError, DataError
from tzrec_core.models import TrainWrapper
from tzrec_core.plugins import Registry, Selection, use_registry

sys.path.insert(0, str(Path(__file__).parent))
from ranks import run_ranks

METRICS = (
    'model_config.metrics=[{auc {}}, {grouped_auc {grouping_key: "item"}}, {logloss {}}, {calibration {}}, '
    "{normalized_entropy {}}, {accuracy {}}]"
)


@pytest.fixture
def world():
    with in_world() as world:
        yield world


def setup(config, world):
    torch.manual_seed(1)
    made = build(config)
    materialise_tables(made.model)
    wrapper = TrainWrapper(made.model)
    return wrapper, create_dataloader(config.data_config, made.features, config.eval_input_path, mode="eval")


def test_metrics_are_those_of_all_rows_in_eval_mode(config, world):
    wrapper, loader = setup(config("model_config.tiny.dropout=0.9"), world)
    metrics = evaluate_model(wrapper, loader, world)
    wrapper.eval()
    with torch.no_grad():
        batches = list(loader)
        probs = torch.cat([wrapper(batch)[1][1]["probs"] for batch in batches]).tolist()
    clicks = torch.cat([batch.labels["click"] for batch in batches]).tolist()
    assert metrics["auc"] == pytest.approx(roc_auc_score(clicks, probs), abs=1e-6)
    assert len(clicks) == 40
    assert metrics["binary_cross_entropy"] == pytest.approx(log_loss(clicks, probs), rel=1e-5)


def test_the_model_is_left_as_it_was_and_metrics_start_afresh(config, world):
    wrapper, loader = setup(config(), world)
    wrapper.train()
    before = {k: v.clone() for k, v in wrapper.state_dict().items()}
    assert evaluate_model(wrapper, loader, world) == evaluate_model(wrapper, loader, world)
    assert wrapper.training
    assert all(torch.equal(v, before[k]) for k, v in wrapper.state_dict().items())
    wrapper.eval()
    evaluate_model(wrapper, loader, world)
    assert not wrapper.training


def test_num_steps_stops_early(config, tmp_path, world):
    wrapper, loader = setup(config(), world)
    first, everything = evaluate_model(wrapper, loader, world, num_steps=1), evaluate_model(wrapper, loader, world)
    pq.write_table(pq.read_table(tmp_path / "eval.parquet").slice(0, 16), tmp_path / "eval.parquet")
    assert first == evaluate_model(*setup(config(), world), world) != everything


def test_a_metric_with_a_value_per_class_gets_a_name_per_class(config, world):
    made = config("model_config.num_class=2", "model_config.losses=[{softmax_cross_entropy {}}]")
    wrapper, loader = setup(made, world)
    wrapper.model.compute_metric = lambda: {"auc": torch.tensor(0.5), "each": torch.tensor([0.25, 0.75])}
    assert evaluate_model(wrapper, loader, world) == {"auc": 0.5, "each_0": 0.25, "each_1": 0.75}


def test_rows_of_one_class_have_no_auc_but_the_run_goes_on(config, tmp_path, world):
    table = tiny_data.table(20, 3)
    index = table.schema.get_field_index("click")
    pq.write_table(table.set_column(index, "click", [[1] * 20]), tmp_path / "eval.parquet")
    metrics = evaluate_model(*setup(config(), world), world)
    assert math.isnan(metrics["auc"]) or 0 <= metrics["auc"] <= 1
    assert metrics["binary_cross_entropy"] > 0


def test_a_table_without_rows_is_an_error(config, tmp_path, world):
    tiny_data.write_tables(tmp_path, num_eval=0)
    with pytest.raises(DataError, match="no rows to evaluate on; check eval_input_path"):
        evaluate_model(*setup(config(), world), world)


def saved(config, world, optimizer_tensors=None):
    """A checkpoint of step 3 of a model with weights that are the same everywhere."""
    torch.manual_seed(1)
    wrapper = TrainWrapper(build(config).model)
    materialise_tables(wrapper)
    tensors = {} if optimizer_tensors is None else optimizer_tensors(wrapper)
    with CheckpointSaver(config.model_dir, world) as saver:
        saver.save(wrapper.state_dict(), tensors, {"step": 3}, wait=True)
    return wrapper


def test_what_metrics_draw_is_the_same_each_time_and_the_callers_draws_go_on(config, world):
    regression = ("model_config.losses=[{l2_loss {}}]", "model_config.metrics=[{xauc {sample_ratio: 0.05}}]")
    wrapper, loader = setup(config(*regression), world)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = evaluate_model(wrapper, loader, world)
    assert torch.equal(torch.rand(1), expected)
    assert evaluate_model(wrapper, loader, world) == first


def test_one_process_exchanges_nothing(config, world, monkeypatch):
    wrapper, loader = setup(config(METRICS), world)
    for name in ("all_gather", "barrier", "all_reduce", "broadcast"):
        monkeypatch.setattr(torch.distributed, name, lambda *a, **k: pytest.fail("a group of one needs no exchange"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(evaluate_model(wrapper, loader, world)) == 7


def test_averages_of_the_dense_parameters_are_evaluated_when_asked_for(config, world):
    made = config()
    made.eval_config.use_dense_ema = True
    wrapper = saved(made, world, lambda w: {f"ema.{n}": p + 0.3 for n, p in w.named_parameters() if ".emb" not in n})
    assert evaluate(made)[2] != evaluate(config())[2]
    with torch.no_grad():
        for name, parameter in wrapper.named_parameters():
            if ".emb" not in name:
                parameter += 0.3
    _, loader = setup(made, world)
    assert evaluate(made)[2] == evaluate_model(wrapper, loader, world)


def test_averages_that_were_not_kept_are_an_error(config, world):
    made = config()
    made.eval_config.use_dense_ema = True
    saved(made, world)
    with pytest.raises(CheckpointError, match=r"ckpt-3 holds no moving averages.*train_config\.dense_optimizer\.ema"):
        evaluate(made)


def sharded_scenario(text):
    with use_registry(Registry.find(Selection(only=frozenset(), files=(tiny_data.MANIFEST,)))):
        join_world()
        config = parse_config(text, overrides=[METRICS])
        results = [evaluate(config)[2]]
        config.eval_config.use_dense_ema = True
        return [*results, evaluate(config)[2]]


def test_two_processes_measure_what_one_does_and_one_of_them_writes_it(config, world, tmp_path):
    made = config(METRICS)
    saved(made, world, lambda w: {f"ema.{n}": p + 0.3 for n, p in w.named_parameters() if ".emb" not in n})
    alone = evaluate(made)[2]
    outputs = run_ranks(__file__, "sharded_scenario", 2, tiny_data.write_tables(tmp_path))
    assert outputs[0] == outputs[1]
    assert outputs[0][0] == pytest.approx(alone, abs=1e-6)
    made.eval_config.use_dense_ema = True
    assert outputs[0][1] == pytest.approx(evaluate(made)[2], abs=1e-6) != pytest.approx(alone, abs=1e-3)
    lines = (tmp_path / "run/eval_result.txt").read_text().splitlines()
    assert [json.loads(line) for line in lines][1] == {"global_step": 3, **outputs[0][0]}
    assert len(lines) == 4


def test_nothing_of_a_batch_is_kept_but_what_metrics_count(config, world):
    wrapper, loader = setup(config(METRICS), world)
    auc = wrapper.model._metric_modules["auc"]
    auc._max_scores = 20
    alive, kept = [], []
    update = wrapper.model.update_metric

    def watch(predictions, batch, losses):
        update(predictions, batch, losses)
        alive.append([weakref.ref(tensor) for tensor in (*predictions.values(), *batch.labels.values())])
        assert not any(tensor.requires_grad for tensor in predictions.values())
        gc.collect()
        kept.append([sum(ref() is not None for ref in refs) for refs in alive])
        assert sum(map(len, auc.scores)) <= 20

    wrapper.model.update_metric = watch
    evaluate_model(wrapper, loader, world)
    assert all(sum(counts[:-1]) == 0 for counts in kept) and len(kept) == 3


@pytest.mark.slow
def test_memory_stays_flat_over_millions_of_rows(config, world):
    """Kept rows are folded after 200,000; until then a row takes 5 bytes."""
    made = config(METRICS.replace(' {grouped_auc {grouping_key: "item"}},', ""), "data_config.eval_batch_size=16384")
    torch.manual_seed(1)
    setup = build(made)
    materialise_tables(setup.model)
    table = tiny_data.table(3_000_000, 4)
    wrapper = TrainWrapper(setup.model)
    wrapper.model._metric_modules["auc"]._max_scores = 200_000
    loader = create_dataloader(made.data_config, setup.features, table, mode="eval")
    resident = []
    update = wrapper.model.update_metric

    def watch(predictions, batch, losses):
        update(predictions, batch, losses)
        resident.append(psutil.Process().memory_info().rss / 2**20)

    wrapper.model.update_metric = watch
    metrics = evaluate_model(wrapper, loader, world)
    resident.append(psutil.Process().memory_info().rss / 2**20)
    assert 0.4 < metrics["auc"] < 1
    after_folding = resident[len(resident) // 3]  # a million rows
    assert max(resident[len(resident) // 3 :]) - after_folding < 40


def test_every_batch_is_brought_to_the_device_of_the_process(config, world, monkeypatch):
    wrapper, loader = setup(config(), world)
    devices = []
    bring = Batch.to
    monkeypatch.setattr(Batch, "to", lambda batch, device, **kw: devices.append(device) or bring(batch, device, **kw))
    evaluate_model(wrapper, loader, world)
    assert devices == [world.device] * loader.num_batches


def test_metrics_are_told_when_they_cannot_be_written(config, tmp_path, caplog):
    trained = train(config())
    (tmp_path / "file").touch()
    elsewhere = config(f"model_dir={tmp_path}/not/yet/there")
    _, _, metrics = evaluate(elsewhere, checkpoint=str(trained.checkpoint))
    assert read_result(elsewhere.model_dir, EVAL_RESULT, trained.step) == metrics
    impossible = config(f"model_dir={tmp_path}/file/run")
    assert evaluate(impossible, checkpoint=str(trained.checkpoint))[2] == metrics
    assert "the metrics are not in" in caplog.text
