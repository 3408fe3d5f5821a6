"""A file mapped as a medium: DAX, a memory file system, or an ordinary disk."""

import contextlib
import errno
import mmap
import os

import numpy as np

from plinius.errors import RegionError, RegionFullError, StorageError
from plinius.pm._persist import ffi, lib
from plinius.pm.block_writer import (
    DEVICE_BLOCK_BYTES,
    MEMORY_BLOCK_BYTES,
    CopyWriter,
    Device,
    RingWriter,
    Writer,
    write_all,
)
from plinius.pm.medium import (
    LINE,
    PAGE,
    WORD,
    Granularity,
    Int64s,
    Uint64s,
    cut_short,
    done,
    merge_ranges,
)

_MAP_SHARED_VALIDATE, _MAP_SYNC = 0x03, 0x80000
_MEMORY_FILE_SYSTEMS = {0x01021994, 0x858458F6, 0x958458F6}  # tmpfs, ramfs, hugetlbfs
_PWB_KINDS = {"clwb": 3, "clflushopt": 2, "clflush": 1, "dc-cvap": 4}  # best first
_MSYNC_GAP = 1 << 20  # ranges nearer than this are written back by one msync


def pwb_names() -> list[str]:
    """The write-back instructions this CPU has, best first."""
    return [name for name, kind in _PWB_KINDS.items() if lib.pl_pwb_supported(kind)]


def pwb_name(wanted: str | None = None) -> str:
    """The write-back instruction in use: the one asked for, PLINIUS_PWB's choice, or the best.

    Raises StorageError if the choice is unknown or the CPU has none.
    """
    here = pwb_names()
    wanted = wanted or os.environ.get("PLINIUS_PWB")
    if wanted is not None and wanted not in here:
        raise StorageError(
            f"PLINIUS_PWB={wanted} is not a write-back instruction of this CPU",
            f"Unset it, or choose one of: {', '.join(here) or 'none here'}",
        )
    if not here:
        raise StorageError(
            "This CPU has no write-back instruction for persistent memory",
            "Use a region on an ordinary disk",
        )
    return wanted or here[0]


