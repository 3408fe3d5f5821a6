"""The lock of a region's file: one process that writes, or any number that read."""

import fcntl
import os
import weakref
from pathlib import Path

from plinius.errors import RegionBusyError


class FileLock:
    """Held until it is released or its process ends, however that ends.

    It lies on an open file description of its own. Mappings keep duplicates of the descriptor they
    were made with, and a forked child (a data loader's worker) keeps everything open that its
    parent had: neither may keep a dead trainer's region locked. So a child drops it at once.
    """

    def __init__(self, fd: int, path: Path, *, exclusive: bool) -> None:
        """Lock the file behind `fd`. Raises RegionBusyError, and OSError where that cannot be."""
        mode = os.O_RDWR if exclusive else os.O_RDONLY
        self._fd: int | None = os.open(f"/proc/self/fd/{fd}", mode | os.O_CLOEXEC)
        try:
            fcntl.flock(self._fd, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except OSError as error:
            self._drop()
            if not isinstance(error, BlockingIOError):
                raise
            raise RegionBusyError(
                f"{path} is in use by another process",
                "Wait until it is done, or stop it; then run the same command again",
            ) from None
        _held.add(self)

    def require(self) -> None:
        """Raise RegionBusyError in a child of the process that holds it."""
        if self._fd is None:
            raise RegionBusyError(
                "This process was forked from the one that has the region open",
                "Open the region in the process that trains, after it was forked",
            )

    def release(self) -> None:
        """Let go of it, whoever has a duplicate of its descriptor."""
        if self._fd is not None:
            fcntl.flock(self._fd, fcntl.LOCK_UN)
            self._drop()

    def _drop(self) -> None:
        """Close it: in a child that leaves the parent's lock as it is."""
        if self._fd is not None:
            fd, self._fd = self._fd, None  # first: interrupted, it is not closed twice
            os.close(fd)


_held: weakref.WeakSet[FileLock] = weakref.WeakSet()


def _drop_all() -> None:
    for lock in list(_held):
        lock._drop()


os.register_at_fork(after_in_child=_drop_all)
