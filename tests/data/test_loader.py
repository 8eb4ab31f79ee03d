import itertools
import json
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from google.protobuf import any_pb2, text_format
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from tzrec_core.data import loader as loader_module
from tzrec_core.data.batch import Batch
from tzrec_core.data.loader import BatchLoader, create_dataloader, reader_class
from tzrec_core.data.readers import BaseReader, CsvReader, ParquetReader, RowBlock
from tzrec_core.errors import ConfigError, DataError
from tzrec_core.features import create_features
from tzrec_core.plugins import ReaderSpec, Registry, use_registry
from tzrec_core.protos.data_pb2 import DataConfig, Field
from tzrec_core.protos.feature_pb2 import FeatureConfig

FEATURES = [
    'id_feature { feature_name: "item" expression: "item:item" num_buckets: 100 embedding_dim: 4 }',
    'raw_feature { feature_name: "price" expression: "item:price" }',
]


def data_config(text: str = "", dataset_type: str = "ParquetDataset") -> DataConfig:
    head = f"dataset_type: {dataset_type} fg_mode: FG_NORMAL label_fields: 'click' batch_size: 4 num_workers: 0 "
    return text_format.Merge(text, text_format.Parse(head, DataConfig()))


def features(config: DataConfig) -> list:
    return create_features([text_format.Parse(text, FeatureConfig()) for text in FEATURES], config)


def write_table(path: Path, first: int, num_rows: int, group: int = 3, **columns: list) -> None:
    rows = range(first, first + num_rows)
    table = {"item": list(rows), "price": [r / 2 for r in rows], "click": [r % 2 for r in rows], **columns}
    pq.write_table(pa.table(table), path, row_group_size=group)


def dataloader(path: Path | str, text: str = "", dataset_type: str = "ParquetDataset", **kwargs) -> BatchLoader:
    config = data_config(text, dataset_type)
    return create_dataloader(config, features(config), str(path), **kwargs)


def items(batches) -> list[list[int]]:
    return [batch.sparse_features["__BASE__"].values().tolist() for batch in batches]


def flat(batches) -> list[int]:
    return [item for batch in items(batches) for item in batch]


@pytest.fixture
def two_files(tmp_path):
    write_table(tmp_path / "a.parquet", 0, 10)
    write_table(tmp_path / "b.parquet", 10, 7)
    return tmp_path / "*.parquet"


# What a batch holds


def test_training_batches_hold_features_and_labels_in_file_order(two_files):
    batches = dataloader(two_files)
    found = list(batches)
    assert items(found) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15], [16]]
    assert found[0].labels["click"].tolist() == [0, 1, 0, 1]
    assert found[0].dense_features["__BASE__"].values().tolist() == [[0.0], [0.5], [1.0], [1.5]]
    assert (batches.num_rows, batches.num_batches, batches.num_workers) == (17, 5, 0)


def test_prediction_needs_no_labels_and_carries_reserved_columns(tmp_path):
    pq.write_table(pa.table({"item": [5, 6], "price": [1.0, 2.0], "who": ["x", "y"]}), tmp_path / "a.parquet")
    (batch,) = dataloader(tmp_path, mode="predict", reserved_columns=["who", "item"])
    assert batch.labels == {}
    assert batch.reserves.to_pydict() == {"who": ["x", "y"], "item": [5, 6]}
    (batch,) = dataloader(tmp_path, mode="predict", reserved_columns=["ALL_COLUMNS"])
    assert batch.reserves.to_pydict() == {"item": [5, 6], "price": [1.0, 2.0], "who": ["x", "y"]}
    with pytest.raises(DataError, match=r"a\.parquet: there is no column 'click'"):
        dataloader(tmp_path, mode="eval")
    with pytest.raises(DataError, match=r"no column 'whom'. Did you mean 'who'"):
        dataloader(tmp_path, mode="predict", reserved_columns=["whom"])


def test_sample_weights_are_read_for_training_and_evaluation(tmp_path):
    write_table(tmp_path / "a.parquet", 0, 3, weight=[0.5, 1.0, 2.0])
    for mode in ("train", "eval"):
        (batch,) = dataloader(tmp_path, "sample_weight_fields: 'weight'", mode=mode)
        assert batch.sample_weights["weight"].tolist() == [0.5, 1.0, 2.0]


