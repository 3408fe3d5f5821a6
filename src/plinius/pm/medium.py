"""The medium: bytes with store, flush, drain and fence, and what those promise.

Invariant: what was stored and flushed before a fence returned is durable, that is, it survives the
failures that the medium's granularity names, provided that the thread that fenced made the stores
and flushes itself, or that the thread that made them has drained since. Nothing is promised about
anything else: it may be durable in part and in any order.
"""

import enum
from typing import Protocol

from plinius.errors import StorageError
from plinius.pm.block_writer import Writer

LINE = 64
"""Bytes in a cache line."""
PAGE = 4096
"""Bytes in a page of the file formats, whatever the page size of the machine is."""
WORD = 8
"""Bytes in the largest store that never reaches the medium in part."""


class Granularity(enum.Enum):
    """The unit in which a medium becomes durable, and with it the failures that a fence covers."""

    CACHE_LINE = "CACHE_LINE"
    PAGE = "PAGE"
    PROCESS = "PROCESS"

    @property
    def survives(self) -> str:
        """The failures that a committed state survives, as text for the user."""
        if self is Granularity.CACHE_LINE:
            return "a process kill, a kernel crash and a power cut (DAX with MAP_SYNC)"
        if self is Granularity.PAGE:
            return (
                "a process kill; a kernel crash and a power cut, if the disk keeps what it confirms"
            )
        return "a process kill only: memory file system, lost at power-off and reboot"


class Medium(Protocol):
    """Bytes that can be made durable. Offsets and lengths are in bytes.

    Every operation raises RegionError for a range outside the medium, and StorageError if the file
    was cut short or the disk reports an error.
    """

    @property
    def size(self) -> int:
        """Bytes in the medium."""

    @property
    def granularity(self) -> Granularity:
        """What a fence promises here."""

    def read(self, offset: int, length: int) -> memoryview:
        """A copy of `length` bytes, in private memory."""

    def view(self, offset: int, length: int) -> memoryview:
        """A read-only view of `length` bytes. The host may change them at any time."""

    def read_into(self, offset: int, out: memoryview) -> None:
        """Copy len(out) bytes into `out`."""

    @property
    def block_bytes(self) -> int:
        """The best size of one bulk write, in bytes."""

    def writer(self) -> Writer:
        """A new writer for bulk bytes that are prepared in private memory (see Writer)."""

    def store(self, offset: int, data: bytes | memoryview) -> None:
        """Write bytes; they are durable after a flush of them and a fence."""

    def store_word(self, offset: int, word: int) -> None:
        """Write 8 bytes, little-endian, in one store that is never torn.

        Raises ValueError if `offset` is not a multiple of 8.
        """

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write bulk bytes and flush them; they are durable after a fence."""

    def copy(self, to: int, source: int, length: int) -> None:
        """Copy within the medium and flush the copy. The two ranges must not overlap."""

    def flush(self, offset: int, length: int) -> None:
        """Begin to write a range back; it is durable after a fence."""

    def drain(self) -> None:
        """Complete this thread's own stores and flushes, so that another thread's fence covers
        them. At PAGE granularity this does nothing: a fence there covers the whole file.
        """

    def fence(self) -> None:
        """Drain, and wait until everything that was flushed and drained is durable."""

    def quiesce(self) -> None:
        """Wait until no block is being written any more; errors of these writes are discarded."""

    def resize(self, size: int) -> None:
        """Grow to `size` bytes; the new bytes are zero, and the new size is durable on return.

        Raises RegionFullError if there is no room.
        """

    def release(self, offset: int, length: int) -> None:
        """Give the storage of whole pages back if possible. Their bytes are undefined then."""

    def reserve(self, offset: int, length: int) -> None:
        """Give every page of a range storage again. Raises RegionFullError."""

    def close(self) -> None:
        """Release the medium."""


def check_native(status: int) -> None:
    """Raise StorageError if a native call reports that the mapped file has become too short."""
    if status:
        raise file_cut_short()


def file_cut_short() -> StorageError:
    """The error for a file that is shorter than its mapping."""
    return StorageError(
        "The region's file was cut short under this process",
        "Restore a whole copy of it, then run the same command again",
    )


def round_up(length: int, unit: int) -> int:
    """The smallest multiple of `unit` that is not less than `length`."""
    return -(-length // unit) * unit


def merge_ranges(ranges: list[tuple[int, int]], gap: int = 0) -> list[tuple[int, int]]:
    """Sorted (start, end) ranges; those at most `gap` bytes apart are merged into one."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if merged and start <= merged[-1][1] + gap:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged
