"""A region: one file of persistent memory with a twin heap for structure and extents for bulk.

    0      8    magic "PLNSRGN\\n"
    8      4    version 1
    12     4    zero
    16     16   region id, random
    32     8    twin bytes T
    40     24   first 24 bytes of SHA-256 of bytes 0..40
    64     8    state word of the twins
    72     4024 zero
    4096   T    MAIN
    ..     T    BACK
    ..     ...  extents, page-aligned, to the region bytes that the heap records

Offsets only, so a region can be copied and mapped anywhere. Nothing here is secret or
authenticated: whatever the extents hold is sealed, and proves itself when it is opened.
"""

import hashlib
import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path

from plinius.errors import FormatError, RegionBusyError, RegionError, StorageError
from plinius.files import PRIVATE, create_new, sync_folder
from plinius.pm.heap import MIN_TWIN_BYTES, Heap, Span
from plinius.pm.lock import FileLock
from plinius.pm.mapped import MappedMedium, allocate
from plinius.pm.medium import PAGE, Granularity, Medium
from plinius.pm.romulus import Twins, TwinState
from plinius.sealing import fresh

MAGIC = b"PLNSRGN\n"
VERSION = 1
DEFAULT_TWIN_BYTES = 64 * 1024
MAX_TWIN_BYTES = 64 << 20
_HEADER = struct.Struct("<8sI4x16sQ")
_DIGEST_BYTES = 24
_STATE_AT = 64
_MAIN_AT = PAGE

Writer = Callable[[Medium, int], None]
"""Fills and flushes an extent: given the medium and the extent's offset."""


