"""The ledger of a broker: its leases and anchors, in one file that only grows.

Invariants (proofs: tests/trust/test_ledger.py, tests/trust/test_kills.py):

1. An entry is one line, written by one call and synced before anything it says is answered. A
   line without its end was never answered, and is cut off when the file is opened.
2. Every line names the hash of the line before it: a line that was changed or taken out is found.
3. One process at a time has the file open for writing (flock).
4. Revoked leases are in a file beside it, since another process adds them while a broker runs.
"""

import fcntl
import hashlib
import itertools
import os
import re
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plinius.errors import AnchorError, FormatError, StorageError
from plinius.files import PRIVATE, open_to_read, read_file, sync_folder
from plinius.jsonvalue import Json, from_json, to_json

LEDGER, REVOKED = "ledger", "revoked"
_MAX_LINE = 4096
_MAX_REVOKED = 16 << 20
_START = "0" * 64

Newest = tuple[int, str]
"""The number of a commit and its digest (64 hex digits)."""


@dataclass
class Lease:
    """Keys that were released: to which job and key, until when (seconds since 1970)."""

    job: str
    owner: str
    expires: int


@dataclass
class _Run:
    """What is known of the run of a job: its trainer's lease, and its newest anchored commit."""

    lease: str
    newest: Newest | None = None
    replaced: set[str] = field(default_factory=set)


class Ledger:
    """The leases and anchors of one broker; safe to use from several threads.

    Raises StorageError if the folder cannot be used or another broker uses it, and FormatError if
    the file was altered.
    """

    def __init__(self, folder: Path) -> None:
        self._path, self._revoked_path = folder / LEDGER, folder / REVOKED
        self._lock = threading.Lock()
        self._leases: dict[str, Lease] = {}
        self._runs: dict[str, _Run] = {}
        self._revoked: set[str] = set()
        self._revoked_seen: tuple[int, int] | None = None
        self._last = _START
        self._failed = False
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            self._file = os.open(self._path, flags, PRIVATE)
            try:
                self._begin(folder)
            except BaseException:
                os.close(self._file)
                raise
        except OSError as error:
            raise StorageError(
                f"Cannot use {self._path}: {error.strerror or error}",
                "Check the folder, or name another one (--state)",
            ) from None

    def _begin(self, folder: Path) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StorageError(
                f"{self._path} is in use by another broker", "Stop it first, or name --state"
            ) from None
        whole = self._replay()
        os.ftruncate(self._file, whole)  # what was cut short was never answered
        os.fsync(self._file)
        sync_folder(folder)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def add_lease(self, lease: str, job: str, owner: str, expires: int) -> None:
        """Durably note a lease (32 hex digits). Raises StorageError."""
        with self._lock:
            self._write(
                {"event": "lease", "lease": lease, "job": job, "owner": owner, "expires": expires}
            )

    def lease(self, lease: str) -> Lease | None:
        """What is known of a lease; None if it was never given."""
        return self._leases.get(lease)

    def require_valid(self, lease: str, now: float) -> Lease:
        """The lease. Raises AnchorError if it is unknown, expired, revoked or was replaced."""
        found = self._leases.get(lease)
        if found is None:
            raise _refused("the lease is unknown")
        if now > found.expires:
            raise _refused("the lease has expired")
        if lease in self._read_revoked():
            raise _refused("the owner has revoked the lease")
        run = self._runs.get(found.job)
        if run is not None and lease in run.replaced:
            raise _refused("another trainer continues this run: this one would be a fork")
        return found

    def begin(self, lease: str, run_id: str, now: float) -> Newest | None:
        """Make a lease the only one of its job; returns the newest commit, None without one.

        Raises AnchorError, StorageError.
        """
        with self._lock:
            found = self.require_valid(lease, now)
            run = self._runs.get(found.job)
            if run is None or run.lease != lease:
                self._write({"event": "begin", "lease": lease, "run": run_id})
            return self._runs[found.job].newest

    def advance(
        self, lease: str, old: Newest | None, new: Newest | None, now: float, rollback: bool = False
    ) -> None:
        """Durably replace the newest commit of the lease's job, which must be `old`.

        `rollback` allows a `new` that is not newer. Raises AnchorError, StorageError.
        """
        with self._lock:
            run = self._runs.get(self.require_valid(lease, now).job)
            if run is None or run.lease != lease:
                raise _refused("the lease has not begun")
            if run.newest == new:
                return  # the answer was lost, and it is asked again
            if run.newest != old:
                raise _refused("another commit is the newest: this mirror is a fork of the run")
            if not rollback and (new is None or new[0] <= (old[0] if old else 0)):
                raise _refused("the commit is not newer")
            self._write(
                {
                    "event": "rollback" if rollback else "anchor",
                    "lease": lease,
                    "newest": list(new) if new else None,
                }
            )

    def _read_revoked(self) -> set[str]:
        try:
            status = os.stat(self._revoked_path)
        except FileNotFoundError:
            return self._revoked
        if (status.st_size, status.st_mtime_ns) != self._revoked_seen:
            self._revoked |= _revoked_in(read_file(self._revoked_path, _MAX_REVOKED))
            self._revoked_seen = (status.st_size, status.st_mtime_ns)
        return self._revoked

    def _write(self, event: dict[str, Json]) -> None:
        if self._failed:
            raise StorageError("An earlier entry was not written", "Restart the broker")
        line, hashed = _line(event, self._last)
        try:
            done = os.write(self._file, line)
            if done != len(line):
                raise OSError("the disk is full")
            os.fsync(self._file)
        except OSError as error:
            self._failed = True  # what is on the disk is not known: nothing is answered any more
            raise StorageError(
                f"Cannot write {self._path}: {error.strerror or error}",
                "Free some space, and restart the broker",
            ) from None
        self._last = hashed
        self._apply(event)

    def _replay(self) -> int:
        """Apply all whole lines; returns how many bytes they have."""
        whole = 0
        with open(self._path, "rb") as file:
            for number in itertools.count(1):
                line = file.readline(_MAX_LINE)
                if not line or (len(line) < _MAX_LINE and not line.endswith(b"\n")):
                    return whole
                try:
                    event = from_json(line[:-1])
                    hashed = event.pop("hash")
                    if _line(event, self._last) != (line, hashed):
                        raise ValueError
                    self._apply(event)
                except (ValueError, KeyError, TypeError):
                    raise FormatError(
                        f"Line {number} of {self._path} was altered",
                        "Restore a copy of it; without it, rollbacks cannot be told",
                    ) from None
                self._last = hashed
                whole += len(line)
        raise AssertionError

    def _apply(self, event: dict[str, Any]) -> None:
        kind, lease = event["event"], event["lease"]
        if kind == "lease":
            self._leases[lease] = Lease(event["job"], event["owner"], event["expires"])
            return
        job = self._leases[lease].job
        if kind == "begin":
            run = self._runs.setdefault(job, _Run(lease))
            if run.lease != lease:
                run.replaced.add(run.lease)
                run.lease = lease
        elif kind in ("anchor", "rollback"):
            newest = event["newest"]
            self._runs[job].newest = None if newest is None else (newest[0], newest[1])
        else:
            raise ValueError(f"{kind} is no event")


