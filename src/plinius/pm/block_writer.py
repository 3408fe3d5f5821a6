"""Bulk writes: blocks that are prepared in private memory and then written to a medium.

A writer lends private memory (`room`) and takes it back filled (`put`). It can lend the next block
while earlier ones are still being written. To a memory-like medium a block is copied at once. To a
disk, blocks use a ring of buffers: one is filled while others are written by a background thread,
past the page cache (O_DIRECT) where the file system supports it.
"""

import mmap
import os
from collections.abc import Callable
from functools import partial
from typing import Protocol

from plinius.pm.private_memory import private_memory
from plinius.threads import Job, JobThread

SYSTEM_PAGE = mmap.PAGESIZE
"""The machine's page size in bytes, which may be larger than PAGE, the page of the formats."""
MEMORY_BLOCK_BYTES = 2 << 20  # fits in the processor's cache
DISK_BLOCK_BYTES = 4 << 20
_RING_BUFFERS = 3
_DIRECT_ALIGNMENT = 4096  # of the memory in a direct write: no disk has larger sectors


class Writer(Protocol):
    """Writes blocks to a medium. At most one thread may use it at a time."""

    def room(self, length: int) -> memoryview:
        """Private memory of `length` bytes for the next block; valid until `put` or the next
        `room`. Waits while all buffers are being written.
        """

    def put(self, offset: int, block: memoryview) -> None:
        """Write the block that `room` lent last to `offset` of the medium.

        It is durable after a fence, and the fence also raises the error of a failed write. If
        another thread fences, this thread must drain first.
        """


class CopyWriter:
    """Writes each block at once, from one buffer."""

    def __init__(self, write: Callable[[int, memoryview], None]) -> None:
        self._write = write
        self._buffer = private_memory(MEMORY_BLOCK_BYTES)

    def room(self, length: int) -> memoryview:
        """See Writer."""
        if length > len(self._buffer):
            self._buffer = private_memory(length)
        return self._buffer[:length]

    def put(self, offset: int, block: memoryview) -> None:
        """See Writer."""
        self._write(offset, block)


class RingWriter:
    """Writes blocks in the background, from a ring of buffers."""

    def __init__(self, file: "BackgroundFile", check: Callable[[int, int], None]) -> None:
        """`check(offset, length)` raises an error if a block must not be written there."""
        self._file, self._check = file, check
        self._ring: list[tuple[memoryview, Job | None]] = []

    def room(self, length: int) -> memoryview:
        """See Writer."""
        if len(self._ring) < _RING_BUFFERS:
            self._ring.append((private_memory(max(length, DISK_BLOCK_BYTES)), None))
            return self._ring[-1][0][:length]
        buffer, writing = self._ring.pop(0)
        if writing:
            writing.wait()  # the fence raises its error
        if length > len(buffer):
            buffer = private_memory(length)
        self._ring.append((buffer, None))
        return buffer[:length]

    def put(self, offset: int, block: memoryview) -> None:
        """See Writer."""
        self._check(offset, len(block))
        buffer, _ = self._ring.pop()
        self._ring.append((buffer, self._file.begin(offset, block)))


class BackgroundFile:
    """A file on a disk that a background thread writes blocks to. Methods raise OSError."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._direct_fd = _reopen_direct(fd)
        self._writing: list[Job] = []
        self.dirty = False
        """Whether a block was written since the last `sync`."""
        self._thread = JobThread("plinius-write")

    def begin(self, offset: int, block: memoryview) -> Job:
        """Write a block in the background; its memory is free again when the job is done."""
        self.dirty = True
        writing = Job(partial(self._write_block, offset, block))
        self._thread.submit(writing)
        self._writing.append(writing)
        return writing

    def sync(self) -> None:
        """Wait for all blocks, then make them and everything else in the file durable."""
        writing, self._writing = self._writing, []
        for block in writing:
            block.wait()
        for block in writing:
            if block.error is not None:
                raise block.error
        os.fdatasync(self._fd)
        self.dirty = False

    def quiesce(self) -> None:
        """Wait until no block is being written any more; errors are discarded."""
        self._thread.wait()
        self._writing.clear()

    def close(self) -> None:
        """End the thread, and close the descriptor that this object opened."""
        self._thread.close()
        if self._direct_fd is not None:
            fd, self._direct_fd = self._direct_fd, None
            os.close(fd)

    def _write_block(self, offset: int, block: memoryview) -> None:
        """Write whole pages of the machine directly, and the rest through the page cache: a page
        that was partly written directly could still be held, with older bytes, by the cache.
        """
        start = min(-offset % SYSTEM_PAGE, len(block))
        end = len(block) - (offset + len(block)) % SYSTEM_PAGE
        if self._direct_fd is None or start % _DIRECT_ALIGNMENT or start >= end:
            write_all(self._fd, block, offset)
            return
        write_all(self._fd, block[:start], offset)
        write_all(self._direct_fd, block[start:end], offset + start)
        write_all(self._fd, block[end:], offset + end)


def write_all(fd: int, data: memoryview, offset: int) -> None:
    """Call pwrite(2) until all bytes are written. Raises OSError."""
    while data:
        written = os.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written


def _reopen_direct(fd: int) -> int | None:
    """A descriptor of the same file with O_DIRECT, or None if the file system has no such."""
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC | os.O_DIRECT)
    except OSError:
        return None
