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
    ..     ...  extents, aligned to 4096, up to the region bytes that the heap records

There are no addresses, only offsets, so a region can be copied and mapped anywhere. Nothing here is
secret or authenticated: what the extents hold is sealed, and is authenticated when it is opened.
docs/formats/region.md specifies the format.
"""

import hashlib
import os
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

from plinius.errors import FormatError, RegionBusyError, RegionError, StorageError
from plinius.files import PRIVATE, create_new, not_regular, require_name, sync_folder
from plinius.pm.heap import MIN_TWIN_BYTES, Heap, Span
from plinius.pm.lock import FileLock
from plinius.pm.mapped import allocate
from plinius.pm.medium import PAGE, Granularity, Medium, round_up
from plinius.pm.open_medium import open_medium
from plinius.pm.romulus import Twins, TwinState

MAGIC = b"PLNSRGN\n"
VERSION = 1
DEFAULT_TWIN_BYTES = 64 * 1024
MAX_TWIN_BYTES = 64 << 20
_HEADER = struct.Struct("<8sI4x16sQ")
_DIGEST_BYTES = 24
_STATE_AT = 64
_MAIN_AT = PAGE

FillExtent = Callable[[Medium, int], None]
"""Writes and flushes the bytes of an extent, given the medium and the extent's offset in it.

If other threads write, each must drain before this returns.
"""


class Region:
    """An open region. Opening it checks the structure and recovers an interrupted transaction;
    `writable=False` writes nothing.

    `name` is used in errors. `id` is its random name (16 bytes).
    """

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
            self.twins.recover()  # not before the checks: a damaged twin is copied nowhere

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @classmethod
    def create(
        cls, path: str | Path, extent_bytes: int = 0, twin_bytes: int = DEFAULT_TWIN_BYTES
    ) -> Self:
        """Make and open a region with room for `extent_bytes` of extents; it grows when needed.

        The file appears under its name only when it is complete: a kill before that leaves a
        `.creating` file, which the next creation takes over. Raises RegionError if the name is
        taken, RegionFullError, RegionBusyError, StorageError; ValueError if `twin_bytes` is not a
        multiple of 4096 from 16 KiB to 64 MiB.
        """
        path = Path(path)
        require_name(path)
        if os.path.lexists(path):
            raise _exists(path)
        start = _temporary_name(path)
        size = _MAIN_AT + 2 * twin_bytes + round_up(extent_bytes, PAGE)
        with _storage_errors(path), ExitStack() as undo:
            fd, lock = _create_locked(start, path, undo)
            undo.callback(_remove_temporary, start, path)
            if path.exists() or os.fstat(fd).st_nlink != 1:
                raise _exists(path)
            os.fchmod(fd, PRIVATE)
            os.ftruncate(fd, 0)
            allocate(fd, size)
            medium = open_medium(fd)
            format_region(medium, twin_bytes)
            os.fsync(fd)
            try:
                os.link(start, path)
            except FileExistsError:
                raise _exists(path) from None
            sync_folder(path.parent)
            start.unlink()
            region = cls(medium, str(path), lock=lock)
            undo.pop_all()
            return region

    @classmethod
    def open(cls, path: str | Path, *, writable: bool = True) -> Self:
        """Lock, map, check and recover a region. Read-only needs no write permission.

        Raises RegionBusyError, FormatError (another kind of file, or another version), RegionError
        (damaged) and StorageError.
        """
        path = Path(path)
        require_name(path)
        with _storage_errors(path), ExitStack() as undo:
            fd, lock = _open_locked(path, path, os.O_RDWR if writable else os.O_RDONLY, undo)
            if os.fstat(fd).st_size < PAGE:
                raise _no_region(str(path))
            medium = open_medium(fd, writable=writable)
            region = cls(medium, str(path), writable=writable, lock=lock)
            start = _temporary_name(path)
            if writable and start.exists() and path.samefile(start):
                start.unlink()  # its creator was killed between the link and this
            undo.pop_all()
            return region

    @classmethod
    def open_or_create(cls, path: str | Path) -> Self:
        """Open a region to write to it; make one without extents if there is no such file.

        Raises what `open` and `create` raise.
        """
        # Path.exists raises an error for a name that is too long; `create` refuses it.
        return cls.open(path) if os.path.exists(path) else cls.create(path)

    @property
    def granularity(self) -> Granularity:
        """The unit of durability of its medium, and with it what a commit survives."""
        return self.medium.granularity

    def extent(self, name: str) -> Span | None:
        """Offset and length of a named extent, or None if there is none."""
        return self.heap.extents().get(name)

    def add_extent(self, name: str, length: int, fill: FillExtent) -> Span:
        """Create an extent of `length` bytes; `fill` writes it before it gets its name.

        The region grows for it if there is no room. A kill before the name is committed leaves
        free space and nothing else. Raises RegionFullError, StorageError; RegionError if the name
        is taken; RuntimeError (a programming error) inside a transaction, whose roll-back could
        bring back an extent that was dropped in it and then overwritten.
        """
        if self.extent(name) is not None:
            raise RegionError(
                f"{self.name} has an extent {name} already",
                "It was altered while it was open, or the name is taken: choose another one",
            )
        return self._put_extent(name, length, fill)

    def replace_extent(self, name: str, length: int, fill: FillExtent) -> Span:
        """Put a new extent in an old one's place: a stop at any instant leaves one or the other.

        The space of the old one is free afterwards, and is given back to the file system. Raises as
        `add_extent` does, and RegionError if there is no extent of that name.
        """
        old = self.extent(name)
        if old is None:
            raise RegionError(
                f"{self.name} has no extent {name} any more",
                "It was altered while it was open: restore a copy of it, or start a new region",
            )
        span = self._put_extent(name, length, fill)
        self.medium.release(old.offset, round_up(old.length, PAGE))
        return span

    def _put_extent(self, name: str, length: int, fill: FillExtent) -> Span:
        if self.twins.in_transaction:
            raise RuntimeError("an extent is made outside of transactions")
        room = round_up(length, PAGE)
        offset = self.heap.free_area(room)
        if offset is None:
            self._grow_for(room)
            offset = self.heap.free_area(room)
        assert offset is not None
        self.medium.reserve(offset, room)  # it may have been released
        fill(self.medium, offset)  # the first fence of the next transaction makes it durable
        span = Span(offset, length)
        self.heap.set_extent(name, span)
        return span

    def drop_extent(self, name: str) -> None:
        """Forget an extent's name; its space is free. Raises ValueError if there is no such."""
        self.heap.set_extent(name, None)

    def require_held(self) -> None:
        """Raise RegionBusyError in a forked child of the process that opened the region."""
        if self._lock:
            self._lock.require()

    def recover(self) -> None:
        """After a transaction that failed: bring it to an end, as opening the region does."""
        self.twins.recover()

    def consistency_check(self) -> None:
        """Raise RegionError unless the directory is valid and, when IDLE, the twins are equal."""
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
        last = max((round_up(span.end, PAGE) for span in extents), default=self._extents_at)
        size = max(last + length, self.heap.region_bytes)
        self.medium.resize(size)
        self.heap.grow_to(size)


