"""The audit log of a broker: one JSON object a line of every verdict and lease; never a key."""

import os
import threading
import time
from pathlib import Path

from plinius.errors import StorageError
from plinius.files import PRIVATE
from plinius.jsonvalue import Json, to_json

AUDIT = "audit.jsonl"


class Audit:
    """Appends to the log in a folder; safe to use from several threads. Raises StorageError."""

    def __init__(self, folder: Path) -> None:
        self._path, self._lock = folder / AUDIT, threading.Lock()
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            self._file = os.open(self._path, flags, PRIVATE)
        except OSError as error:
            raise self._refused(error) from None

    def note(self, event: str, client: str, **more: Json) -> None:
        """Write what happened, to whom, and why. Nothing is released before it is noted."""
        # A receipt is checked against the releases, so these survive a power cut too.
        durable = event == "released"
        line = to_json({"time": round(time.time(), 3), "event": event, "client": client, **more})
        with self._lock:
            try:
                if os.write(self._file, line + b"\n") != len(line) + 1:
                    raise OSError("the disk is full")
                if durable:
                    os.fsync(self._file)
            except OSError as error:
                raise self._refused(error) from None

    def close(self) -> None:
        """Sync and close the file."""
        os.fsync(self._file)
        os.close(self._file)

    def _refused(self, error: OSError) -> StorageError:
        return StorageError(
            f"Cannot write {self._path}: {error.strerror or error}", "Check the folder (--state)"
        )
