import gzip
import pickle
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from google.protobuf import text_format

from tzrec_core.data.readers import BaseReader, CsvReader, ParquetReader, RowBlock, rebatch
from tzrec_core.data.readers.columns import arrow_type, declared_types, plain_type
from tzrec_core.data.readers.files import find_files
from tzrec_core.errors import ConfigError, DataError
from tzrec_core.protos.data_pb2 import DataConfig, FieldType


def data_config(text: str = "", dataset_type: str = "CsvDataset") -> DataConfig:
    return text_format.Parse(f"dataset_type: {dataset_type} {text}", DataConfig())


def write_parquet(path: Path, first: int, num_rows: int, group: int = 4) -> str:
    numbers = np.arange(first, first + num_rows)
    table = pa.table({"number": numbers, "text": [f"t{n}" for n in numbers], "half": numbers / 2})
    pq.write_table(table, path, row_group_size=group)
    return str(path)


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def numbers_of(reader: BaseReader) -> list[int]:
    return [n for block in reader.read_rows() for n in block.table.column("number").to_pylist()]


def csv_reader(path: str, text: str = "with_header: true", **kwargs) -> CsvReader:
    return CsvReader(path, batch_size=3, data_config=data_config(text), **kwargs)


# Blocks of rows


def block_of(source: str, first_row: int, values: list[int]) -> RowBlock:
    return RowBlock.of(source, first_row, pa.record_batch({"v": values}))


def test_rebatch_makes_blocks_of_the_sizes_asked_for():
    blocks = [
        block_of("a", 0, [0, 1]),
        block_of("a", 2, []),
        block_of("b", 0, [2, 3, 4, 5, 6]),
        block_of("c", 9, [7, 8]),
    ]
    found = list(rebatch(blocks, [3, 4, 1]))
    assert [b.table.column("v").to_pylist() for b in found] == [[0, 1, 2], [3, 4, 5, 6], [7]]
    assert [found[0].locate(r) for r in range(3)] == [("a", 0), ("a", 1), ("b", 0)]
    assert found[1].locate(3) == ("b", 4) and found[2].locate(0) == ("c", 9)


def test_rebatch_reads_no_block_before_it_needs_it():
    blocks = iter([block_of("a", 0, [0, 1]), block_of("b", 0, [2]), block_of("c", 0, [3])])
    found = rebatch(blocks, [2, 1])
    assert next(found).num_rows == 2
    assert next(blocks).table.column("v").to_pylist() == [2]


def test_a_row_is_located_after_slicing_shuffling_and_joining():
    whole = RowBlock.concat([block_of("a", 10, [10, 11, 12]), block_of("b", 20, [20, 21])])
    shuffled = whole.slice(1, 4).take(np.array([3, 0, 2, 1])).slice(1, 3)
    joined = RowBlock.concat([block_of("c", 0, [0]), shuffled, shuffled])
    values = joined.table.column("v").to_pylist()
    assert values == [0, 11, 20, 12, 11, 20, 12]
    assert [joined.locate(r)[1] for r in range(7)] == values
    assert "".join(joined.locate(r)[0] for r in range(7)) == "cabaaba"


# Finding files


def test_patterns_folders_and_lists_find_sorted_files_and_skip_markers(tmp_path):
    for name in ("b.csv", "a.csv", "c.txt", "_SUCCESS", ".hidden.csv"):
        (tmp_path / name).touch()
    names = lambda paths: [Path(p).name for p in find_files(paths)]  # noqa: E731
    assert names(f"{tmp_path}/*.csv") == ["a.csv", "b.csv"]
    assert names(f"{tmp_path}/c.txt, {tmp_path}/a*") == ["c.txt", "a.csv"]
    assert names(str(tmp_path)) == ["a.csv", "b.csv", "c.txt"]
    assert names(f"file://{tmp_path}/_SUCCESS") == ["_SUCCESS"]


