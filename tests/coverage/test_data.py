"""What fields of data_config do that the tests of tests/data do not show one by one."""

import os
import signal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tzrec_core.config import parse_config
from tzrec_core.data import create_dataloader
from tzrec_core.data import loader as loader_module
from tzrec_core.features import create_features

FEATURE = (
    'feature_configs { id_feature { feature_name: "item" expression: "item:item" num_buckets: 99 embedding_dim: 4 } }'
)


@pytest.fixture
def load(tmp_path):
    """The loader of 12 rows in 4 row groups, in batches of 3."""
    pq.write_table(pa.table({"item": list(range(12))}), tmp_path / "rows.parquet", row_group_size=3)

    def make(settings, dataset_type="ParquetDataset"):
        size = "" if "batch_size" in settings else "batch_size: 3"
        workers = "" if "num_workers" in settings else "num_workers: 0"
        text = f"data_config {{ dataset_type: {dataset_type} {size} {workers} {settings} }} {FEATURE}"
        config = parse_config(text, partial=True)
        features = create_features(config.feature_configs, config.data_config)
        return create_dataloader(config.data_config, features, str(tmp_path / "rows.parquet"))

    return make


def items(batches):
    return [batch.sparse_features["__BASE__"].values().tolist() for batch in batches]


def test_shuffle_buffer_size_is_how_many_batches_are_mixed(load):
    (small,) = items(load("shuffle: true shuffle_buffer_size: 1 batch_size: 12"))
    assert sorted(small) == list(range(12)) and small != sorted(small)
    mixed = items(load("shuffle: true shuffle_buffer_size: 1"))
    assert all(max(batch) - min(batch) == 2 for batch in mixed)
    assert any(max(batch) - min(batch) > 2 for batch in items(load("shuffle: true")))


def test_num_workers_is_the_number_of_worker_processes(load, monkeypatch):
    monkeypatch.setattr(loader_module.os, "cpu_count", lambda: 8)
    assert load("num_workers: 2").num_workers == 2
    assert load("num_workers: 3").num_workers == 3


@pytest.fixture
def worker_arguments(load, monkeypatch):
    """What torch's DataLoader is told when the loader starts its workers."""

    def arguments(settings):
        told = {}
        monkeypatch.setattr(loader_module, "DataLoader", lambda *args, **kwargs: told.update(kwargs) or [])
        list(load(f"num_workers: 1 {settings}"))
        return told

    return arguments


def test_in_order_false_lets_the_fastest_worker_go_first(worker_arguments):
    assert worker_arguments("")["in_order"] and not worker_arguments("in_order: false")["in_order"]


def test_pin_memory_false_leaves_batches_in_pageable_memory_beside_a_gpu(worker_arguments, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert worker_arguments("")["pin_memory"] and not worker_arguments("pin_memory: false")["pin_memory"]


def test_fg_threads_are_the_threads_of_each_worker(worker_arguments, monkeypatch):
    monkeypatch.setenv("POLARS_MAX_THREADS", "1")
    before = torch.get_num_threads(), pa.cpu_count(), signal.getsignal(signal.SIGINT)
    try:
        monkeypatch.setattr(os, "setpgid", lambda pid, group: None)  # this process stays in its group
        worker_arguments("fg_threads: 3")["worker_init_fn"](0)
        assert (torch.get_num_threads(), pa.cpu_count(), os.environ["POLARS_MAX_THREADS"]) == (3, 3, "3")
    finally:
        torch.set_num_threads(before[0])
        pa.set_cpu_count(before[1])
        signal.signal(signal.SIGINT, before[2])
