"""The lock on a region's file: one process that writes, or any number that only read."""

import fcntl
import os
import weakref
from pathlib import Path

from plinius.errors import RegionBusyError


class FileLock:
    """A lock that is held until it is released or its process ends, in whatever way.

    flock(2) locks an open file description, here one that only this object has. Mappings keep
    duplicates of the descriptor that they were made with, and a forked child (a data loader's
    worker, for example) inherits all descriptors of its parent. Neither may keep the region locked
    when the trainer is dead, so a child closes its descriptor at once.
    """

    def __init__(self, fd: int, path: Path, *, exclusive: bool) -> None:
        """Lock the file that `fd` refers to; `path` names it in errors.

        Raises RegionBusyError if another process holds it, OSError if it cannot be locked.
        """
        mode = os.O_RDWR if exclusive else os.O_RDONLY
        self._fd: int | None = os.open(f"/proc/self/fd/{fd}", mode | os.O_CLOEXEC)
        try:
            fcntl.flock(self._fd, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except OSError as error:
            self._close()
            if not isinstance(error, BlockingIOError):
                raise
            raise RegionBusyError(
                f"{path} is in use by another process",
                "Wait until it is done, or stop it; then run the same command again",
            ) from None
        _held.add(self)

    def require(self) -> None:
        """Raise RegionBusyError in a forked child of the process that holds it."""
        if self._fd is None:
            raise RegionBusyError(
                "This process was forked from the one that has the region open",
                "Open the region in the process that trains, after it was forked",
            )

    def release(self) -> None:
        """Unlock the file, even if there is a duplicate of the descriptor."""
        if self._fd is not None:
            fcntl.flock(self._fd, fcntl.LOCK_UN)
            self._close()

    def _close(self) -> None:
        """Close the descriptor; in a forked child, this does not unlock the parent's file."""
        if self._fd is not None:
            fd, self._fd = self._fd, None  # first: interrupted, it is not closed twice
            os.close(fd)


_held: weakref.WeakSet[FileLock] = weakref.WeakSet()


def _close_all_in_child() -> None:
    for lock in list(_held):
        lock._close()


os.register_at_fork(after_in_child=_close_all_in_child)