def test_csv_gives_the_batches_that_parquet_gives(tmp_path):
    (tmp_path / "a.csv").write_text("item;price;click\n0;0.0;0\n1;0.5;1\n2;1.0;0\n")
    write_table(tmp_path / "a.parquet", 0, 3)
    (from_csv,) = dataloader(tmp_path / "a.csv", "with_header: true delimiter: ';'", "CsvDataset")
    (from_parquet,) = dataloader(tmp_path / "a.parquet")
    expected = from_parquet.to_dict()
    assert from_csv.to_dict().keys() == expected.keys()
    for name, value in from_csv.to_dict().items():
        torch.testing.assert_close(value, expected[name])


def test_drop_remainder_holds_for_training_only_and_evaluation_has_its_batch_size(two_files):
    text = "drop_remainder: true eval_batch_size: 6"
    sizes = {mode: [len(b) for b in items(dataloader(two_files, text, mode=mode))]
             for mode in ("train", "eval", "predict")}  # fmt: skip
    assert sizes == {"train": [4] * 4, "eval": [6, 6, 5], "predict": [4] * 4 + [1]}
    assert dataloader(two_files, text).num_batches == 4


def test_tables_without_rows_give_no_batches(tmp_path):
    write_table(tmp_path / "a.parquet", 0, 0)
    (tmp_path / "a.csv").write_text("")
    assert list(dataloader(tmp_path / "a.parquet")) == []
    assert list(dataloader(tmp_path / "a.csv", "with_header: true", "CsvDataset")) == []


# Shuffling


def test_a_shuffle_repeats_with_its_seed_and_changes_with_the_epoch(two_files):
    batches = dataloader(two_files, "shuffle: true shuffle_buffer_size: 2", seed=5)
    first, again = flat(batches), flat(batches)
    batches.start(1)
    second = flat(batches)
    assert first == again == flat(dataloader(two_files, "shuffle: true shuffle_buffer_size: 2", seed=5))
    assert len({tuple(first), tuple(second), tuple(range(17))}) == 3
    assert sorted(first) == sorted(second) == list(range(17))
    assert flat(dataloader(two_files, "shuffle: true", mode="eval")) == list(range(17))


# Ranks, workers and positions


class _TurnByTurn:
    """Stands in for torch's DataLoader: the same parts of its workers, in this process."""

    def __init__(self, part, *, num_workers, **kwargs):
        self.workers = [part.batches(index) for index in range(num_workers)]

    def __iter__(self):
        for worker in itertools.cycle(self.workers):
            if (batch := next(worker, None)) is None:
                return
            yield batch


@pytest.fixture
def turn_by_turn(monkeypatch):
    monkeypatch.setattr(loader_module, "DataLoader", _TurnByTurn)
    monkeypatch.setattr(loader_module.os, "cpu_count", lambda: 8)


SHUFFLED = "shuffle: true shuffle_buffer_size: 2"


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("settings", ["", SHUFFLED])
@pytest.mark.usefixtures("turn_by_turn")
def test_an_iteration_begins_at_any_batch_with_what_the_whole_one_gives_from_there(
    two_files, settings, num_workers, world_size
):
    for rank in range(world_size):
        shape = {"num_workers": num_workers, "rank": rank, "world_size": world_size, "seed": 3}
        undisturbed = dataloader(two_files, settings, **shape)
        for epoch in range(2):
            undisturbed.start(epoch)
            whole = items(undisturbed)
            assert len(whole) == undisturbed.num_batches == (5 if world_size == 1 else 2)
            for batch in range(len(whole) + 2):
                resumed = dataloader(two_files, settings, **shape)
                resumed.start(epoch, batch)
                assert items(resumed) == whole[batch:]


def test_two_processes_resume_within_a_shuffled_epoch_too(two_files):
    batches = dataloader(two_files, SHUFFLED, num_workers=2)
    whole = items(batches)
    for batch in (1, 4):
        batches.start(0, batch)
        assert items(batches) == whole[batch:]


