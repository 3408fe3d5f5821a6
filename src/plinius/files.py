"""How files are read and created.

Only regular files are read. A new file appears complete or not at all, and never replaces another.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from plinius.errors import StorageError

PRIVATE = 0o600
"""The mode of every file that this package creates: only its owner can read or write it."""


def require_name(path: str | Path) -> None:
    """Raise StorageError for what cannot be a file's name, as one with a zero byte."""
    try:
        possible = b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        possible = False
    if not possible:
        raise StorageError(f"{str(path)!r} cannot be the name of a file", "Give another path")


def open_to_read(path: str | Path) -> BinaryIO:
    """Open a regular file for reading, without waiting for a FIFO. A link to one is followed.

    Raises StorageError, also for a folder, a FIFO or a device.
    """
    require_name(path)
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            mode = os.fstat(handle).st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                raise not_regular()
            return open(handle, "rb")  # refuses a folder
        except OSError:
            os.close(handle)
            raise
    except OSError as error:
        raise cannot_read(path, error) from None


def read_file(path: str | Path, limit: int) -> bytes:
    """All bytes of a regular file of at most `limit` bytes. Raises StorageError."""
    with open_to_read(path) as file:
        try:
            data = file.read(limit + 1)
            if len(data) > limit:
                raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        except OSError as error:
            raise cannot_read(path, error) from None
    return data


def cannot_read(path: str | Path, error: OSError) -> StorageError:
    """The refusal for a file or folder that the operating system does not let us read."""
    return StorageError(
        f"Cannot read {path}: {error.strerror or error}", "Check the path and its permissions"
    )


def not_regular() -> OSError:
    """The error for a FIFO, a device, or a link where none is followed."""
    return OSError(errno.EINVAL, "Not a regular file")


def create_new(path: Path) -> int:
    """Create a file of mode 0600 and return its descriptor, open for reading and writing.

    An existing file or link is never opened. Raises OSError.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(path, flags, PRIVATE)


@contextmanager
def publish(path: Path) -> Iterator[BinaryIO]:
    """Create the file `path`, mode 0600: the body writes to `path`.part, which is then renamed.

    Before it gets its name, the file is synced. An error in the body removes the .part file; a
    killed process leaves it behind, and the next call removes it. Raises StorageError if `path`
    exists or the file system refuses.
    """
    require_name(path)
    try:
        if os.path.lexists(path):
            raise _exists(path)
        temporary = path.with_name(path.name + ".part")
        temporary.unlink(missing_ok=True)
        with open(create_new(temporary), "w+b") as file:
            try:
                yield file
                file.flush()
                os.fsync(file.fileno())
                _link(temporary, path, file)
            finally:
                if _is_name_of(temporary, file):
                    temporary.unlink()
        sync_folder(path.parent)
    except OSError as error:
        raise StorageError(
            f"Cannot write {path}: {error.strerror or error}",
            "Free some space or choose another folder",
        ) from None


def _link(temporary: Path, path: Path, file: BinaryIO) -> None:
    if not _is_name_of(temporary, file):
        raise StorageError(f"Another process writes {temporary} too", "Let one of them finish")
    try:
        os.link(temporary, path)  # unlike a rename, never replaces a file
    except FileExistsError:
        raise _exists(path) from None


def _is_name_of(path: Path, file: BinaryIO) -> bool:
    """Whether `path` still names this open file, and not one that another process put there."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable. Raises OSError."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _exists(path: Path) -> StorageError:
    return StorageError(f"{path} exists already", "Choose another name, or remove it first")
