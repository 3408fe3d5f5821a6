"""What the files of a broker say of a receipt: that this broker gave its keys, and knew its commit.

A receipt alone does not say which broker gave the keys. A host can run one of its own, with a key
of its own and other data under the ids of the job, and get a receipt of an honest trainer for it.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from plinius.errors import AttestationError, FormatError
from plinius.files import cannot_read, open_to_read
from plinius.jsonvalue import from_json
from plinius.trust.audit import AUDIT
from plinius.trust.ledger import LEDGER

_MAX_LINE = 1 << 16


def require_recorded(said: dict[str, Any], job: str, folder: Path) -> None:
    """Raise AttestationError unless a broker's files know the release and the last commit.

    `said` is what a verified receipt states, `job` the digest of its job (64 hex digits). The
    broker may be running. Also raises StorageError and FormatError for files that are none.
    """
    evidence = hashlib.sha256(said["evidence"].encode()).hexdigest()
    released = (it for it in _entries(folder / AUDIT) if it.get("event") == "released")
    if not any((it.get("evidence"), it.get("job")) == (evidence, job) for it in released):
        raise _unknown("this broker released no keys for its evidence")
    leases = set[object]()
    for entry in _entries(folder / LEDGER):
        if entry.get("event") == "lease" and entry.get("job") == job:
            leases.add(entry.get("lease"))
        known = entry.get("event") in ("anchor", "rollback") and entry.get("lease") in leases
        if known and entry.get("newest") == said["last"]:
            return
    raise _unknown("this broker does not know its last commit")


def _entries(path: Path) -> Iterator[dict[str, Any]]:
    """The entries of a file of JSON lines; a last line that is being written is left out."""
    try:
        with open_to_read(path) as file:
            while (line := file.readline(_MAX_LINE)).endswith(b"\n"):
                entry = from_json(line)
                if not isinstance(entry, dict):
                    raise ValueError
                yield entry
    except OSError as error:
        raise cannot_read(path, error) from None
    except ValueError:
        raise FormatError(f"{path} is no file of a broker", "Name its --state folder") from None


def _unknown(why: str) -> AttestationError:
    return AttestationError(
        f"The receipt does not hold: {why}",
        "Somebody else's broker gave the keys, or the files are not the newest",
    )
