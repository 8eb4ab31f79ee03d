from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tzrec_core.data.batch_plan import BatchPlan, plan_batches


def batches_of(plan: BatchPlan, first_batch: int = 0) -> list[range]:
    """The rows of each batch, dealt by the worker processes in turn until the first has nothing left."""
    workers = []
    for index in range(plan.num_workers):
        rows, sizes = plan.part(index, first_batch)
        ends = [rows.start + sum(sizes[: n + 1]) for n in range(len(sizes))]
        assert sum(sizes) == len(rows)
        assert plan.rows.start <= rows.start <= rows.stop <= plan.rows.stop
        workers.append(iter([range(end - size, end) for end, size in zip(ends, sizes)]))
    found, done = [], False
    while not done:
        for worker in workers:
            batch = next(worker, None)
            done = done or batch is None
            assert not (done and batch is not None), "a worker has a batch when it is not its turn"
            if batch is not None:
                found.append(batch)
    return found


SHAPES = st.tuples(st.integers(0, 200), st.integers(1, 5), st.integers(1, 9), st.integers(0, 5), st.booleans()).filter(
    lambda shape: shape[0] == 0 or shape[0] >= shape[1]
)


def plans_of(shape: tuple[int, int, int, int, bool]) -> list[BatchPlan]:
    num_rows, world_size, batch_size, num_workers, drop = shape
    return [
        plan_batches(
            num_rows, batch_size, rank=rank, world_size=world_size, num_workers=num_workers, drop_remainder=drop
        )
        for rank in range(world_size)
    ]


@given(SHAPES)
def test_all_ranks_make_equally_many_batches_and_read_every_row_once(shape):
    num_rows, world_size, batch_size, _, drop = shape
    steps = num_rows // world_size // batch_size if drop else -(-(num_rows // world_size) // batch_size)
    seen = []
    for plan in plans_of(shape):
        batches = batches_of(plan)
        assert len(batches) == plan.num_batches == steps
        sizes = [len(batch) for batch in batches]
        assert sizes[:-1] == [batch_size] * (len(sizes) - 1)
        assert all(0 < size <= batch_size + 1 for size in sizes)
        seen += [row for batch in batches for row in batch]
    assert len(seen) == len(set(seen))
    if drop:
        assert len(seen) == steps * batch_size * world_size
    else:
        assert sorted(seen) == list(range(num_rows))


@given(SHAPES, st.data())
def test_what_begins_at_a_batch_is_the_rest_of_the_whole(shape, data):
    plan = data.draw(st.sampled_from(plans_of(shape)))
    first = data.draw(st.integers(0, plan.num_batches + 2))
    assert batches_of(plan, first) == list(islice(batches_of(plan), first, None))


@given(SHAPES)
def test_a_worker_reads_one_range_and_the_ranges_of_all_make_up_the_share(shape):
    for plan in plans_of(shape):
        ranges = [plan.part(index)[0] for index in range(plan.num_workers)]
        assert [row for part in ranges for row in part] == list(plan.rows)
        assert plan.num_workers <= max(1, plan.num_batches)


@pytest.mark.parametrize(
    ("num_rows", "batch_size", "world_size", "expected"),
    [
        (17, 4, 1, [[4, 4, 4, 4, 1]]),
        (17, 4, 2, [[4, 5], [4, 4]]),  # 9 and 8 rows: a third batch of one row would leave rank 1 waiting
        (18, 4, 2, [[4, 4, 1], [4, 4, 1]]),
        (11, 4, 3, [[4], [4], [3]]),
        (4, 4, 3, [[2], [1], [1]]),
        (3, 4, 3, [[1], [1], [1]]),
        (5, 1, 4, [[2], [1], [1], [1]]),
        (0, 4, 3, [[], [], []]),
    ],
)
def test_sizes_of_batches_worked_by_hand(num_rows, batch_size, world_size, expected):
    plans = plans_of((num_rows, world_size, batch_size, 0, False))
    assert [[len(batch) for batch in batches_of(plan)] for plan in plans] == expected


def test_with_two_workers_the_batch_that_is_not_full_is_still_the_last():
    plan = plan_batches(18, 4, num_workers=2)
    assert batches_of(plan) == [range(0, 4), range(10, 14), range(4, 8), range(14, 18), range(8, 10)]
    assert batches_of(plan, 3) == [range(14, 18), range(8, 10)]