class MappedMedium:
    """A file mapped shared. Granularity is found by trying MAP_SYNC, then by the file system."""

    def __init__(self, fd: int, *, writable: bool = True, pwb: str | None = None) -> None:
        self._fd = fd
        self._writable = writable
        self._dirty: list[tuple[int, int]] = []
        self._device: Device | None = None  # made with the first writer
        lib.pl_guard()  # so that a file that is cut short under the mapping ends no process
        self._map, self.granularity = self._open_map()
        # Where msync does the work, no instruction is needed, so none is required.
        needs_pwb = writable and self.granularity is not Granularity.PAGE
        self._pwb = _PWB_KINDS[pwb_name(pwb)] if needs_pwb else 0

    @property
    def size(self) -> int:
        """Bytes mapped."""
        return len(self._view)

    def read(self, offset: int, length: int) -> memoryview:
        """See Medium. Raises RegionError outside the file, StorageError if it was cut short."""
        self._check(offset, length)
        self._check_whole()
        out = memoryview(bytearray(length))
        if length:
            done(lib.pl_fetch(ffi.from_buffer(out), self._address + offset, length))
        return out.toreadonly()

    def view(self, offset: int, length: int) -> memoryview:
        """See Medium. Raises RegionError outside the file, StorageError if it was cut short."""
        self._check(offset, length)
        self._check_whole()
        return self._view[offset : offset + length].toreadonly()

    def read_into(self, offset: int, out: memoryview) -> None:
        """See Medium. From a disk it reads the file, which takes no page fault a page."""
        if self.granularity is not Granularity.PAGE:
            self._check_block(offset, len(out))
            done(lib.pl_fetch(ffi.from_buffer(out), self._address + offset, len(out)))
            return
        self._check(offset, len(out))
        while out:
            try:
                got = os.preadv(self._fd, [out], offset)
            except OSError as error:
                raise _not_read(error.errno) from None
            if not got:
                self._check_whole()
            # Kept in the page cache, it would be in the way of the next direct write.
            os.posix_fadvise(self._fd, offset, got, os.POSIX_FADV_DONTNEED)
            out, offset = out[got:], offset + got

    @property
    def block_bytes(self) -> int:
        """See Medium."""
        device = self.granularity is Granularity.PAGE
        return DEVICE_BLOCK_BYTES if device else MEMORY_BLOCK_BYTES

    def writer(self) -> Writer:
        """See Medium. At PAGE granularity blocks go past the page cache where that can be."""
        if self.granularity is not Granularity.PAGE:
            return CopyWriter(self.write)
        self._device = self._device or Device(self._fd)
        return RingWriter(self._device, self._check_block)

    def store(self, offset: int, data: bytes | memoryview) -> None:
        """See Medium."""
        self._check(offset, len(data))
        done(lib.pl_store(self._address + offset, ffi.from_buffer(data), len(data)))

    def store_word(self, offset: int, word: int) -> None:
        """See Medium."""
        self._check(offset, WORD)
        if offset % WORD:
            raise ValueError("a word is stored at a multiple of 8")
        done(lib.pl_store_word(self._address + offset, word))

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """See Medium. Streams past the CPU's cache; at PAGE granularity it writes to the file,
        which shows in the mapping too and takes no page fault a page.
        """
        self._check(offset, len(data))
        self._check_whole()
        if self.granularity is Granularity.PAGE:
            try:
                write_all(self._fd, memoryview(data), offset)
            except OSError as error:
                raise _not_written(error.errno) from None
            self.flush(offset, len(data))
        else:
            source = ffi.from_buffer(data)
            done(lib.pl_copy(self._pwb, self._address + offset, source, len(data)))

    def copy(self, to: int, source: int, length: int) -> None:
        """See Medium. Streams past the cache except at PAGE granularity."""
        self._check(to, length)
        self._check(source, length)
        if self.granularity is Granularity.PAGE:
            done(lib.pl_store(self._address + to, self._address + source, length))
            self.flush(to, length)
        else:
            done(lib.pl_copy(self._pwb, self._address + to, self._address + source, length))

    def flush(self, offset: int, length: int) -> None:
        """See Medium. At PAGE granularity the range is kept for the fence's msync."""
        self._check(offset, length)
        if self.granularity is Granularity.PAGE:
            self._dirty.append((offset // PAGE * PAGE, offset + length))
        else:
            done(lib.pl_flush(self._pwb, self._address + offset, length))

    def drain(self) -> None:
        """See Medium. One instruction, which covers the processor that runs it only."""
        if self.granularity is not Granularity.PAGE:
            lib.pl_fence()

    def fence(self) -> None:
        """See Medium. Raises StorageError if the disk refuses the write."""
        if self.granularity is not Granularity.PAGE:
            self.drain()
            return
        if self._device and self._device.dirty:
            try:
                self._device.sync()  # of the whole file, what was stored in the mapping too
            except OSError as error:
                raise _not_written(error.errno) from None
            self._dirty.clear()
            return
        for start, end in merge_ranges(self._dirty, gap=_MSYNC_GAP):
            failed = lib.pl_msync(self._address + start, end - start)
            if failed:
                raise _not_written(failed)
        self._dirty.clear()

    def quiesce(self) -> None:
        """See Medium."""
        if self._device:
            self._device.quiesce()

    def store_words(self, base: int, length: int, offsets: Int64s, words: Uint64s) -> None:
        """See ListMedium."""
        self._check_list(base, length, offsets, WORD)
        if len(words) != len(offsets):
            raise ValueError("there is one word for every offset")
        at, data = ffi.from_buffer("int64_t[]", offsets), ffi.from_buffer("uint64_t[]", words)
        done(lib.pl_store_words(self._address + base, at, data, len(at)))

    def swap_words(self, base: int, length: int, first: Int64s, second: Int64s) -> None:
        """See ListMedium."""
        self._check_list(base, length, first, WORD)
        self._check_list(base, length, second, WORD)
        if len(first) != len(second):
            raise ValueError("each word is exchanged with one other")
        one, other = ffi.from_buffer("int64_t[]", first), ffi.from_buffer("int64_t[]", second)
        done(lib.pl_swap_words(self._address + base, one, other, len(one)))

    def flush_lines(self, base: int, length: int, lines: Int64s) -> None:
        """See ListMedium. At PAGE granularity the span of them is kept for the fence's msync,
        which writes no clean page.
        """
        self._check_list(base, length, lines, LINE)
        if self.granularity is not Granularity.PAGE:
            at = ffi.from_buffer("int64_t[]", lines)
            done(lib.pl_flush_lines(self._pwb, self._address + base, at, len(at)))
        elif len(lines):
            first, last = int(lines.min()) * LINE, int(lines.max()) * LINE
            self.flush(base + first, last + LINE - first)

    def copy_lines(self, to: int, source: int, length: int, lines: Int64s) -> None:
        """See ListMedium. Streams past the cache except at PAGE granularity."""
        self._check(source, length)
        self._check_list(to, length, lines, LINE)
        if self.granularity is not Granularity.PAGE:
            at, start = ffi.from_buffer("int64_t[]", lines), self._address
            done(lib.pl_copy_lines(self._pwb, start + to, start + source, at, len(at)))
            return
        twins = [
            np.frombuffer(self._view[start : start + length], np.uint64).reshape(-1, LINE // WORD)
            for start in (to, source)
        ]
        twins[0][lines] = twins[1][lines]
        self.flush_lines(to, length, lines)

    def resize(self, size: int) -> None:
        """See Medium. Old views stay valid: the old mapping lives until they are gone."""
        allocate(self._fd, size, self.size)
        self._map, _ = self._open_map()

    def release(self, offset: int, length: int) -> None:
        """See Medium. A file system that cannot make holes keeps the storage."""
        self._check(offset, length)
        if length:
            with contextlib.suppress(OSError):
                self._map.madvise(mmap.MADV_REMOVE, offset, length)

    def reserve(self, offset: int, length: int) -> None:
        """See Medium."""
        self._check_block(offset, length)
        if length:
            allocate(self._fd, offset + length, offset)

    def close(self) -> None:
        """Close the file. The mapping goes with its last view."""
        if self._fd >= 0:
            if self._device:
                self._device.close()
            del self._address, self._view, self._map
            os.close(self._fd)
            self._fd = -1

    def _open_map(self) -> tuple[mmap.mmap, Granularity]:
        length = os.fstat(self._fd).st_size
        if length == 0:
            raise cut_short()
        prot = mmap.PROT_READ | (mmap.PROT_WRITE if self._writable else 0)
        try:
            flags = _MAP_SHARED_VALIDATE | _MAP_SYNC
            mapped, found = mmap.mmap(self._fd, length, flags, prot), Granularity.CACHE_LINE
        except OSError:
            mapped, found = mmap.mmap(self._fd, length, mmap.MAP_SHARED, prot), Granularity.PAGE
            if lib.pl_fs_magic(self._fd) in _MEMORY_FILE_SYSTEMS:
                found = Granularity.PROCESS
        self._view = memoryview(mapped)
        self._address = ffi.from_buffer("char[]", mapped)
        return mapped, found

    def _check_list(self, base: int, length: int, places: Int64s, unit: int) -> None:
        """C follows the list without looking, so every bound is proved here."""
        self._check(base, length)
        if base % LINE or places.dtype != np.int64 or not places.flags.c_contiguous:
            raise ValueError("a list is of int64, and its base lies on a whole line")
        # A negative number is seen as a huge one: one pass finds both ends.
        end = length - WORD if unit == WORD else length // LINE - 1
        if len(places) and (end < 0 or places.view(np.uint64).max() > end):
            raise _outside(base, base + length)

    def _check_whole(self) -> None:
        # The last page of a file cut short reads as zeros, and a write would make it longer again.
        if os.fstat(self._fd).st_size < self.size:
            raise cut_short()

    def _check_block(self, offset: int, length: int) -> None:
        self._check(offset, length)
        self._check_whole()

    def _check(self, offset: int, length: int) -> None:
        if not (offset >= 0 and 0 <= length <= self.size - offset):
            raise _outside(offset, offset + length)


def _outside(start: int, end: int) -> RegionError:
    return RegionError(
        f"The region points outside itself (bytes {start} to {end})",
        "It was damaged or altered: restore a copy of it, or start a new region",
    )


def _not_written(number: int | None) -> StorageError:
    return StorageError(
        f"The disk refused a write: {os.strerror(number or errno.EIO)}",
        "Check the disk and its space; the last committed state is kept",
    )


def _not_read(number: int | None) -> StorageError:
    return StorageError(
        f"The disk refused a read: {os.strerror(number or errno.EIO)}",
        "Check the disk, or restore a copy of the region",
    )


def allocate(fd: int, size: int, start: int = 0) -> None:
    """Give a file real space up to `size` bytes, so that no later store can find the disk full.

    What is before `start` stays as it is.

    Raises RegionFullError if the disk has no room, StorageError if it refuses.
    """
    before = os.fstat(fd).st_size
    try:
        if size > start:
            os.posix_fallocate(fd, start, size - start)
        os.fsync(fd)
    except OSError as error:
        os.ftruncate(fd, before)
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise RegionFullError(
                f"The disk has no room for a region of {size:,} bytes",
                "Free some space, or put the region elsewhere (--region)",
            ) from None
        raise StorageError(
            f"The file system refused a region of {size:,} bytes: {error.strerror}",
            "Put the region elsewhere (--region)",
        ) from None
