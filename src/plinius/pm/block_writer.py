"""Blocks: bulk bytes on their way from private memory into a medium.

A writer lends memory (`room`), takes it back filled (`put`), and lends the next while the last may
still be on its way. To memory a block is copied at once. To a device, blocks go round a ring of
aligned buffers: one is filled while another is written, past the page cache (O_DIRECT) where the
file system has it.
"""

import mmap
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

PAGE = mmap.PAGESIZE
MEMORY_BLOCK_BYTES = 2 << 20  # stays in the processor's cache
DEVICE_BLOCK_BYTES = 4 << 20
_RING = 3


class Writer(Protocol):
    """Writes blocks, for one thread at a time."""

    def room(self, length: int) -> memoryview:
        """Private memory for a block; it means nothing after `put` or the next `room`."""

    def put(self, offset: int, block: memoryview) -> None:
        """Write a block that `room` lent. It lasts after a fence, which also tells of failure;
        where another thread fences, after a drain of this one before that.
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
    """Has blocks written by a device's own thread, from buffers that take turns."""

    def __init__(self, device: "Device", check: Callable[[int, int], None]) -> None:
        self._device, self._check = device, check
        self._ring: list[tuple[memoryview, Future[None] | None]] = []

    def room(self, length: int) -> memoryview:
        """See Writer. Waits while all of its blocks are under way; raises what failed of them."""
        if len(self._ring) < _RING:
            self._ring.append((private_memory(max(length, DEVICE_BLOCK_BYTES)), None))
            return self._ring[-1][0][:length]
        buffer, writing = self._ring.pop(0)
        if writing:
            writing.exception()  # the fence raises it
        if length > len(buffer):
            buffer = private_memory(length)
        self._ring.append((buffer, None))
        return buffer[:length]

    def put(self, offset: int, block: memoryview) -> None:
        """See Writer."""
        self._check(offset, len(block))
        buffer, _ = self._ring.pop()
        self._ring.append((buffer, self._device.begin(offset, block)))


class Device:
    """An ordinary file on its way to a disk. Raises OSError where the disk refuses."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._direct_fd = _reopen_direct(fd)
        self._start()
        self._under_way: list[Future[None]] = []
        self.dirty = False

    def _start(self) -> None:
        self._writes = ThreadPoolExecutor(1, "plinius-write")

    def begin(self, offset: int, block: memoryview) -> Future[None]:
        """Have a block written; the buffer is free again when the future is done."""
        self.dirty = True
        writing = self._writes.submit(self._write_block, offset, block)
        self._under_way.append(writing)
        return writing

    def sync(self) -> None:
        """Wait for all blocks, then until the disk has them and everything else of the file."""
        waiting, self._under_way = self._under_way, []
        failed = [error for error in (writing.exception() for writing in waiting) if error]
        if failed:
            raise failed[0]
        os.fdatasync(self._fd)
        self.dirty = False

    def quiesce(self) -> None:
        """Wait until no block is on its way any more; what failed of them is forgotten."""
        self._writes.shutdown(wait=True)
        self._under_way.clear()
        self._start()

    def close(self) -> None:
        """End its threads, and close what it opened."""
        self._writes.shutdown()
        if self._direct_fd is not None:
            fd, self._direct_fd = self._direct_fd, None
            os.close(fd)

    def _write_block(self, offset: int, block: memoryview) -> None:
        whole = offset % PAGE == 0 and len(block) % PAGE == 0
        if self._direct_fd is not None and whole:
            write_all(self._direct_fd, block, offset)
        else:
            write_all(self._fd, block, offset)


def write_all(fd: int, data: memoryview, offset: int) -> None:
    """pwrite(2) until all is written."""
    while data:
        written = os.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written


def _reopen_direct(fd: int) -> int | None:
    """The same file past the page cache, or None where there is no such thing."""
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC | os.O_DIRECT)
    except OSError:
        return None


def private_memory(length: int) -> memoryview:
    """Private memory that begins on a page, as direct writing needs; a forked child has its own."""
    return memoryview(mmap.mmap(-1, length, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
