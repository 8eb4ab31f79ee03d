"""The order of an epoch: one sequence of all rows, of which any range can be read."""

import pickle
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tzrec_core.data.readers import BaseReader, ParquetReader, RowBlock, Shuffle
from tzrec_core.errors import DataError


class UnitsReader(BaseReader):
    """Units of the given sizes, each in blocks of at most `block` rows; rows count from 0 over all units."""

    schema = pa.schema([("number", pa.int64())])

    def __init__(self, sizes: list[int], block: int = 1000) -> None:
        super().__init__("units", batch_size=1)
        self.sizes, self.block = sizes, block
        self.opened: list[int] = []

    @property
    def num_units(self) -> int:
        return len(self.sizes)

    def read(self, unit: int) -> Iterator[RowBlock]:
        self.opened.append(unit)
        first = sum(self.sizes[:unit])
        for start in range(0, self.sizes[unit], self.block):
            stop = min(start + self.block, self.sizes[unit])
            yield RowBlock.of(f"unit {unit}", start, pa.record_batch({"number": range(first + start, first + stop)}))


def numbers(blocks: Iterator[RowBlock]) -> list[int]:
    return [n for block in blocks for n in block.table.column("number").to_pylist()]


SIZES = st.lists(st.integers(0, 12), min_size=1, max_size=6)
SHUFFLES = st.none() | st.builds(Shuffle, st.integers(0, 9), st.integers(0, 9), st.integers(1, 20))


@given(SIZES, st.integers(1, 5), SHUFFLES, st.data())
def test_any_range_of_rows_is_that_range_of_the_whole_order(sizes, block, shuffle, data):
    reader = UnitsReader(sizes, block)
    order = numbers(reader.read_rows(shuffle=shuffle))
    assert sorted(order) == list(range(sum(sizes)))
    start = data.draw(st.integers(0, len(order)))
    end = data.draw(st.integers(start, len(order)))
    assert numbers(reader.read_rows(start, end, shuffle=shuffle)) == order[start:end]


@given(SIZES, st.integers(1, 5), SHUFFLES)
def test_every_row_is_located_in_its_unit(sizes, block, shuffle):
    reader = UnitsReader(sizes, block)
    rows = [(unit, row) for unit, size in enumerate(sizes) for row in range(size)]
    for found in reader.read_rows(shuffle=shuffle):
        for row, number in enumerate(found.table.column("number").to_pylist()):
            unit, in_unit = rows[number]
            assert found.locate(row) == (f"unit {unit}", in_unit)


def test_without_shuffle_rows_come_in_the_order_of_the_units():
    assert numbers(UnitsReader([3, 0, 2]).read_rows()) == [0, 1, 2, 3, 4]


def test_a_shuffle_permutes_units_and_then_the_rows_of_each_window():
    sizes, seed, epoch, window = [5, 3, 4, 6, 2], 3, 7, 8
    reader = UnitsReader(sizes)
    starts = np.cumsum([0, *sizes])
    units = np.random.default_rng((seed, epoch)).permutation(5)
    in_units = [n for unit in units for n in range(starts[unit], starts[unit + 1])]
    expected = []
    for k in range(3):
        rows = in_units[k * window : (k + 1) * window]
        expected += [rows[i] for i in np.random.default_rng((seed, epoch, k + 1)).permutation(len(rows))]
    assert list(units) != list(range(5))
    assert numbers(reader.read_rows(shuffle=Shuffle(seed, epoch, window))) == expected


def test_another_seed_or_epoch_is_another_order():
    reader = UnitsReader([7] * 7)
    orders = [numbers(reader.read_rows(shuffle=Shuffle(seed, epoch, 8))) for seed, epoch in ((1, 0), (1, 1), (2, 0))]
    assert len({tuple(order) for order in orders}) == 3
    assert orders[0] == numbers(pickle.loads(pickle.dumps(reader)).read_rows(shuffle=Shuffle(1, 0, 8)))


def test_only_units_of_the_range_are_read_and_windows_that_reach_into_it():
    reader = UnitsReader([4] * 5)
    assert reader.unit_rows == [4] * 5 and reader.opened == [0, 1, 2, 3, 4]
    reader.opened.clear()
    assert numbers(reader.read_rows(5, 9)) == [5, 6, 7, 8]
    assert reader.opened == [1, 2]
    reader.opened.clear()
    assert not numbers(reader.read_rows(8, 8))
    assert reader.opened == []
    units = np.random.default_rng((0, 0)).permutation(5).tolist()
    list(reader.read_rows(9, 10, shuffle=Shuffle(0, 0, 6)))  # rows 6 to 11 are its window
    assert reader.opened == units[1:3]


def test_an_unshuffled_range_is_a_slice_and_not_a_copy(tmp_path):
    pq.write_table(pa.table({"number": range(10)}), tmp_path / "a.parquet", row_group_size=5)
    (first, second) = ParquetReader(str(tmp_path / "a.parquet"), batch_size=2).read_rows(3, 6)
    assert (first.table.column("number").offset, len(first.table.column("number").buffers()[1])) == (3, 5 * 8)
    assert second.table.column("number").to_pylist() == [5]


@pytest.mark.parametrize("change", [-1, 1])
def test_rows_that_appeared_or_vanished_since_they_were_counted_are_an_error(change):
    reader = UnitsReader([4, 4])
    assert reader.num_rows == 8
    reader.sizes[0] += change
    with pytest.raises(DataError, match=rf"unit 0: {4 + change} rows were read where 4 were counted before.*changed"):
        list(reader.read_rows())


def test_a_parquet_file_that_was_rewritten_since_it_was_counted_is_an_error(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"number": range(6)}), path, row_group_size=3)
    reader = pickle.loads(pickle.dumps(ParquetReader(str(path), batch_size=2)))
    pq.write_table(pa.table({"number": range(8)}), path, row_group_size=4)
    with pytest.raises(DataError, match=r"a\.parquet: 4 rows were read where 3 were counted"):
        list(reader.read_rows())
