"""The mirrors that this process has open, by file: a second one on a file closes the first.

So a notebook's cell that opens a mirror can be run twice.
"""

import logging
import os
import weakref
from pathlib import Path
from typing import Protocol

from plinius.errors import PliniusError, RegionBusyError

_log = logging.getLogger("plinius")


class Closable(Protocol):
    """Something that is open on a file."""

    def close(self) -> None:
        """Close it; a second call does nothing."""


_open: weakref.WeakValueDictionary[tuple[int, int], Closable] = weakref.WeakValueDictionary()


def register(path: Path, mirror: Closable) -> None:
    """Note what is open on a file, for as long as that object lives."""
    found = _file(path)
    if found:
        _open[found] = mirror


def close_earlier(path: Path) -> None:
    """Close what this process has open on a file, if anything; its error is logged."""
    found = _file(path)
    earlier = _open.pop(found, None) if found else None
    if earlier is None:
        return
    try:
        earlier.close()
    except RegionBusyError:  # it belongs to the parent of this forked process
        pass
    except PliniusError as error:
        _log.warning(
            "The mirror that was open on %s is closed; its last commit had failed: %s", path, error
        )


def _file(path: Path) -> tuple[int, int] | None:
    """Device and inode of a file; None if there is none."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # ValueError: it cannot be a name
        return None
    return status.st_dev, status.st_ino
