from contextlib import contextmanager

import fsspec
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq
import pytest

from tzrec_core.data.writers import prepare_output
from tzrec_core.errors import ConfigError, DataError

ROWS = pa.record_batch({"id": [1, 2], "probs": [0.25, 0.5], "name": ["x", 'y"']})


@contextmanager
def written(path, format=None, **options):
    """The writer of a table of one part, published at the end of the block."""
    output = prepare_output(str(path), format, **options)
    with output.writer() as writer:
        yield writer
        writer.close()
        output.publish()


def write_parts(path, parts, **options):
    """Write the batches of each part, the last part first; returns the output, not published."""
    output = prepare_output(str(path), num_parts=len(parts), **options)
    for number, batches in reversed(list(enumerate(parts))):
        with output.writer(number) as writer:
            for batch in batches:
                writer.write(batch)
    return output


def numbered(*ids):
    return pa.record_batch({"id": list(ids), "text": [f'{i}"\n,' for i in ids]})


def test_a_folder_gets_part_0_with_all_rows_in_order(tmp_path):
    with written(tmp_path / "out") as writer:
        for _ in range(3):
            writer.write(ROWS)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["part-0.parquet"]
    table = pq.read_table(tmp_path / "out" / "part-0.parquet")
    assert table.column("id").to_pylist() == [1, 2] * 3 and writer.num_rows == 6


def test_small_batches_share_a_row_group(tmp_path):
    with written(tmp_path / "a.parquet") as writer:
        for _ in range(5):
            writer.write(ROWS)
    assert pq.ParquetFile(tmp_path / "a.parquet").num_row_groups == 1


def test_csv_has_a_header_and_reads_back(tmp_path):
    with written(tmp_path, "csv") as writer:
        writer.write(ROWS)
        writer.write(ROWS)
    assert pc.read_csv(tmp_path / "part-0.csv").to_pydict() == {k: v * 2 for k, v in ROWS.to_pydict().items()}


def test_nothing_appears_under_the_name_before_publish_or_after_an_exception(tmp_path):
    path = tmp_path / "a.parquet"
    writer = prepare_output(str(path)).writer()
    writer.write(ROWS)
    writer.close()
    assert not path.exists()
    writer.abort()
    with pytest.raises(KeyError), written(path) as writer:
        writer.write(ROWS)
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_not_overwritten_unless_told(tmp_path):
    path = str(tmp_path / "a.csv")
    with written(path) as writer:
        writer.write(ROWS.slice(1))
    with pytest.raises(DataError, match=r"a\.csv is there already"):
        prepare_output(path)
    with written(path, overwrite=True) as writer:
        writer.write(ROWS)
    assert pc.read_csv(path).num_rows == 2


def test_parts_of_an_earlier_run_are_not_mixed_in(tmp_path):
    (tmp_path / "part-1.parquet").touch()
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError, match=r"holds 1 part-\*\.parquet already"):
        prepare_output(str(tmp_path))
    with written(tmp_path, overwrite=True) as writer:
        writer.write(ROWS)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["notes.txt", "part-0.parquet"]


def test_no_rows_make_an_empty_file(tmp_path):
    for name in ("a.parquet", "a.csv"):
        with written(tmp_path / name):
            pass
    assert pq.read_table(tmp_path / "a.parquet").num_rows == 0
    assert (tmp_path / "a.csv").read_bytes() == b""


def test_rows_of_other_columns_are_refused(tmp_path):
    writer = prepare_output(str(tmp_path / "a.parquet")).writer()
    writer.write(ROWS)
    with pytest.raises(DataError, match=r"columns id \(int64\).*before them had id \(int64\), probs"):
        writer.write(ROWS.select(["id"]))
    writer.abort()


def test_lists_do_not_fit_into_csv(tmp_path):
    with (
        written(tmp_path / "a.csv") as writer,
        pytest.raises(DataError, match=r"'emb'.*write Parquet"),
    ):
        writer.write(pa.record_batch({"emb": [[1.0, 2.0]]}))
    with written(tmp_path / "a.parquet") as writer:
        writer.write(pa.record_batch({"emb": [[1.0, 2.0]]}))


