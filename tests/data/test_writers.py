import fsspec
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq
import pytest

from tzrec_core.data.writers import create_writer
from tzrec_core.errors import ConfigError, DataError

ROWS = pa.record_batch({"id": [1, 2], "probs": [0.25, 0.5], "name": ["x", 'y"']})


def test_a_folder_gets_part_0_with_all_rows_in_order(tmp_path):
    with create_writer(str(tmp_path / "out")) as writer:
        for _ in range(3):
            writer.write(ROWS)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["part-0.parquet"]
    table = pq.read_table(tmp_path / "out" / "part-0.parquet")
    assert table.column("id").to_pylist() == [1, 2] * 3 and writer.num_rows == 6


def test_small_batches_share_a_row_group(tmp_path):
    with create_writer(str(tmp_path / "a.parquet")) as writer:
        for _ in range(5):
            writer.write(ROWS)
    assert pq.ParquetFile(tmp_path / "a.parquet").num_row_groups == 1


def test_csv_has_a_header_and_reads_back(tmp_path):
    with create_writer(str(tmp_path), "csv") as writer:
        writer.write(ROWS)
        writer.write(ROWS)
    assert pc.read_csv(tmp_path / "part-0.csv").to_pydict() == {k: v * 2 for k, v in ROWS.to_pydict().items()}


def test_nothing_appears_under_the_name_before_close_or_after_an_exception(tmp_path):
    path = tmp_path / "a.parquet"
    writer = create_writer(str(path))
    writer.write(ROWS)
    assert not path.exists()
    writer.abort()
    with pytest.raises(KeyError), create_writer(str(path)) as writer:
        writer.write(ROWS)
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_not_overwritten_unless_told(tmp_path):
    path = str(tmp_path / "a.csv")
    create_writer(path).close()
    with pytest.raises(DataError, match=r"a\.csv is there already"):
        create_writer(path)
    with create_writer(path, overwrite=True) as writer:
        writer.write(ROWS)
    assert pc.read_csv(path).num_rows == 2


def test_parts_of_an_earlier_run_are_not_mixed_in(tmp_path):
    (tmp_path / "part-1.parquet").touch()
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError, match=r"holds 1 part-\*\.parquet already"):
        create_writer(str(tmp_path))
    with create_writer(str(tmp_path), overwrite=True) as writer:
        writer.write(ROWS)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["notes.txt", "part-0.parquet"]


def test_no_rows_make_an_empty_file(tmp_path):
    create_writer(str(tmp_path / "a.parquet")).close()
    create_writer(str(tmp_path / "a.csv")).close()
    assert pq.read_table(tmp_path / "a.parquet").num_rows == 0
    assert (tmp_path / "a.csv").read_bytes() == b""


def test_rows_of_other_columns_are_refused(tmp_path):
    writer = create_writer(str(tmp_path / "a.parquet"))
    writer.write(ROWS)
    with pytest.raises(DataError, match=r"columns id \(int64\).*before them had id \(int64\), probs"):
        writer.write(ROWS.select(["id"]))
    writer.abort()


def test_lists_do_not_fit_into_csv(tmp_path):
    with (
        create_writer(str(tmp_path / "a.csv")) as writer,
        pytest.raises(DataError, match=r"'emb'.*write Parquet"),
    ):
        writer.write(pa.record_batch({"emb": [[1.0, 2.0]]}))
    with create_writer(str(tmp_path / "a.parquet")) as writer:
        writer.write(pa.record_batch({"emb": [[1.0, 2.0]]}))


def test_wrong_formats_and_places_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"'parqet'.*Did you mean 'parquet'"):
        create_writer(str(tmp_path), "parqet")
    with pytest.raises(ConfigError, match=r"ends in \.csv, but the format is 'parquet'"):
        create_writer(str(tmp_path / "a.csv"), "parquet")
    with pytest.raises(DataError, match="nowhere://x"):
        create_writer("nowhere://x")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot write"):
        create_writer(str(tmp_path / "file" / "a.csv"))


def test_tables_are_written_to_any_file_system():
    with create_writer("memory://tzrec_writers/out") as writer:
        writer.write(ROWS)
    with fsspec.open("memory://tzrec_writers/out/part-0.parquet") as file:
        assert pq.read_table(file).num_rows == 2
