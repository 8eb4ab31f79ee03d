"""Which rows the batches of each process hold, and which worker reads them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class BatchPlan:
    """The batches of one rank: a contiguous range of the rows of an epoch, dealt to workers.

    Batch number b belongs to worker b modulo `num_workers`, so that taking turns among the workers gives whole
    batches in the order of their numbers; each worker reads one contiguous range of the rank's rows, before those
    of the next worker. With one worker the batches are thus in the order of the rows.

    Attributes:
        rows: of the rank, as positions in the order of the epoch.
        batch_size: rows of every batch but the last, which has fewer, or one more.
        num_batches: equal on all ranks.
        num_workers: >= 1.
    """

    rows: range
    batch_size: int
    num_batches: int
    num_workers: int

    def part(self, index: int, first_batch: int = 0) -> tuple[range, list[int]]:
        """What one worker process reads when the iteration begins at batch `first_batch`.

        Args:
            index: of the process, 0 to `num_workers` - 1, in the order in which they take turns; process 0 makes
                batch `first_batch`.
            first_batch: >= 0.

        Returns:
            the rows, and the sizes of the batches that they are cut into.
        """
        batches = range(first_batch + index, self.num_batches, self.num_workers)
        if not batches:
            return range(self.rows.stop, self.rows.stop), []
        worker = (first_batch + index) % self.num_workers
        last_batch = self.num_batches - 1
        last_size = len(self.rows) - last_batch * self.batch_size
        # the batches of the workers before this one, and its own that are done
        num_before = sum(len(range(other, self.num_batches, self.num_workers)) for other in range(worker))
        num_before += len(range(worker, first_batch + index, self.num_workers))
        start = self.rows.start + num_before * self.batch_size
        if last_batch % self.num_workers < worker:
            start += last_size - self.batch_size
        sizes = [self.batch_size] * len(batches)
        if last_batch in batches:
            sizes[-1] = last_size
        return range(start, start + sum(sizes)), sizes


def plan_batches(
    num_rows: int,
    batch_size: int,
    *,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 1,
    drop_remainder: bool = False,
) -> BatchPlan:
    """Split the rows of an epoch among the ranks so that all make equally many batches.

    The shares are contiguous and differ by one row at most. When that row does not fit into the batches of the
    other ranks, it makes a rank's last batch one row larger than `batch_size`: no row is lost or repeated.

    Args:
        num_rows: of all ranks together; 0, or at least `world_size`.
        batch_size: rows per batch and rank; > 0.
        rank: 0 to `world_size` - 1.
        world_size: number of ranks.
        num_workers: workers that a rank may have; the plan has no more of them than batches.
        drop_remainder: leave out what does not fill a batch.
    """
    assert 0 <= rank < world_size and (num_rows == 0 or num_rows >= world_size)
    smallest, num_larger = divmod(num_rows, world_size)
    start = rank * smallest + min(rank, num_larger)
    if drop_remainder:
        num_batches = smallest // batch_size
        size = num_batches * batch_size
    else:
        num_batches = -(-smallest // batch_size)
        size = smallest + (rank < num_larger)
    return BatchPlan(range(start, start + size), batch_size, num_batches, max(1, min(num_workers, num_batches)))
