"""The medium: bytes with store, flush and fence, and what those promise.

Invariant: what was stored and flushed before a fence returned survives what the medium's
granularity names, if it was the same thread's or its thread has drained; nothing is promised of
the rest, in any order, cache line by cache line.
"""

import enum
import mmap
from typing import Protocol

import numpy as np
import numpy.typing as npt

from plinius.errors import StorageError
from plinius.pm.block_writer import Writer

LINE = 64
PAGE = mmap.PAGESIZE
WORD = 8

Int64s = npt.NDArray[np.int64]
Uint64s = npt.NDArray[np.uint64]


class Granularity(enum.Enum):
    """What a fence makes last (the unit of persistence and the fall it survives)."""

    CACHE_LINE = "CACHE_LINE"
    PAGE = "PAGE"
    PROCESS = "PROCESS"

    @property
    def survives(self) -> str:
        """In words: what a committed state survives."""
        if self is Granularity.CACHE_LINE:
            return "a process kill, a kernel crash and a power cut (DAX with MAP_SYNC)"
        if self is Granularity.PAGE:
            return "a process kill; a kernel crash and a power cut as far as its disk keeps msync"
        return "a process kill only: memory file system, lost at power-off and reboot"


class Medium(Protocol):
    """Bytes that can be made to last. Offsets and lengths are in bytes; ranges are checked."""

    @property
    def size(self) -> int:
        """Bytes in the medium."""

    @property
    def granularity(self) -> Granularity:
        """What a fence promises here."""

    def read(self, offset: int, length: int) -> memoryview:
        """A copy of bytes, which the host then cannot change any more."""

    def view(self, offset: int, length: int) -> memoryview:
        """A read-only view. The host may change what it shows at any time."""

    def read_into(self, offset: int, out: memoryview) -> None:
        """Copy bytes out, which the host then cannot change any more."""

    @property
    def block_bytes(self) -> int:
        """How many bytes are best written at once."""

    def writer(self) -> Writer:
        """A new writer of blocks: the way for bulk bytes that are made in private memory."""

    def store(self, offset: int, data: bytes | memoryview) -> None:
        """Write bytes; they last after a flush of them and a fence."""

    def store_word(self, offset: int, word: int) -> None:
        """Write 8 aligned bytes, little-endian, whole or not at all."""

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write bulk bytes and flush them: they last after a fence."""

    def copy(self, to: int, source: int, length: int) -> None:
        """Copy within the medium and flush what was written."""

    def flush(self, offset: int, length: int) -> None:
        """Begin writing a range back."""

    def drain(self) -> None:
        """Complete this thread's own stores and flushes: a thread that wrote calls it before it
        reports done, as no other thread's fence completes them. At PAGE granularity nothing:
        fence() covers the file.
        """

    def fence(self) -> None:
        """Drain, and wait until all that was flushed and drained lasts."""

    def quiesce(self) -> None:
        """Wait until no block is on its way any more; what failed of them is forgotten."""

    def resize(self, size: int) -> None:
        """Grow to `size` bytes of which the new ones are zero. Raises RegionFullError."""

    def release(self, offset: int, length: int) -> None:
        """Give the storage behind whole pages back, where that can be: they then mean nothing."""

    def reserve(self, offset: int, length: int) -> None:
        """Have storage behind every page of a range again. Raises RegionFullError."""

    def close(self) -> None:
        """Let go of the medium."""


def done(failed: int) -> None:
    """Raise StorageError if a native call found the file behind the mapping ended."""
    if failed:
        raise cut_short()


def cut_short() -> StorageError:
    """The refusal of a file that is shorter than it was."""
    return StorageError(
        "The region's file was cut short under this process",
        "Restore a whole copy of it, then run the same command again",
    )


def merge_ranges(ranges: list[tuple[int, int]], gap: int = 0) -> list[tuple[int, int]]:
    """Sorted (start, end) ranges, those that touch or lie within `gap` bytes made one."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if merged and start <= merged[-1][1] + gap:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged
