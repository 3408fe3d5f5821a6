"""Files that appear whole or not at all, and never over another one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from plinius.errors import StorageError


def open_to_read(path: Path) -> BinaryIO:
    """A file open for reading; a FIFO does not make it wait. Raises OSError."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        return open(handle, "rb")
    except OSError:
        os.close(handle)
        raise


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
        with part.open("xb") as file:
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
