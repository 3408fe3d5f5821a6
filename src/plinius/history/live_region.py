"""A region that is read while another process may write to it: no lock is taken, none is needed.

The newest committed slot is not written to until one more commit is made (slots/protocol.py), and
what was overtaken does not open: it is authenticated. So a reader that fails reads again, from the
commit that is the newest then. Only if no process writes, a failure is what the region holds.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from plinius.errors import (
    FormatError,
    PliniusError,
    RegionBusyError,
    RegionError,
    SealError,
    StorageError,
)
from plinius.files import open_to_read
from plinius.pm.open_medium import open_medium
from plinius.pm.region import Region

PATIENCE = 10.0
"""Seconds after which a region in use that cannot be read is refused as what it then is."""

_T = TypeVar("_T")
_MAY_BE_OVERTAKEN = (SealError, RegionError, FormatError, StorageError)


def read_region(path: Path, read: Callable[[Region], _T]) -> _T:
    """What `read` returns of a region, opened read-only; it is called again if it was overtaken.

    Nothing is written, and a trainer that uses the region, or starts meanwhile, is not disturbed.
    Raises what `read` and `Region.open` raise.
    """
    started, pause = time.monotonic(), 0.0
    while True:
        try:
            with open_unlocked(path) as region:
                return read(region)
        except _MAY_BE_OVERTAKEN as failure:
            found: PliniusError = failure
        try:
            with Region.open(path, writable=False) as region:  # nobody writes: it is as it says
                return read(region)
        except RegionBusyError:
            if time.monotonic() - started > PATIENCE:
                raise found from None
        time.sleep(pause)
        pause = min(0.2, 2 * pause + 0.001)


def open_unlocked(path: Path) -> Region:
    """A region to read, without a lock; its structure may be that of a moment during a change.

    Raises FormatError, RegionError, StorageError.
    """
    try:
        with open_to_read(path) as file:
            fd = os.dup(file.fileno())
        try:
            medium = open_medium(fd, writable=False)
        except BaseException:
            os.close(fd)
            raise
    except OSError as error:
        raise StorageError(
            f"Cannot use {path} as a region: {error.strerror or error}",
            "Name a region made by plinius train",
        ) from None
    try:
        return Region(medium, str(path), writable=False)
    except BaseException:
        medium.close()
        raise