@pytest.mark.usefixtures("turn_by_turn")
@pytest.mark.parametrize("settings", ["", SHUFFLED])
def test_the_order_of_an_epoch_depends_on_neither_ranks_nor_workers(two_files, settings):
    order = flat(dataloader(two_files, settings, seed=5))
    assert (order == list(range(17))) is (settings == "")
    for world_size, num_workers in itertools.product((1, 2, 3, 5), (0, 1, 2, 3)):
        found = []
        for rank in range(world_size):
            batches = dataloader(two_files, settings, seed=5, num_workers=num_workers, rank=rank, world_size=world_size)
            mine = flat(batches)
            share = order[len(found) : len(found) + len(mine)]
            assert sorted(mine) == sorted(share)
            assert mine == share or num_workers > 1
            found += share
        assert found == order


@pytest.mark.usefixtures("turn_by_turn")
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_files_a_hundred_times_larger_than_others_give_all_ranks_equally_many_batches(tmp_path, mode):
    first = 0
    for name, num_rows in (("a", 10_000), ("b", 100), ("c", 100)):
        write_table(tmp_path / f"{name}.parquet", first, num_rows, group=4000, item=[0] * num_rows,
                    click=list(range(first, first + num_rows)))  # fmt: skip
        first += num_rows
    counts, rows = [], []
    for rank in range(2):
        batches = dataloader(tmp_path, f"batch_size: 256 {SHUFFLED}", mode=mode, num_workers=2, rank=rank, world_size=2)
        found = [batch.labels["click"].tolist() for batch in batches]
        assert batches.num_rows == 10_200 and batches.num_batches == len(found)
        counts.append(len(found))
        rows += [row for batch in found for row in batch]
    assert counts == [20, 20]
    assert sorted(rows) == list(range(10_200))


@pytest.mark.usefixtures("turn_by_turn")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_row_that_does_not_divide_evenly_makes_one_last_batch_larger(two_files, num_workers):
    ranks = [dataloader(two_files, num_workers=num_workers, rank=rank, world_size=2) for rank in range(2)]
    assert [[len(batch) for batch in items(batches)] for batches in ranks] == [[4, 5], [4, 4]]
    dropped = [
        dataloader(two_files, "drop_remainder: true", num_workers=num_workers, rank=rank, world_size=2)
        for rank in range(2)
    ]
    assert [items(batches) for batches in dropped] == [
        [[0, 1, 2, 3], [4, 5, 6, 7]],
        [[9, 10, 11, 12], [13, 14, 15, 16]],
    ]


def test_fewer_rows_than_processes_are_refused_and_none_at_all_give_no_batches(tmp_path):
    write_table(tmp_path / "a.parquet", 0, 2)
    with pytest.raises(DataError, match=r"a\.parquet has too few rows to share: 2 for 3 processes.*Start 2 .*--nproc"):
        dataloader(tmp_path / "a.parquet", rank=0, world_size=3)
    write_table(tmp_path / "a.parquet", 0, 0)
    empty = dataloader(tmp_path / "a.parquet", rank=0, world_size=3)
    assert (empty.num_rows, empty.num_batches, list(empty)) == (0, 0, [])


def test_predictions_of_the_ranks_one_after_the_other_are_in_the_order_of_the_rows(two_files):
    ranks = [dataloader(two_files, mode="predict", rank=rank, world_size=3) for rank in range(3)]
    assert [row for batches in ranks for row in flat(batches)] == list(range(17))


def test_the_order_key_tells_when_a_batch_number_means_other_rows(two_files):
    def key(settings: str = "", **kwargs) -> dict:
        made = dataloader(two_files, settings, **kwargs).order_key()
        assert json.loads(json.dumps(made)) == made
        return made

    plain = key()
    assert plain == {
        "input_path": str(two_files), "num_rows": 17, "batch_size": 4, "world_size": 1, "num_workers": 1,
        "in_order": True, "drop_remainder": False, "seed": None, "window_rows": None, "num_units": None,
    }  # fmt: skip
    assert key(num_workers=1) == key(seed=9) == key("in_order: false") == key(rank=0) == plain
    assert key(world_size=2, rank=0) == key(world_size=2, rank=1) == {**plain, "world_size": 2}
    assert key(num_workers=2) == {**plain, "num_workers": 2}
    assert key("in_order: false", num_workers=2) == {**plain, "num_workers": 2, "in_order": False}
    assert key("batch_size: 5 drop_remainder: true") == {**plain, "batch_size": 5, "drop_remainder": True}
    assert key(SHUFFLED, seed=9) == {**plain, "seed": 9, "window_rows": 8, "num_units": 7}