class Region:
    """An open region. Opening checks everything and recovers; `writable=False` writes nothing."""

    def __init__(
        self, medium: Medium, name: str, *, writable: bool = True, lock: FileLock | None = None
    ) -> None:
        self.name = name
        self.medium = medium
        self._lock = lock
        self.id, twin_bytes = _read_header(medium, name)
        back_at = _MAIN_AT + twin_bytes
        self._extents_at = back_at + twin_bytes
        self.twins = Twins(medium, _STATE_AT, _MAIN_AT, back_at, twin_bytes)
        self.heap = Heap(self.twins, self._extents_at)
        if self.heap.region_bytes > medium.size:
            raise RegionError(
                f"{name} is cut short: {medium.size:,} of {self.heap.region_bytes:,} bytes",
                "Restore a whole copy of it, or start a new region",
            )
        self.writable = writable
        if writable:
            self.twins.recover()  # only now: a twin that is refused is not copied over the other

    def __enter__(self) -> "Region":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @classmethod
    def create(
        cls, path: str | Path, extent_bytes: int, twin_bytes: int = DEFAULT_TWIN_BYTES
    ) -> "Region":
        """Make and open a region with room for `extent_bytes` of extents.

        The file appears under its name only when it is whole: a kill before that leaves a
        `.creating` file, which the next creation takes over. Raises RegionError if the name is
        taken, RegionFullError, RegionBusyError, StorageError.
        """
        path = Path(path)
        start = _first_name(path)
        size = _MAIN_AT + 2 * twin_bytes + _pages(extent_bytes)
        fd, lock = _created(start, path)
        try:
            taken = f"{path} exists already"
            if path.exists() or os.fstat(fd).st_nlink != 1:
                raise RegionError(taken, "Open it, or name another file (--region)")
            os.fchmod(fd, PRIVATE)
            os.ftruncate(fd, 0)
            allocate(fd, size)
            medium = MappedMedium(fd)
            format_region(medium, twin_bytes)
            os.fsync(fd)
            try:
                os.link(start, path)
            except FileExistsError:
                raise RegionError(taken, "Open it, or name another file (--region)") from None
            sync_folder(path.parent)
            start.unlink()
            return cls(medium, str(path), lock=lock)
        except BaseException as error:
            _discard(start, path)
            lock.release()
            os.close(fd)
            if isinstance(error, OSError):
                raise _storage(error, path) from None
            raise

    @classmethod
    def open(cls, path: str | Path, *, writable: bool = True) -> "Region":
        """Lock, map, check and recover a region. Read-only needs no write permission.

        Raises RegionBusyError, FormatError (foreign or of another version), RegionError (damaged)
        and StorageError.
        """
        path = Path(path)
        fd, lock = _opened(path, path, os.O_RDWR if writable else os.O_RDONLY)
        try:
            if os.fstat(fd).st_size < PAGE:
                raise _foreign(str(path))
            medium = MappedMedium(fd, writable=writable)
            region = cls(medium, str(path), writable=writable, lock=lock)
            start = _first_name(path)
            if writable and start.exists() and path.samefile(start):
                start.unlink()  # its creator was killed between giving it its name and this
            return region
        except BaseException as error:
            lock.release()
            os.close(fd)
            if isinstance(error, OSError):
                raise _storage(error, path) from None
            raise

    @property
    def granularity(self) -> Granularity:
        """What a commit survives here."""
        return self.medium.granularity

    def extent(self, name: str) -> Span | None:
        """Where a named extent lies, or None."""
        return self.heap.extents().get(name)

    def add_extent(self, name: str, length: int, write: Writer) -> Span:
        """Create an extent, grown for if need be, filled by `write` before it gets its name.

        A kill before the name is committed leaves free space, nothing else. Raises
        RegionFullError; RegionError if the name is taken; RuntimeError inside a transaction, whose
        roll-back could bring back an extent that was dropped in it and then written over.
        """
        if self.extent(name) is not None:
            raise RegionError(
                f"{self.name} has an extent {name} already",
                "It was altered while it was open, or the name is taken: choose another one",
            )
        return self._put_extent(name, length, write)

    def replace_extent(self, name: str, length: int, write: Writer) -> Span:
        """Put a new extent in an old one's place: a stop at any instant leaves one or the other.

        The old one's space is free afterwards, and given back to the file system. Raises as
        `add_extent` does; RegionError if there is no extent of that name.
        """
        old = self.extent(name)
        if old is None:
            raise RegionError(
                f"{self.name} has no extent {name} any more",
                "It was altered while it was open: restore a copy of it, or start a new region",
            )
        span = self._put_extent(name, length, write)
        self.medium.release(old.offset, _pages(old.length))
        return span

    def _put_extent(self, name: str, length: int, write: Writer) -> Span:
        if self.twins.in_transaction:
            raise RuntimeError("an extent is made outside of transactions")
        offset = self.heap.gap(_pages(length))
        if offset is None:
            self._grow_for(_pages(length))
            offset = self.heap.gap(_pages(length))
        assert offset is not None
        self.medium.reserve(offset, _pages(length))  # it may have been released
        write(self.medium, offset)  # lasts by the first fence of the transaction that names it
        span = Span(offset, length)
        self.heap.set_extent(name, span)
        return span

    def drop_extent(self, name: str) -> None:
        """Give an extent's space back."""
        self.heap.set_extent(name, None)

    def require_held(self) -> None:
        """Raise RegionBusyError in a child of the process that opened it."""
        if self._lock:
            self._lock.require()

    def recover(self) -> None:
        """Bring a transaction that failed to an end, as opening does; nothing otherwise."""
        self.twins.recover()

    def consistency_check(self) -> None:
        """Raise RegionError unless the directory holds and, when IDLE, the twins are equal."""
        self.heap.check()
        if self.twins.state() is TwinState.IDLE and not self.twins.equal():
            raise RegionError(
                f"The twins of {self.name} differ though no transaction was open",
                "It was damaged or altered: restore a copy of it, or start a new region",
            )

    def close(self) -> None:
        """Unmap and unlock."""
        self.medium.close()
        if self._lock:
            self._lock.release()

    def _grow_for(self, length: int) -> None:
        extents = self.heap.extents().values()
        last = max((_pages(span.end) for span in extents), default=self._extents_at)
        size = max(last + length, self.heap.region_bytes)
        self.medium.resize(size)
        self.heap.grow_to(size)


