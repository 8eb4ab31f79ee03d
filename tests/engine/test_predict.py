import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq
import pytest
import tiny_data
import torch

from tzrec_core.config import parse_config
from tzrec_core.data.loader import create_dataloader
from tzrec_core.engine.checkpoint import load_model
from tzrec_core.engine.predict import _table, predict
from tzrec_core.engine.setup import build
from tzrec_core.engine.sharders import materialise_tables
from tzrec_core.engine.train import train
from tzrec_core.engine.world import join_world
from tzrec_core.errors import CheckpointError, ConfigError, DataError
from tzrec_core.models import PredictWrapper
from tzrec_core.plugins import Registry, Selection, use_registry

sys.path.insert(0, str(Path(__file__).parent))
from ranks import run_ranks


@pytest.fixture
def trained(config):
    made = config("model_config.tiny.dropout=0.5", "train_config.num_steps=3")
    train(made)
    return made


@pytest.fixture
def rows(tmp_path):
    """Two files without labels, whose `row` counts on from one to the other."""
    table = tiny_data.table(50, 9).drop_columns(["click", "weight"])
    folder = tmp_path / "rows"
    folder.mkdir()
    pq.write_table(table.slice(0, 23), folder / "a.parquet", row_group_size=5)
    pq.write_table(table.slice(23), folder / "b.parquet", row_group_size=7)
    return str(folder)


def expected_probs(config, rows) -> list[float]:
    """The model on each batch in eval mode, without any of `predict`."""
    setup = build(config)
    materialise_tables(setup.model)
    wrapper = PredictWrapper(setup.model)
    load_model(Path(config.model_dir) / "model.ckpt-3", wrapper)
    wrapper.eval()
    loader = create_dataloader(config.data_config, setup.features, rows, mode="predict")
    with torch.no_grad():
        return torch.cat([wrapper(batch)[1][0]["probs"] for batch in loader]).tolist()


def test_predictions_stand_in_the_order_of_the_rows_and_equal_the_model_in_eval_mode(trained, rows, tmp_path):
    result = predict(trained, rows, str(tmp_path / "out.parquet"), reserved_columns=["row"])
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.column_names == ["row", "logits", "probs"]
    assert table["row"].to_pylist() == list(range(50))
    assert table["probs"].to_pylist() == pytest.approx(expected_probs(trained, rows))
    assert (result.num_rows, result.output_path) == (50, str(tmp_path / "out.parquet"))
    assert result.samples_per_second > 0


def test_the_order_holds_with_more_workers_in_the_config(trained, rows, tmp_path, monkeypatch):
    from tzrec_core.engine import predict as module

    asked = []
    real = module.create_dataloader
    monkeypatch.setattr(module, "create_dataloader", lambda *a, **k: asked.append(k["num_workers"]) or real(*a, **k))
    trained.data_config.num_workers = 2
    predict(trained, rows, str(tmp_path / "out.parquet"), reserved_columns=["row"])
    assert asked == [1]
    assert pq.read_table(tmp_path / "out.parquet")["row"].to_pylist() == list(range(50))


def test_all_columns_and_chosen_predictions(trained, rows, tmp_path):
    predict(
        trained, rows, str(tmp_path / "out"), reserved_columns=["ALL_COLUMNS"], output_columns=["probs"], batch_size=7
    )
    table = pq.read_table(tmp_path / "out/part-0.parquet")
    assert table.column_names == ["user", "item", "price", "row", "probs"]
    assert table.drop_columns(["probs"]).equals(pq.read_table(rows).select(table.column_names[:-1]))


def test_the_size_of_batches_changes_neither_the_numbers_nor_the_callers_config(trained, rows, tmp_path):
    before = str(trained)
    predict(trained, rows, str(tmp_path / "a.parquet"))
    predict(trained, rows, str(tmp_path / "b.parquet"), batch_size=50)
    a, b = (pq.read_table(tmp_path / f"{name}.parquet")["probs"].to_pylist() for name in "ab")
    assert a == pytest.approx(b)
    assert str(trained) == before


def test_csv_holds_the_same_numbers(trained, rows, tmp_path):
    predict(trained, rows, str(tmp_path / "out.csv"), reserved_columns=["row"])
    table = pc.read_csv(tmp_path / "out.csv")
    assert table["row"].to_pylist() == list(range(50))
    assert table["probs"].to_pylist() == pytest.approx(expected_probs(trained, rows))