def test_wrong_formats_and_places_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"'parqet'.*Did you mean 'parquet'"):
        prepare_output(str(tmp_path), "parqet")
    with pytest.raises(ConfigError, match=r"ends in \.csv, but the format is 'parquet'"):
        prepare_output(str(tmp_path / "a.csv"), "parquet")
    with pytest.raises(DataError, match="nowhere://x"):
        prepare_output("nowhere://x")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot write"):
        prepare_output(str(tmp_path / "file" / "a.csv"))
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DataError, match="it is a folder"):
        prepare_output(str(tmp_path / "folder.csv"), overwrite=True)


def test_tables_are_written_to_any_file_system():
    with written("memory://tzrec_writers/out") as writer:
        writer.write(ROWS)
    with fsspec.open("memory://tzrec_writers/out/part-0.parquet") as file:
        assert pq.read_table(file).num_rows == 2


def test_parts_in_a_folder_sort_by_name_into_the_order_of_the_rows(tmp_path):
    write_parts(tmp_path / "out", [[numbered(i)] for i in range(11)]).publish()
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert (names[0], names[-1]) == ("part-00.parquet", "part-10.parquet")
    assert [pq.read_table(tmp_path / "out" / name)["id"].to_pylist() for name in names] == [[i] for i in range(11)]


@pytest.mark.parametrize("name", ["all.parquet", "all.csv"])
def test_parts_of_one_file_are_joined_in_order(tmp_path, name):
    parts = (
        [[numbered(1, 2), numbered(3)], [], [numbered(4)]]
        if name.endswith("csv")
        else [[numbered(1, 2, 3)], [numbered(4)]]
    )
    write_parts(tmp_path / name, parts).publish()
    with written(tmp_path / f"one-{name}") as writer:
        writer.write(numbered(1, 2, 3))
        writer.write(numbered(4))
    if name.endswith("csv"):
        assert (tmp_path / name).read_bytes() == (tmp_path / f"one-{name}").read_bytes()
    else:
        assert pq.read_table(tmp_path / name).equals(pq.read_table(tmp_path / f"one-{name}"))
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("name", ["all.parquet", "out"])
def test_what_is_replaced_stays_until_all_parts_are_there(tmp_path, name):
    write_parts(tmp_path / name, [[numbered(1)], [numbered(2)]]).publish()
    files = sorted(p for p in tmp_path.rglob("*.parquet") if p.is_file())
    before = [p.read_bytes() for p in files]
    output = prepare_output(str(tmp_path / name), overwrite=True, num_parts=2)
    with output.writer(0) as first:
        first.write(numbered(7))
        first.close()
        with pytest.raises(DataError, match=r"part 1 is not there; all processes must write to the same file system"):
            output.publish()
        assert [p.read_bytes() for p in files] == before
        with output.writer(1) as second:
            second.write(numbered(8))
            second.close()
            output.publish()
    assert [i for p in files if p.exists() for i in pq.read_table(p)["id"].to_pylist()] == [7, 8]
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_join_that_fails_leaves_what_was_there_and_no_scratch(tmp_path):
    write_parts(tmp_path / "a.parquet", [[numbered(1)]]).publish()
    output = write_parts(tmp_path / "a.parquet", [[numbered(2)], [ROWS]], overwrite=True)
    with pytest.raises(ValueError, match="schema"):
        output.publish()
    assert pq.read_table(tmp_path / "a.parquet")["id"].to_pylist() == [1]
    assert len(list(tmp_path.glob(".*.tmp"))) == 2


def test_fewer_parts_leave_none_of_an_earlier_run(tmp_path):
    write_parts(tmp_path / "out", [[numbered(i)] for i in range(3)]).publish()
    write_parts(tmp_path / "out", [[numbered(9)]], overwrite=True).publish()
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["part-0.parquet"]
