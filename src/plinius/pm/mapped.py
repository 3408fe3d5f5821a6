"""What all media on a mapped file share: the mapping, its bounds, and stores into it."""

import contextlib
import errno
import mmap
import os
from typing import TYPE_CHECKING

from plinius.errors import RegionError, RegionFullError, StorageError
from plinius.pm._persist import ffi, lib
from plinius.pm.medium import WORD, Medium, check_native, file_cut_short

if TYPE_CHECKING:
    from plinius.pm._persist import Pointer


class MappedMedium(Medium):
    """A file mapped shared: a Medium. See CacheLineMedium and FileMedium."""

    def __init__(self, fd: int, flags: int, *, writable: bool) -> None:
        """Map the file with mmap(2) `flags`; `close` closes `fd`. Raises OSError if it cannot be
        mapped, StorageError if it is empty.
        """
        self._fd = fd
        self._flags = flags
        self._protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        lib.pl_guard()  # from now on a file that is cut short is an error, not the process's end
        self._map_file()

    def _map_file(self) -> None:
        length = os.fstat(self._fd).st_size
        if length == 0:
            raise file_cut_short()
        self._map = mmap.mmap(self._fd, length, self._flags, self._protection)
        self._view = memoryview(self._map)
        self._address = ffi.from_buffer("char[]", self._map)

    @property
    def size(self) -> int:
        """Bytes mapped."""
        return len(self._view)

    def read(self, offset: int, length: int) -> memoryview:
        """See Medium."""
        self._check_whole(offset, length)
        out = memoryview(bytearray(length))
        if length:
            check_native(lib.pl_fetch(ffi.from_buffer(out), self._address + offset, length))
        return out.toreadonly()

    def view(self, offset: int, length: int) -> memoryview:
        """See Medium."""
        self._check_whole(offset, length)
        return self._view[offset : offset + length].toreadonly()

    def address(self, offset: int, length: int) -> "Pointer":
        """Where a range lies in memory, for native functions: they check nothing more.

        It is valid until the medium is resized or closed. Raises RegionError.
        """
        self._check(offset, length)
        return self._address + offset

    def store(self, offset: int, data: bytes | memoryview) -> None:
        """See Medium."""
        self._check(offset, len(data))
        check_native(lib.pl_store(self._address + offset, ffi.from_buffer(data), len(data)))

    def store_word(self, offset: int, word: int) -> None:
        """See Medium."""
        self._check(offset, WORD)
        if offset % WORD:
            raise ValueError("a word is stored at a multiple of 8")
        check_native(lib.pl_store_word(self._address + offset, word))

    def resize(self, size: int) -> None:
        """See Medium. Views stay valid: the old mapping lives as long as a view of it."""
        allocate(self._fd, size, self.size)
        try:
            self._map_file()
        except OSError as error:
            raise StorageError(
                f"The grown region cannot be mapped: {error.strerror}",
                "Check the limits of this process on memory; the last committed state is kept",
            ) from None

    def release(self, offset: int, length: int) -> None:
        """See Medium. A file system that cannot make holes keeps the storage."""
        self._check(offset, length)
        if length:
            with contextlib.suppress(OSError):
                self._map.madvise(mmap.MADV_REMOVE, offset, length)

    def reserve(self, offset: int, length: int) -> None:
        """See Medium."""
        self._check_whole(offset, length)
        if length:
            allocate(self._fd, offset + length, offset)

    def close(self) -> None:
        """Close the file. The mapping itself is removed with the last view of it."""
        if self._fd >= 0:
            for name in ("_address", "_view", "_map"):
                self.__dict__.pop(name, None)  # close can be called again after an interrupt
            fd, self._fd = self._fd, -1
            os.close(fd)

    def _check_whole(self, offset: int, length: int) -> None:
        """Check the range, and that the file still is as long as its mapping: the rest of the last
        page of a file that was cut short reads as zeros, and a write would make it longer again.
        """
        self._check(offset, length)
        if os.fstat(self._fd).st_size < self.size:
            raise file_cut_short()

    def _check(self, offset: int, length: int) -> None:
        if not (offset >= 0 and 0 <= length <= self.size - offset):
            raise _outside(offset, offset + length)


def _outside(start: int, end: int) -> RegionError:
    return RegionError(
        f"The region points outside itself (bytes {start} to {end})",
        "It was damaged or altered: restore a copy of it, or start a new region",
    )


def allocate(fd: int, size: int, start: int = 0) -> None:
    """Give a file real space from `start` to `size`, so that no later store finds the disk full.

    Raises RegionFullError if the disk has no room, StorageError if it reports another error.
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
