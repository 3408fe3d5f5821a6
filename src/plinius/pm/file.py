"""A medium on an ordinary disk: msync(2) and fdatasync(2) make it durable."""

import errno
import mmap
import os

from plinius.errors import StorageError
from plinius.pm import block_writer
from plinius.pm._persist import lib
from plinius.pm.block_writer import DISK_BLOCK_BYTES, BackgroundFile, RingWriter, write_all
from plinius.pm.mapped import MappedMedium
from plinius.pm.medium import Granularity, check_native, merge_ranges

_MSYNC_GAP = 1 << 20  # flushed ranges at most this far apart share one msync
_NEXT_STEP = {
    "read": "Check the disk, or restore a copy of the region",
    "write": "Check the disk and its space; the last committed state is kept",
}


class FileMedium(MappedMedium):
    """A file on an ordinary disk: flushed ranges are collected, and a fence writes them out.

    Bulk bytes are read and written through the file and not through the mapping, since that takes
    no page faults. The mapping shows them too.
    """

    granularity = Granularity.PAGE
    block_bytes = DISK_BLOCK_BYTES

    def __init__(self, fd: int, *, writable: bool = True) -> None:
        """Raises OSError if the file cannot be mapped."""
        super().__init__(fd, mmap.MAP_SHARED, writable=writable)
        self._flushed: list[tuple[int, int]] = []
        self._background: BackgroundFile | None = None  # made with the first writer

    def read_into(self, offset: int, out: memoryview) -> None:
        """See Medium."""
        self._check(offset, len(out))
        while out:
            try:
                got = os.preadv(self._fd, [out], offset)
            except OSError as error:
                raise _disk_error("read", error.errno) from None
            if not got:
                self._check_whole(offset, len(out))
            # In the page cache it would slow down the next direct write.
            os.posix_fadvise(self._fd, offset, got, os.POSIX_FADV_DONTNEED)
            out, offset = out[got:], offset + got

    def writer(self) -> RingWriter:
        """See Medium."""
        self._background = self._background or BackgroundFile(self._fd)
        return RingWriter(self._background, self._check_whole)

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """See Medium."""
        self._check_whole(offset, len(data))
        try:
            write_all(self._fd, memoryview(data), offset)
        except OSError as error:
            raise _disk_error("write", error.errno) from None
        self.flush(offset, len(data))

    def copy(self, to: int, source: int, length: int) -> None:
        """See Medium."""
        self._check(to, length)
        self._check(source, length)
        check_native(lib.pl_store(self._address + to, self._address + source, length))
        self.flush(to, length)

    def flush(self, offset: int, length: int) -> None:
        """See Medium. Only notes the range for the next fence."""
        self._check(offset, length)
        # msync takes an address that is aligned to the machine's page.
        start = offset - offset % block_writer.SYSTEM_PAGE
        self._flushed.append((start, offset + length))

    def drain(self) -> None:
        """See Medium."""

    def fence(self) -> None:
        """See Medium."""
        if self._background and self._background.dirty:
            try:
                self._background.sync()  # of the whole file: stores into the mapping as well
            except OSError as error:
                raise _disk_error("write", error.errno) from None
        else:
            for start, end in merge_ranges(self._flushed, gap=_MSYNC_GAP):
                failed = lib.pl_msync(self._address + start, end - start)
                if failed:
                    raise _disk_error("write", failed)
        self._flushed.clear()

    def quiesce(self) -> None:
        """See Medium."""
        if self._background:
            self._background.quiesce()

    def close(self) -> None:
        """See MappedMedium. Waits for blocks that are being written."""
        if self._background:
            self._background.close()
        super().close()


def _disk_error(verb: str, number: int | None) -> StorageError:
    return StorageError(
        f"The disk refused a {verb}: {os.strerror(number or errno.EIO)}", _NEXT_STEP[verb]
    )