def test_a_resume_says_when_the_order_of_batches_was_left_open(two_files, monkeypatch, caplog):
    monkeypatch.setattr(loader_module, "_said", set())
    for settings, num_workers, batch in (("in_order: false", 2, 0), ("in_order: false", 1, 1), ("", 2, 1)):
        dataloader(two_files, settings, num_workers=num_workers).start(1, batch)
    assert not caplog.text
    dataloader(two_files, "in_order: false", num_workers=2).start(1, 1)
    assert "data_config.in_order is false, so which batches of this epoch came first is not known" in caplog.text


# Bad rows


class FakeParser:
    input_columns = ["item"]

    def parse(self, columns, *, first_row):
        values = columns["item"].to_pylist()
        if 13 in values:
            raise DataError("13 is bad luck", row=values.index(13))
        if 99 in values:
            raise DataError("some number is bad")
        return {"item": torch.tensor(values)}

    def to_batch(self, flat_batch):
        return Batch(labels=flat_batch)


def test_an_error_of_the_parser_gets_file_and_row(two_files):
    reader = ParquetReader(str(two_files), batch_size=4, columns=["item"])
    expected = f"{two_files.parent}/b.parquet, row 3: 13 is bad luck"
    with pytest.raises(DataError) as caught:
        list(BatchLoader(reader, FakeParser()))
    assert str(caught.value) == expected
    with pytest.raises(DataError) as caught:
        list(BatchLoader(reader, FakeParser(), shuffle_rows=8, seed=1))
    assert str(caught.value) == expected


def test_an_error_of_the_parser_in_csv_names_the_line_too(tmp_path):
    (tmp_path / "a.csv").write_text("item\n1\n\n2\n3\n4\n13\n")
    reader = CsvReader(str(tmp_path / "a.csv"), batch_size=3, data_config=DataConfig(with_header=True))
    with pytest.raises(DataError, match=r"a\.csv, row 4 \(line 7\): 13 is bad luck"):
        list(BatchLoader(reader, FakeParser()))


def test_a_damaged_line_of_csv_is_named_before_the_first_batch(tmp_path):
    (tmp_path / "a.csv").write_text("item,price,click\n1,1,1\n1,1\n")
    with pytest.raises(DataError, match=r"a\.csv, line 3: 2 fields, but the header line has 3"):
        dataloader(tmp_path / "a.csv", "with_header: true", "CsvDataset")


def test_an_error_that_knows_no_row_gets_the_rows_of_its_batch(tmp_path):
    pq.write_table(pa.table({"item": [1, 2, 3, 99]}), tmp_path / "a.parquet")
    reader = ParquetReader(str(tmp_path / "a.parquet"), batch_size=2)
    with pytest.raises(DataError, match=r"a\.parquet, rows 2 to 3: some number is bad"):
        list(BatchLoader(reader, FakeParser()))


def test_batches_arrive_before_later_files_are_read(tmp_path):
    write_table(tmp_path / "a.parquet", 0, 4)
    write_table(tmp_path / "b.parquet", 4, 4)
    batches = iter(dataloader(tmp_path / "*.parquet"))
    (tmp_path / "b.parquet").unlink()
    assert items([next(batches)]) == [[0, 1, 2, 3]]
    with pytest.raises(DataError, match=r"b\.parquet"):
        next(batches)


# Worker processes


def test_workers_take_turns_and_all_batches_but_the_last_are_full(two_files):
    batches = dataloader(two_files, "num_workers: 2", reserved_columns=["item"])
    found = list(batches)
    assert batches.num_workers == 2
    assert items(found) == [[0, 1, 2, 3], [9, 10, 11, 12], [4, 5, 6, 7], [13, 14, 15, 16], [8]]
    assert [b.reserves.column("item").to_pylist() for b in found] == items(found)
    assert items(batches) == items(found)


