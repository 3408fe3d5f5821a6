"""Opening every record of a sealed dataset, to find the damaged ones."""

from dataclasses import dataclass

import numpy as np

from plinius.data.records import Progress
from plinius.data.sealed_dataset import SealedDataset
from plinius.errors import SealError
from plinius.jsonvalue import Json

BATCH_BYTES = 4 << 20
MOST_RANGES = 1000
_SHOWN = 8


@dataclass(frozen=True)
class Records:
    """How many records of a dataset open, of how many; `damaged` are ranges of the others.

    A range is [first, last]. There are at most `MOST_RANGES` of them: of more, the first ones.
    """

    count: int
    whole: int
    damaged: list[tuple[int, int]]

    @property
    def all_ranges(self) -> bool:
        """Whether `damaged` has all ranges."""
        return sum(last - first + 1 for first, last in self.damaged) == self.count - self.whole

    def as_json(self) -> dict[str, Json]:
        """The counts and ranges, for JSON."""
        return {
            "count": self.count,
            "whole": self.whole,
            "damaged": self.count - self.whole,
            "damaged_indices": [[first, last] for first, last in self.damaged],
            "all_damaged_listed": self.all_ranges,
        }

    def require_whole(self, name: str) -> None:
        """Raise SealError, which names the first damaged records, unless all open."""
        lost = self.count - self.whole
        if not lost:
            return
        ranges = self.damaged[:_SHOWN]
        shown = ", ".join(str(a) if a == b else f"{a} to {b}" for a, b in ranges)
        more = "" if len(ranges) == len(self.damaged) and self.all_ranges else " and more"
        raise SealError(
            f"{lost} of {self.count} records of {name} do not open with this key: {shown}{more}",
            "They were altered or the disk is failing: fetch the file again from its owner",
        )


def verify_records(dataset: SealedDataset, progress: Progress) -> Records:
    """Open every record, in memory for `BATCH_BYTES` of them. Raises StorageError, RegionError."""
    count, whole = dataset.header.count, 0
    damaged: list[tuple[int, int]] = []
    at_once = max(1, BATCH_BYTES // dataset.header.stride)
    for start in range(0, count, at_once):
        batch = range(start, min(start + at_once, count))
        lost = _damaged(dataset, batch)
        whole += len(batch) - len(lost)
        for index in lost:
            if damaged and damaged[-1][1] == index - 1:
                damaged[-1] = (damaged[-1][0], index)
            elif len(damaged) < MOST_RANGES:
                damaged.append((index, index))
        progress(batch.stop, count)
    return Records(count, whole, damaged)


def _damaged(dataset: SealedDataset, batch: range) -> list[int]:
    """The indices in a batch whose records do not open."""
    try:
        dataset.open_batch(np.arange(batch.start, batch.stop))
    except SealError:
        return [index for index in batch if not _opens(dataset, index)]
    return []


def _opens(dataset: SealedDataset, index: int) -> bool:
    try:
        dataset.open_record(index)
    except SealError:
        return False
    return True
