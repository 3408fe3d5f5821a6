"""What this process has open on a file: a notebook's cell that is run twice finds it here."""

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
        """Let go of it; a second call does nothing."""


_open: weakref.WeakValueDictionary[tuple[int, int], Closable] = weakref.WeakValueDictionary()


def remember(path: Path, it: Closable) -> None:
    """Note what is open on a file, until it is gone."""
    found = _file(path)
    if found:
        _open[found] = it


def close_earlier(path: Path) -> None:
    """Close what this process has open on a file, if anything; what that says is logged."""
    found = _file(path)
    earlier = _open.pop(found, None) if found else None
    if earlier is None:
        return
    try:
        earlier.close()
    except RegionBusyError:  # it belongs to the parent of this forked process
        pass
    except PliniusError as error:
        _log.warning("What was open on %s is closed, and had failed: %s", path, error)


def _file(path: Path) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