def test_ctrl_c_in_a_terminal_does_not_reach_the_workers(two_files):
    batches = iter(dataloader(two_files, "num_workers: 2 batch_size: 1"))
    found = flat([next(batches)])
    for child in multiprocessing.active_children():
        status = dict(line.split(":", 1) for line in Path(f"/proc/{child.pid}/status").read_text().splitlines())
        assert int(status["SigBlk"], 16) & 1 << signal.SIGINT - 1, "blocked before Python could install a handler"
        os.kill(child.pid, signal.SIGINT)
    assert sorted(found + flat(batches)) == list(range(17))


def test_without_in_order_workers_still_read_every_row(two_files):
    assert sorted(flat(dataloader(two_files, "num_workers: 2 in_order: false"))) == list(range(17))


def test_an_error_in_a_worker_arrives_as_itself_in_one_line(tmp_path):
    pq.write_table(pa.table({"item": [1, 2, 3, 100, 5], "price": [0.0] * 5, "click": [0] * 5}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet, row 3: column 'item' .*100") as caught:
        list(dataloader(tmp_path, "num_workers: 1"))
    assert "Traceback" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_worker_that_dies_ends_the_run_with_an_error(two_files, monkeypatch):
    # torch looks every 5 seconds whether its workers are alive.
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.2,))
    reader = ParquetReader(str(two_files), batch_size=4, columns=["item"])
    # Spelled so because a class of this file cannot travel to a worker.
    dies = SimpleNamespace(parse=dict, to_batch=partial(exec, "import os; os._exit(3)"))
    with pytest.raises(DataError, match=r"worker process died.*num_workers"):
        list(BatchLoader(reader, dies, num_workers=2))