def format_region(medium: Medium, twin_bytes: int) -> None:
    """Write an empty region to a medium of zeros. The magic is stored last, after a fence.

    Raises ValueError if `twin_bytes` is not a multiple of 4096 from 16 KiB to 64 MiB.
    """
    if not MIN_TWIN_BYTES <= twin_bytes <= MAX_TWIN_BYTES or twin_bytes % PAGE:
        raise ValueError("twin_bytes must be a multiple of 4096 from 16 KiB to 64 MiB")
    heap = Heap.formatted(twin_bytes, medium.size)
    for at in (_MAIN_AT, _MAIN_AT + twin_bytes):
        medium.store(at, heap)
        medium.flush(at, len(heap))
    head = _HEADER.pack(MAGIC, VERSION, os.urandom(16), twin_bytes)
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
        raise _no_region(name)
    if version != VERSION:
        raise FormatError(
            f"{name} is a region of version {version}, and this program reads version {VERSION}",
            "Use the release of plinius that made it",
        )
    digest = hashlib.sha256(page[: _HEADER.size]).digest()[:_DIGEST_BYTES]
    intact = page[_HEADER.size : _STATE_AT] == digest and not any(page[12:16] + page[72:])
    fits = MIN_TWIN_BYTES <= twin_bytes <= MAX_TWIN_BYTES and twin_bytes % PAGE == 0
    if not (intact and fits and _MAIN_AT + 2 * twin_bytes <= medium.size):
        raise RegionError(
            f"The header of {name} is damaged, or the file is cut short",
            "Restore a whole copy of it, or start a new region",
        )
    return region_id, twin_bytes


def _no_region(name: str) -> FormatError:
    return FormatError(
        f"{name} is not a Plinius region", "Name a region, or a file that is not there yet"
    )


def _exists(path: Path) -> RegionError:
    return RegionError(f"{path} exists already", "Open it, or name another file (--region)")


def _open_locked(path: Path, region: Path, flags: int, undo: ExitStack) -> tuple[int, FileLock]:
    """Open and lock a file, to write or to read as the flags say; `undo` closes and unlocks it."""
    fd = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK)  # else a FIFO would wait
    undo.callback(os.close, fd)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise not_regular()
    lock = _lock(fd, region, undo, exclusive=bool(flags & os.O_RDWR))
    if not path.exists() or not os.path.samestat(os.fstat(fd), path.stat()):
        what = f"{region} was replaced while it was opened"  # as rekey does: this one has no name
        raise RegionBusyError(what, "Run the same command again")
    return fd, lock


def _create_locked(start: Path, path: Path, undo: ExitStack) -> tuple[int, FileLock]:
    """As _open_locked: a new file, or the one that a killed creation left; never a link."""
    try:
        fd = create_new(start)
    except FileExistsError:
        if not stat.S_ISREG(start.lstat().st_mode):
            raise StorageError(
                f"{start} is in the way of a new region, and is no file",
                "Remove it, or name another region (--region)",
            ) from None
        return _open_locked(start, path, os.O_RDWR | os.O_NOFOLLOW, undo)
    undo.callback(os.close, fd)
    return fd, _lock(fd, path, undo, exclusive=True)


def _lock(fd: int, region: Path, undo: ExitStack, *, exclusive: bool) -> FileLock:
    lock = FileLock(fd, region, exclusive=exclusive)
    undo.callback(lock.release)
    return lock


def _temporary_name(path: Path) -> Path:
    """The name of a region's file until it is complete."""
    return path.with_name(path.name + ".creating")


def _remove_temporary(start: Path, path: Path) -> None:
    """Remove an incomplete file, but not a second name of the complete one."""
    if start.exists() and not (path.exists() and path.samefile(start)):
        start.unlink()


@contextmanager
def _storage_errors(path: Path) -> Iterator[None]:
    """Raise StorageError in place of OSError."""
    try:
        yield
    except OSError as error:
        raise _storage_error(error, path) from None


def _storage_error(error: OSError, path: Path) -> StorageError:
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
