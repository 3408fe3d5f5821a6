"""Files that appear whole or not at all, and never over another one; and how files are read."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from plinius.errors import StorageError

PRIVATE = 0o600
"""The mode of whatever this program makes: keys, regions, sealed data, exports, metrics."""


def open_to_read(path: str | Path) -> BinaryIO:
    """A regular file open for reading; a FIFO does not make it wait.

    Raises OSError, also for a folder, a FIFO or a device.
    """
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        mode = os.fstat(handle).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise OSError(errno.EINVAL, "Not a regular file")
        return open(handle, "rb")
    except OSError:
        os.close(handle)
        raise


def read_file(path: str | Path, most: int) -> bytes:
    """All bytes of a regular file of at most `most`. Raises OSError."""
    with open_to_read(path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    return data


@contextmanager
def private() -> Iterator[None]:
    """Files that other code makes meanwhile are its user's alone, by the process's umask."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def create_new(path: Path) -> int:
    """A descriptor of a new file that only its owner can read or write, open for both.

    Nothing that is there already is opened, a link least of all. Raises OSError.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(path, flags, PRIVATE)


@contextmanager
def publish(path: Path) -> Iterator[BinaryIO]:
    """Write to `path`.part; on leaving without an error, sync it and give it its name.

    An error in the body removes the part; a killed run leaves it, and the next run starts it
    anew. Raises StorageError if `path` exists or the file system refuses.
    """
    part = path.with_name(path.name + ".part")
    try:
        if os.path.lexists(path):
            raise _exists(path)
        part.unlink(missing_ok=True)
        with open(create_new(part), "w+b") as file:
            try:
                yield file
                file.flush()
                os.fsync(file.fileno())
                _link(part, path, file)
            finally:
                if _same(part, file):
                    part.unlink()
        sync_folder(path.parent)
    except OSError as error:
        raise StorageError(
            f"Cannot write {path}: {error.strerror or error}",
            "Free some space or choose another folder",
        ) from None


def _link(part: Path, path: Path, file: BinaryIO) -> None:
    if not _same(part, file):
        raise StorageError(f"Another process writes {part} too", "Let one of them finish")
    try:
        os.link(part, path)  # unlike a rename, never replaces a file
    except FileExistsError:
        raise _exists(path) from None


def _same(part: Path, file: BinaryIO) -> bool:
    try:
        return os.path.samestat(part.lstat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def sync_folder(folder: Path) -> None:
    """Make the names in a folder last."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _exists(path: Path) -> StorageError:
    return StorageError(f"{path} exists already", "Choose another name, or remove it first")