def format_region(medium: Medium, twin_bytes: int) -> None:
    """Write an empty region to a medium of zeros. The magic goes last, fenced by itself."""
    if not MIN_TWIN_BYTES <= twin_bytes <= MAX_TWIN_BYTES or twin_bytes % PAGE:
        raise ValueError("twin bytes must be whole pages within bounds")
    heap = Heap.formatted(twin_bytes, medium.size)
    for at in (_MAIN_AT, _MAIN_AT + twin_bytes):
        medium.store(at, heap)
        medium.flush(at, len(heap))
    head = _HEADER.pack(MAGIC, VERSION, fresh(16), twin_bytes)
    head += hashlib.sha256(head).digest()[:_DIGEST_BYTES] + TwinState.IDLE.value
    medium.store(8, head[8:])
    medium.flush(0, len(head))
    medium.fence()
    medium.store_word(0, int.from_bytes(MAGIC, "little"))
    medium.flush(0, 8)
    medium.fence()


def _read_header(medium: Medium, name: str) -> tuple[bytes, int]:
    page = bytes(medium.read(0, PAGE))
    magic, version, region_id, twin_bytes = _HEADER.unpack_from(page)
    if magic != MAGIC:
        raise _foreign(name)
    if version != VERSION:
        raise FormatError(
            f"{name} is a region of version {version}, and this program reads version {VERSION}",
            "Use the release of plinius that made it",
        )
    digest = hashlib.sha256(page[: _HEADER.size]).digest()[:_DIGEST_BYTES]
    whole = page[_HEADER.size : _STATE_AT] == digest and not any(page[12:16] + page[72:])
    fits = MIN_TWIN_BYTES <= twin_bytes <= MAX_TWIN_BYTES and twin_bytes % PAGE == 0
    if not (whole and fits and _MAIN_AT + 2 * twin_bytes <= medium.size):
        raise RegionError(
            f"The header of {name} is damaged, or the file is cut short",
            "Restore a whole copy of it, or start a new region",
        )
    return region_id, twin_bytes


def _foreign(name: str) -> FormatError:
    return FormatError(
        f"{name} is not a Plinius region", "Name a region, or a file that is not there yet"
    )


def _opened(path: Path, region: Path, flags: int) -> tuple[int, FileLock]:
    """A file, open and locked: to write, or to read if that is all the flags say."""
    fd = -1
    try:
        fd = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)  # a FIFO would wait
        return fd, FileLock(fd, region, exclusive=bool(flags & os.O_RDWR))
    except (OSError, RegionBusyError) as error:
        if fd >= 0:
            os.close(fd)
        if isinstance(error, OSError):
            raise _storage(error, region) from None
        raise


def _created(start: Path, path: Path) -> tuple[int, FileLock]:
    """A new file, or the one that a killed creation left, open and locked; never a link."""
    try:
        fd = create_new(start)
    except FileExistsError:
        if not stat.S_ISREG(start.lstat().st_mode):
            raise StorageError(
                f"{start} is in the way of a new region, and is no file",
                "Remove it, or name another region (--region)",
            ) from None
        return _opened(start, path, os.O_RDWR | os.O_NOFOLLOW)
    except OSError as error:
        raise _storage(error, path) from None
    try:
        return fd, FileLock(fd, path, exclusive=True)
    except BaseException:
        os.close(fd)
        raise


def _first_name(path: Path) -> Path:
    """What a region is called until it is whole."""
    return path.with_name(path.name + ".creating")


def _discard(start: Path, path: Path) -> None:
    """Remove the unfinished file, unless it is the published one under its first name."""
    if start.exists() and not (path.exists() and path.samefile(start)):
        start.unlink()


def _storage(error: OSError, path: Path) -> StorageError:
    if isinstance(error, FileNotFoundError) and path.parent.exists():
        return StorageError(f"There is no region {path}", "Name a region made by plinius train")
    if isinstance(error, FileNotFoundError):
        return StorageError(
            f"There is no folder {path.parent} for a region",
            "Make it, or name another file (--region)",
        )
    return StorageError(
        f"Cannot use {path} as a region: {error.strerror}",
        "Name a file in a folder that you can write to (--region)",
    )


def _pages(length: int) -> int:
    return -(-length // PAGE) * PAGE