@pytest.mark.slow
def test_workers_die_with_a_run_that_is_killed(two_files):
    code = f"""
import multiprocessing, time
from types import SimpleNamespace
from tzrec_core.data.loader import BatchLoader
from tzrec_core.data.readers import ParquetReader
reader = ParquetReader({str(two_files)!r}, batch_size=4)
batches = iter(BatchLoader(reader, SimpleNamespace(parse=dict, to_batch=dict), num_workers=2))
next(batches)
print(*(child.pid for child in multiprocessing.active_children()), flush=True)
time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    workers = [Path(f"/proc/{pid}") for pid in process.stdout.readline().split()]
    assert len(workers) == 2 and all(worker.exists() for worker in workers)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 10
    while any(worker.exists() for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(worker.exists() for worker in workers)


def test_workers_beyond_the_cores_are_capped_and_said_once(two_files, monkeypatch, caplog):
    monkeypatch.setattr(loader_module.os, "cpu_count", lambda: 3)
    monkeypatch.setattr(loader_module, "_said", set())
    with caplog.at_level(logging.WARNING):
        assert dataloader(two_files, "num_workers: 5").num_workers == 3
        assert dataloader(two_files, "num_workers: 5").num_workers == 3
    assert caplog.text.count("num_workers = 5 is more than this machine's 3 cores") == 1
    caplog.clear()
    monkeypatch.setattr(loader_module, "_said", set())
    config = data_config()
    config.ClearField("num_workers")
    assert create_dataloader(config, features(config), str(two_files)).num_workers == 3
    assert not caplog.text
    assert dataloader(two_files, "num_workers: 5", num_workers=1).num_workers == 1


def test_no_more_workers_start_than_there_are_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(loader_module.os, "cpu_count", lambda: 8)
    write_table(tmp_path / "a.parquet", 0, 6)
    assert dataloader(tmp_path, "num_workers: 8").num_workers == 2
    assert dataloader(tmp_path, "num_workers: 8", rank=1, world_size=2).num_workers == 1
    write_table(tmp_path / "a.parquet", 0, 0)
    assert dataloader(tmp_path, "num_workers: 8").num_workers == 0


def test_tables_in_memory_are_read_in_this_process():
    with fsspec.open("memory://tzrec_loader/a.parquet", "wb") as file:
        pq.write_table(pa.table({"item": [1], "price": [1.0], "click": [0]}), file)
    batches = dataloader("memory://tzrec_loader/*.parquet", "num_workers: 2")
    assert batches.num_workers == 0 and flat(batches) == [1]


# Settings


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("batch_size: 0", "batch_size = 0"),
        ("eval_batch_size: 0", "eval_batch_size = 0"),
        ("shuffle: true shuffle_buffer_size: 0", "shuffle_buffer_size = 0"),
        ("fg_threads: 0", "fg_threads = 0"),
        ("sample_mask_prob: 0.5", "data_config.sample_mask_prob: masking samples is not supported yet"),
        ("negative_sample_mask_prob: 0.5", "negative_sample_mask_prob: masking samples is not supported yet"),
        ("sample_cost_field: 'x'", "sample_cost_field: .*not supported yet"),
        ("batch_cost_size: 9", "batch_cost_size: .*not supported yet"),
        ("is_orderby_partition: true", "is_orderby_partition is for OdpsDataset"),
        ("odps_data_quota_name: 'mine'", "odps_data_quota_name is for OdpsDataset"),
        ("odps_data_compression: 'ZSTD'", "odps_data_compression is for OdpsDataset"),
        (
            "negative_sampler { input_path: 'x' num_sample: 1 item_id_field: 'item' }",
            "negative_sampler: sampling negatives is not supported yet.*matching models",
        ),
    ],
)
def test_settings_that_are_wrong_or_not_supported_are_refused(tmp_path, text, words):
    with pytest.raises(ConfigError, match=words):
        create_dataloader(data_config(text), [], str(tmp_path))


def test_all_wrong_settings_are_named_at_once(tmp_path):
    with pytest.raises(ConfigError) as caught:
        create_dataloader(data_config("batch_size: 0 sample_mask_prob: 1"), [], str(tmp_path))
    assert len(caught.value.problems) == 2
    with pytest.raises(ConfigError, match="mode = 'test'"):
        create_dataloader(data_config(), [], str(tmp_path), mode="test")


def test_csv_settings_of_a_parquet_dataset_are_said_to_be_unused(two_files, monkeypatch, caplog):
    monkeypatch.setattr(loader_module, "_said", set())
    dataloader(two_files, "delimiter: ';'")
    assert "data_config.delimiter is read for CsvDataset only" in caplog.text


# Which reader


@pytest.mark.parametrize("name", ["OdpsDataset", "OdpsDatasetV1", "KafkaDataset"])
def test_datasets_of_a_cloud_name_the_plugin_kind_that_would_read_them(name):
    with pytest.raises(ConfigError, match=rf"dataset_type = {name}.*plugin.*ReaderSpec.*data_config\.reader"):
        reader_class(data_config(dataset_type=name))


class CountingReader(BaseReader):
    schema = pa.schema([("item", pa.int64())])
    num_rows = None  # what a reader of a plugin that cannot tell says
    num_units = 2

    def read(self, unit):
        yield RowBlock.of(f"{self.name}{unit}", 0, pa.record_batch({"item": [unit, unit]}))


def test_a_plugin_reader_is_found_by_the_type_of_its_settings():
    settings = any_pb2.Any()
    settings.Pack(Field(input_name="x"), "tzrec.dev/")
    config = data_config(dataset_type="OdpsDataset")
    config.reader.CopyFrom(settings)
    with pytest.raises(ConfigError, match=r"'tzrec_core.protos.Field'.*list-plugins"):
        reader_class(config)
    registry = Registry([])
    registry.core.specs.append(ReaderSpec("counting", f"{__name__}:CountingReader", "tzrec_core.protos.data_pb2:Field"))
    with use_registry(registry):
        assert reader_class(config).__name__ == "CountingReader"
    reader = CountingReader("count", batch_size=3)
    assert reader.unit_rows == [2, 2]
    assert [b.labels["item"].tolist() for b in BatchLoader(reader, FakeParser())] == [[0, 0, 1], [1]]


def test_a_missing_column_names_who_reads_it(tmp_path):
    pq.write_table(pa.table({"itme": [1], "click": [1]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"no column 'item', read by feature 'item'\. Did you mean 'itme'\?"):
        dataloader(tmp_path / "a.parquet")
    pq.write_table(pa.table({"item": [1], "price": [1.0]}), tmp_path / "b.parquet")
    for reserved in ((), ("ALL_COLUMNS",)):
        with pytest.raises(DataError, match=r"no column 'click', read by data_config\.label_fields"):
            dataloader(tmp_path / "b.parquet", reserved_columns=reserved)