def test_no_match_names_the_pattern_and_what_the_folder_holds(tmp_path):
    for index in range(12):
        (tmp_path / f"day{index:02}.csv").touch()
    with pytest.raises(DataError, match=r"dya\*\.csv.*holds day00\.csv, .* and 4 more"):
        find_files(f"{tmp_path}/dya*.csv")
    with pytest.raises(DataError, match=r"x\.csv.*holds day00"):
        find_files(f"{tmp_path}/no/such/folder/x.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="is empty"):
        find_files(f"{tmp_path}/empty")


def test_a_file_system_that_is_not_there_is_an_error():
    with pytest.raises(DataError, match="nowhere://x"):
        find_files("nowhere://x")
    with pytest.raises(DataError, match="names no file"):
        find_files(" , ")


# Parquet


def test_parquet_units_are_row_groups_in_the_order_of_the_files(tmp_path):
    write_parquet(tmp_path / "a.parquet", 0, 10)
    write_parquet(tmp_path / "b.parquet", 10, 7)
    reader = ParquetReader(f"{tmp_path}/*.parquet", batch_size=2, columns=["number"])
    assert numbers_of(reader) == list(range(17))
    assert reader.unit_rows == [4, 4, 2, 4, 3] and reader.num_rows == 17 and reader.num_units == 5
    last = list(reader.read_rows())[-1]
    assert last.table.schema.names == ["number"]
    source, row = last.locate(2)
    assert Path(source).name == "b.parquet" and row == 6


def test_a_missing_column_names_file_nearest_name_and_columns(tmp_path):
    write_parquet(tmp_path / "a.parquet", 0, 3)
    with pytest.raises(DataError, match=r"a\.parquet.*'numbr'.*Did you mean 'number'.*number, text, half"):
        ParquetReader(f"{tmp_path}/*.parquet", batch_size=2, columns=["numbr"])
    pq.write_table(pa.table({"number": [1]}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"b\.parquet.*'half'"):
        ParquetReader(f"{tmp_path}/*.parquet", batch_size=2, columns=["number", "half"])


def test_files_that_disagree_on_a_type_are_both_named_and_a_declared_type_settles_it(tmp_path):
    write_parquet(tmp_path / "a.parquet", 0, 3)
    pq.write_table(pa.table({"number": ["7"]}), tmp_path / "b.parquet")
    paths = f"{tmp_path}/*.parquet"
    with pytest.raises(DataError, match=r"'number' is int64 in .*a\.parquet but string in .*b\.parquet"):
        ParquetReader(paths, batch_size=2, columns=["number"])
    config = data_config("input_fields { input_name: 'number' input_type: INT32 }", "ParquetDataset")
    reader = ParquetReader(paths, batch_size=2, columns=["number"], data_config=config)
    assert reader.schema.field("number").type == pa.int32()
    assert numbers_of(reader) == [0, 1, 2, 7]


def test_a_value_that_does_not_fit_the_declared_type_names_file_row_and_column(tmp_path):
    pq.write_table(pa.table({"text": [*"01234", "five", "six"]}), tmp_path / "a.parquet", row_group_size=3)
    config = data_config("input_fields_str: 'text:INT64'", "ParquetDataset")
    with pytest.raises(DataError, match=r"a\.parquet, row 5: column 'text'.*int64.*'five'"):
        list(ParquetReader(str(tmp_path / "a.parquet"), batch_size=2, data_config=config).read_rows())


def test_storage_variants_of_a_type_read_as_the_plain_type(tmp_path):
    variants = {
        "dictionary": pa.array(["x", "y"]).dictionary_encode(),
        "large": pa.array(["x", "y"], pa.large_string()),
        "list": pa.array([[1], [2, 3]], pa.large_list(pa.int64())),
        "fixed": pa.array([[1, 2], [3, 4]], pa.list_(pa.int64(), 2)),
    }
    pq.write_table(pa.table(variants), tmp_path / "a.parquet")
    pq.write_table(pa.table({**variants, "large": pa.nulls(2), "dictionary": ["u", "v"]}), tmp_path / "b.parquet")
    block = RowBlock.concat(list(ParquetReader(f"{tmp_path}/*.parquet", batch_size=2).read_rows()))
    assert block.table.schema.types == [pa.string(), pa.string(), pa.list_(pa.int64()), pa.list_(pa.int64())]
    assert block.table.column("dictionary").to_pylist() == ["x", "y", "u", "v"]
    assert block.table.column("large").to_pylist() == ["x", "y", None, None]
    assert block.table.column("fixed").to_pylist() == [[1, 2], [3, 4]] * 2


def test_a_damaged_parquet_file_is_named(tmp_path):
    whole = Path(write_parquet(tmp_path / "a.parquet", 0, 300)).read_bytes()
    truncated = tmp_path / "t.parquet"
    truncated.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"t\.parquet cannot be read as Parquet"):
        ParquetReader(str(truncated), batch_size=2)
    garbled = tmp_path / "g.parquet"
    garbled.write_bytes(whole[:4] + b"\xff" * 600 + whole[604:])
    with pytest.raises(DataError, match=r"g\.parquet, row 0: .*damaged"):
        list(ParquetReader(str(garbled), batch_size=2).read_rows())


def test_an_empty_parquet_file_has_no_rows(tmp_path):
    write_parquet(tmp_path / "a.parquet", 0, 0)
    write_parquet(tmp_path / "b.parquet", 0, 2)
    assert list(ParquetReader(str(tmp_path / "a.parquet"), batch_size=2).read_rows()) == []
    assert numbers_of(ParquetReader(f"{tmp_path}/*.parquet", batch_size=2)) == [0, 1]


def test_parquet_is_read_from_any_file_system():
    with fsspec.open("memory://tzrec_readers/a.parquet", "wb") as file:
        pq.write_table(pa.table({"number": [1, 2, 3]}), file)
    reader = ParquetReader("memory://tzrec_readers/*.parquet", batch_size=2)
    assert numbers_of(reader) == [1, 2, 3]
    assert reader.in_memory


# CSV


def test_csv_with_a_header_infers_types_and_keeps_empty_text(tmp_path):
    path = write(tmp_path / "a.csv", "number,text,half,day\n1,x,0.5,2020-01-01\n\n2,,,2020-01-02\n")
    (block,) = csv_reader(path).read_rows()
    assert block.table.to_pydict() == {
        "number": [1, 2], "text": ["x", ""], "half": [0.5, None], "day": ["2020-01-01", "2020-01-02"]
    }  # fmt: skip


def test_csv_without_a_header_takes_names_and_types_from_input_fields(tmp_path):
    path = write(tmp_path / "a.csv", "1;a;7\n2;b;8\n")
    typed = {"n": "INT32", "t": "STRING", "id": "STRING"}
    fields = " ".join(f"input_fields {{ input_name: '{n}' input_type: {t} }}" for n, t in typed.items())
    fields += " delimiter: ';'"
    (block,) = csv_reader(path, fields, columns=["id", "n"]).read_rows()
    assert block.table.to_pydict() == {"id": ["7", "8"], "n": [1, 2]}
    assert block.table.schema.types == [pa.string(), pa.int32()]
    with pytest.raises(ConfigError, match=r"with_header: true.*input_fields"):
        csv_reader(path, "delimiter: ';'")


def test_csv_units_are_files_and_types_hold_for_all_of_them(tmp_path):
    write(tmp_path / "a.csv", "number,x\n0,1\n1,2\n")
    write(tmp_path / "b.csv", "x,number\n1,2\n2,3\n9,4\n")
    reader = csv_reader(f"{tmp_path}/*.csv", columns=["number"])
    assert reader.unit_rows == [2, 3]
    assert numbers_of(reader) == [0, 1, 2, 3, 4]
    write(tmp_path / "c.csv", "number,x\n0.5,1\n")
    with pytest.raises(DataError, match=r"c\.csv, line 2: column 'number': '0.5' is not of type int64.*input_type"):
        list(csv_reader(f"{tmp_path}/*.csv", columns=["number"]).read_rows())


def test_a_wrong_number_of_fields_names_file_and_line(tmp_path):
    path = write(tmp_path / "a.csv", 'number,x\n"0",1\n\n1,"two\nlines"\n2,3,4\n')
    with pytest.raises(DataError, match=r"a\.csv, line 6: 3 fields, but the header line has 2: 2,3,4"):
        list(csv_reader(path).read_rows())
    with pytest.raises(DataError, match=r"line 1: 2 fields, but data_config.input_fields has 3"):
        list(csv_reader(path, "input_fields_str: 'a:STRING;b:STRING;c:STRING'").read_rows())


def test_a_value_of_the_wrong_type_names_file_line_column_and_value(tmp_path):
    path = write(tmp_path / "a.csv", "x,y,number\n" + "1,2,3\n" * 4 + "1,2,many\n")
    config = "with_header: true input_fields { input_name: 'number' input_type: INT64 }"
    with pytest.raises(DataError, match=r"a\.csv, line 6: column 'number': 'many' is not of type int64"):
        list(csv_reader(path, config, columns=["number"]).read_rows())


def test_a_header_read_as_data_suggests_with_header(tmp_path):
    path = write(tmp_path / "a.csv", "number\n1\n")
    with pytest.raises(DataError, match=r"line 1: column 'number'.*with_header: true"):
        list(csv_reader(path, "input_fields_str: 'number:INT64'").read_rows())


def test_csv_files_without_rows_are_no_error(tmp_path):
    write(tmp_path / "a.csv", "")
    write(tmp_path / "b.csv", "number,x")
    write(tmp_path / "c.csv", "number,x\n")
    assert list(csv_reader(f"{tmp_path}/*.csv", columns=["number"]).read_rows()) == []
    write(tmp_path / "d.csv", "number,x\n5,6\n")
    assert numbers_of(csv_reader(f"{tmp_path}/*.csv", columns=["number"])) == [5]
    assert list(csv_reader(f"{tmp_path}/a.csv", "input_fields_str: 'number:INT64'").read_rows()) == []


def test_a_csv_header_that_lacks_a_column_is_found_before_reading(tmp_path):
    write(tmp_path / "a.csv", "number,x\n1,2\n")
    write(tmp_path / "b.csv", "nubmer,x\n1,2\n")
    with pytest.raises(DataError, match=r"b\.csv: there is no column 'number'. Did you mean 'nubmer'"):
        csv_reader(f"{tmp_path}/*.csv", columns=["number"])


def test_csv_rows_are_counted_without_empty_lines_and_with_quoted_line_breaks(tmp_path, monkeypatch):
    write(tmp_path / "a.csv", 'number,text\n1,"two\nlines"\n\n2,\n\n')
    write(tmp_path / "b.csv", "")
    write(tmp_path / "c.csv", "number,text\nnot a number,x\n")
    reader = csv_reader(
        f"{tmp_path}/*.csv", "with_header: true input_fields { input_name: 'number' input_type: INT64 }"
    )
    assert reader.unit_rows == [2, 0, 1]
    travelled = pickle.loads(pickle.dumps(reader))
    monkeypatch.setattr(CsvReader, "_count", None)
    assert travelled.unit_rows == [2, 0, 1]


def test_a_damaged_csv_line_is_found_while_counting(tmp_path):
    write(tmp_path / "a.csv", "number,x\n0,1\n")
    write(tmp_path / "b.csv", "number,x\n\n0,1\n0\n")
    with pytest.raises(DataError, match=r"b\.csv, line 4: 1 fields, but the header line has 2: 0"):
        csv_reader(f"{tmp_path}/*.csv").num_rows  # noqa: B018


def test_compressed_csv_and_line_numbers(tmp_path):
    with gzip.open(tmp_path / "a.csv.gz", "wt") as file:
        file.write("number\r\n1\r\n\r\n2\r\n")
    reader = csv_reader(str(tmp_path / "a.csv.gz"))
    assert numbers_of(reader) == [1, 2]
    assert [reader.line_of(str(tmp_path / "a.csv.gz"), row) for row in (0, 1)] == [2, 4]


def test_a_delimiter_must_be_one_character(tmp_path):
    with pytest.raises(ConfigError, match=r"delimiter = '\|\|'"):
        csv_reader(write(tmp_path / "a.csv", "a\n"), "with_header: true delimiter: '||'")


# Types


def test_every_field_type_has_an_arrow_type():
    for name in FieldType.DESCRIPTOR.values_by_name:
        assert arrow_type(name) is not None
    assert arrow_type("ARRAY_ARRAY_FLOAT") == pa.list_(pa.list_(pa.float32()))
    assert arrow_type("MAP_INT32_STRING") == pa.map_(pa.int32(), pa.string())
    assert plain_type(pa.map_(pa.large_string(), pa.int8())) == pa.map_(pa.string(), pa.int8())


def test_lists_and_maps_in_csv_stay_text(tmp_path):
    path = write(tmp_path / "a.csv", "ids\n1|2\n3\n")
    (block,) = csv_reader(
        path, "with_header: true input_fields { input_name: 'ids' input_type: ARRAY_INT64 }"
    ).read_rows()
    assert block.table.column("ids").to_pylist() == ["1|2", "3"]


def test_input_fields_str_is_parsed_and_its_mistakes_are_named():
    found = declared_types(data_config("input_fields_str: 'a:INT64; b:double,\\nc:d:STRING;'"))
    assert found == {"a": pa.int64(), "b": pa.float64(), "c:d": pa.string()}
    for text, words in {
        "a:INT46": "'INT46' of column 'a'.*Did you mean 'INT64'",
        "a": "'a' is not of the form name:TYPE",
        "a:INT64;a:FLOAT": "'a' stands there twice",
    }.items():
        with pytest.raises(ConfigError, match=words):
            declared_types(data_config(f"input_fields_str: '{text}'"))
    with pytest.raises(ConfigError, match="keep one"):
        declared_types(data_config("input_fields_str: 'a:INT64' input_fields { input_name: 'b' }"))


def test_tables_in_memory_are_read_like_files() -> None:
    import polars as pl

    from tzrec_core.data.readers.table import TableReader

    table = pa.table({"a": pa.chunked_array([[1, 2], [3]]), "b": ["x", "y", "z"]})
    for data in (table, table.combine_chunks().to_batches()[0], pl.DataFrame({"a": [1, 2, 3], "b": ["x", "y", "z"]})):
        reader = TableReader(data, batch_size=2, columns=["b", "a"])
        block = RowBlock.concat(list(reader.read_rows()))
        assert block.table.to_pydict() == {"b": ["x", "y", "z"], "a": [1, 2, 3]}
        assert [block.locate(row) for row in range(3)] == [("table in memory", row) for row in range(3)]
        assert (sum(reader.unit_rows), reader.schema.names) == (3, ["b", "a"])
    assert TableReader(table, batch_size=2).unit_rows == [2, 1]
    assert TableReader(table.slice(0, 0), batch_size=2).num_rows == 0


def test_what_is_no_table_is_refused() -> None:
    from tzrec_core.data.readers.table import TableReader

    with pytest.raises(DataError, match="list is not a table: give a path, a pyarrow Table"):
        TableReader([1], batch_size=2)
    with pytest.raises(DataError, match="table in memory"):
        TableReader(pa.table({"a": [1]}), batch_size=2, columns=["b"])


def test_files_that_are_no_text_are_not_read_as_csv(tmp_path):
    parquet = write_parquet(tmp_path / "a.csv", 0, 5)
    with pytest.raises(DataError, match=r"a\.csv is a Parquet file, not CSV: set .*ParquetDataset"):
        csv_reader(parquet)
    (tmp_path / "b.csv").write_bytes(bytes(range(256)) * 4)
    with pytest.raises(DataError, match=r"b\.csv is a binary file, not CSV"):
        csv_reader(str(tmp_path / "b.csv"))
    with pytest.raises(DataError, match=r"c\.csv: the header line cannot be read as CSV: .*limit"):
        csv_reader(write(tmp_path / "c.csv", "x" * 200_000 + "\n1\n"))