def revoke(folder: Path, lease: str) -> None:
    """Durably revoke a lease of a broker, also while it runs. Raises StorageError, FormatError."""
    if not re.fullmatch("[0-9a-f]{32}", lease):
        raise FormatError(f"{lease[:40]} is no lease", "Take its 32 hex digits from the audit log")
    with open_to_read(folder / LEDGER) as file:
        known = any(f'"lease":"{lease}"'.encode() in line for line in file)
    if not known:
        raise FormatError(f"{folder} knows no lease {lease}", "Take it from the audit log there")
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
    handle = os.open(folder / REVOKED, flags, PRIVATE)
    try:
        os.write(handle, f"{lease}\n".encode())
        os.fsync(handle)
    finally:
        os.close(handle)
    sync_folder(folder)


def _revoked_in(data: bytes) -> set[str]:
    return set(re.findall(r"^([0-9a-f]{32})$", data.decode("latin-1"), re.MULTILINE))


def _line(event: dict[str, Json], last: str) -> tuple[bytes, str]:
    """The line of an event after one with the hash `last`, and its own hash."""
    hashed = hashlib.sha256(last.encode() + to_json(event)).hexdigest()
    return to_json({**event, "hash": hashed}) + b"\n", hashed


def _refused(why: str) -> AnchorError:
    return AnchorError(f"The anchor refuses: {why}", "Ask the owner; the broker's log has more")