def test_an_output_that_is_there_is_kept_unless_overwrite_is_said(trained, rows, tmp_path):
    out = str(tmp_path / "out.parquet")
    predict(trained, rows, out)
    before = (tmp_path / "out.parquet").read_bytes()
    with pytest.raises(DataError, match="is there already"):
        predict(trained, rows, out, output_columns=["probs"])
    assert (tmp_path / "out.parquet").read_bytes() == before
    predict(trained, rows, out, output_columns=["probs"], overwrite=True)
    assert pq.read_table(out).column_names == ["probs"]


def test_a_failed_run_leaves_no_output(trained, tmp_path):
    bad = tiny_data.table(20, 9).set_column(0, "user", [[99] * 20])
    pq.write_table(bad, tmp_path / "bad.parquet")
    with pytest.raises(DataError, match=r"bad\.parquet, row 0: .*user"):
        predict(trained, str(tmp_path / "bad.parquet"), str(tmp_path / "out.parquet"))
    assert not list(tmp_path.glob("*out.parquet*"))


def test_names_that_cannot_be_written_are_refused(trained, rows, tmp_path):
    with pytest.raises(ConfigError, match=r"does not predict 'prob'. Did you mean 'probs'\?"):
        predict(trained, rows, str(tmp_path / "a.parquet"), output_columns=["prob"])
    with pytest.raises(DataError, match=r"no column 'rwo'. Did you mean 'row'"):
        predict(trained, rows, str(tmp_path / "a.parquet"), reserved_columns=["rwo"])
    renamed = pq.read_table(rows).rename_columns(["user", "item", "price", "probs"])
    pq.write_table(renamed, tmp_path / "renamed.parquet")
    with pytest.raises(ConfigError, match=r"the prediction 'probs' has the name of a reserved column"):
        predict(trained, str(tmp_path / "renamed.parquet"), str(tmp_path / "a.parquet"), reserved_columns=["probs"])
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        predict(trained, rows, str(tmp_path / "a.parquet"), checkpoint=tmp_path / "nowhere")


def test_probabilities_of_classes_are_a_list_per_row(config, rows, tmp_path):
    made = config(
        "model_config.num_class=3",
        "model_config.losses=[{softmax_cross_entropy {}}]",
        "model_config.metrics=[]",
        "train_config.num_steps=1",
    )
    train(made)
    predict(made, rows, str(tmp_path / "out.parquet"))
    column = pq.read_table(tmp_path / "out.parquet")["probs"]
    assert column.type == pa.list_(pa.float32(), 3)
    assert [sum(row) for row in column.to_pylist()] == pytest.approx([1.0] * 50, abs=1e-5)
    with pytest.raises(DataError, match=r"CSV cannot hold column 'logits'.*write Parquet"):
        predict(made, rows, str(tmp_path / "out.csv"))


def test_a_prediction_may_have_any_number_of_axes():
    table = _table({"cube": torch.arange(12.0).reshape(2, 3, 2), "flat": torch.tensor([1, 2])}, None)
    assert table["cube"].to_pylist() == [[[0, 1], [2, 3], [4, 5]], [[6, 7], [8, 9], [10, 11]]]
    assert table["flat"].to_pylist() == [1, 2]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("output", ["rows/a.parquet", "rows", "link/../rows/b.parquet", "same"])
def test_the_input_is_never_replaced_by_the_output(trained, rows, tmp_path, output, overwrite):
    (tmp_path / "link").mkdir()
    (tmp_path / "same").symlink_to(rows)
    before = {path.name: path.read_bytes() for path in Path(rows).iterdir()}
    with pytest.raises(DataError, match=r"the output .* (is|holds) the input file .*\.parquet: choose another output"):
        predict(trained, rows, str(tmp_path / output), overwrite=overwrite)
    assert {path.name: path.read_bytes() for path in Path(rows).iterdir()} == before


def test_a_table_without_rows_gives_the_columns_without_rows(trained, rows, tmp_path):
    pq.write_table(pq.read_table(rows).slice(0, 0), tmp_path / "empty.parquet")
    empty = str(tmp_path / "empty.parquet")
    predict(trained, empty, str(tmp_path / "out.parquet"), reserved_columns=["row"])
    predict(trained, rows, str(tmp_path / "full.parquet"), reserved_columns=["row"])
    assert pq.read_schema(tmp_path / "out.parquet").equals(pq.read_schema(tmp_path / "full.parquet"))
    assert pq.read_table(tmp_path / "out.parquet").num_rows == 0
    predict(trained, empty, str(tmp_path / "out.csv"))
    assert (tmp_path / "out.csv").read_text() == '"logits","probs"\n'
    assert predict(trained, empty).table.column_names == ["logits", "probs"]


def test_a_failed_run_leaves_no_folder_that_it_made(trained, tmp_path):
    bad = tiny_data.table(20, 9).set_column(0, "user", [[99] * 20])
    pq.write_table(bad, tmp_path / "bad.parquet")
    (tmp_path / "there").mkdir()
    for output in ("made/by/predict", "there"):
        with pytest.raises(DataError, match="user"):
            predict(trained, str(tmp_path / "bad.parquet"), str(tmp_path / output))
    assert not (tmp_path / "made").exists()
    assert list((tmp_path / "there").iterdir()) == []


def test_a_failed_run_that_may_overwrite_leaves_the_output_of_the_earlier_one(trained, rows, tmp_path):
    bad = pq.read_table(rows)
    bad = bad.set_column(0, "user", [[1] * 40 + [99] * 10])  # the first batches are good
    pq.write_table(bad, tmp_path / "bad.parquet")
    for name in ("out", "out.parquet"):
        predict(trained, rows, str(tmp_path / name))
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        before = [path.read_bytes() for path in files]
        with pytest.raises(DataError, match="user"):
            predict(trained, str(tmp_path / "bad.parquet"), str(tmp_path / name), overwrite=True)
        assert [path.read_bytes() for path in files] == before
        assert len(files) == len([path for path in tmp_path.rglob("*") if path.is_file()])


def sharded_scenario(text, rows, folder):
    with use_registry(Registry.find(Selection(only=frozenset(), files=(tiny_data.MANIFEST,)))):
        join_world()
        config = parse_config(text)
        counts = []
        for name in ("out", "out.parquet", "out.csv"):
            result = predict(config, rows, f"{folder}/{name}", reserved_columns=["row"], batch_size=7)
            counts.append(result.num_rows)
        in_memory = pq.read_table(rows).slice(0, 11)
        counts.append(predict(config, in_memory, f"{folder}/out", overwrite=True, reserved_columns=["row"]).num_rows)
        empty = in_memory.slice(0, 0)
        counts.append(predict(config, empty, f"{folder}/empty.parquet").num_rows)
        errors = []
        for output, data, overwrite in ((None, rows, False), (f"{folder}/out.csv", rows, False),
                                        (f"{folder}/new", in_memory.slice(0, 1), False)):  # fmt: skip
            with pytest.raises((ConfigError, DataError)) as caught:
                predict(config, data, output, overwrite=overwrite)
            errors.append(str(caught.value))
        return [counts, errors]


def test_two_processes_write_the_rows_in_order(trained, rows, tmp_path):
    predict(trained, rows, str(tmp_path / "one.parquet"), reserved_columns=["row"])
    one = pq.read_table(tmp_path / "one.parquet")
    outputs = run_ranks(__file__, "sharded_scenario", 2, tiny_data.write_tables(tmp_path), rows, str(tmp_path))
    assert outputs[0] == outputs[1]
    counts, errors = outputs[0]
    assert counts == [50, 50, 50, 11, 0]
    assert errors[0] == "2 processes cannot return their rows; give an output path"
    assert "out.csv is there already" in errors[1]
    assert "has too few rows to share: 1 for 2 processes" in errors[2]
    joined = pq.read_table(tmp_path / "out.parquet")
    assert joined["row"].to_pylist() == list(range(50))
    assert joined["probs"].to_pylist() == pytest.approx(one["probs"].to_pylist(), abs=1e-6)
    text = pc.read_csv(tmp_path / "out.csv")
    assert text["row"].to_pylist() == list(range(50))
    assert text["probs"].to_pylist() == pytest.approx(one["probs"].to_pylist(), abs=1e-6)
    parts = sorted((tmp_path / "out").iterdir())
    assert [part.name for part in parts] == ["part-0.parquet", "part-1.parquet"]
    assert [pq.read_table(part)["row"].to_pylist() for part in parts] == [[*range(6)], [*range(6, 11)]]
    assert pq.read_table(tmp_path / "empty.parquet").column_names == ["logits", "probs"]
    assert not list(tmp_path.rglob("*.tmp"))
