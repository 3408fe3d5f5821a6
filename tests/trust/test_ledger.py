"""The ledger: what was acknowledged is there after a kill; what was altered is refused."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from plinius.errors import FormatError, PliniusError, StorageError
from plinius.trust.ledger import LEDGER, Ledger, revoke
from trust.brokers import commit

LEASE, JOB, NEVER = "ab" * 16, "cd" * 32, 2**40
WRITER = """
import sys
from pathlib import Path
from plinius.trust.ledger import Ledger
ledger = Ledger(Path(sys.argv[1]))
lease = "%032x" % int(sys.argv[2])
ledger.add_lease(lease, "cd" * 32, "00" * 8, 2**40)
newest = ledger.begin(lease, "00" * 16, 0)
print(newest[0] if newest else 0, flush=True)
number = newest[0] if newest else 0
while True:
    number += 1
    new = (number, "%064x" % number)
    ledger.advance(lease, newest, new, 0)
    newest = new
    print(number, flush=True)
"""


def filled(folder: Path, commits: int = 3) -> Path:
    """A ledger with a lease and some anchored commits."""
    ledger = Ledger(folder)
    ledger.add_lease(LEASE, JOB, "00" * 8, NEVER)
    ledger.begin(LEASE, "00" * 16, 0)
    old = None
    for number in range(1, commits + 1):
        ledger.advance(LEASE, old, commit(number), 0)
        old = commit(number)
    ledger.close()
    return folder / LEDGER


def newest(folder: Path) -> tuple[int, str] | None:
    """The newest commit that a ledger knows."""
    ledger = Ledger(folder)
    found = ledger.begin(LEASE, "00" * 16, 0)
    ledger.close()
    return found


def test_a_ledger_comes_back(tmp_path: Path) -> None:
    """Leases, trainers and commits; the file is its owner's alone."""
    path = filled(tmp_path)
    assert newest(tmp_path) == commit(3)
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_ledger_cut_at_any_byte_opens_or_is_refused(tmp_path: Path) -> None:
    """What was cut within the last line is dropped; the commits before it stand."""
    whole = filled(tmp_path).read_bytes()
    lines = [at + 1 for at, byte in enumerate(whole) if byte == 10]
    for cut in range(lines[1], len(whole) + 1):
        (tmp_path / LEDGER).write_bytes(whole[:cut])
        known = sum(end <= cut for end in lines) - 2
        assert newest(tmp_path) == (commit(known) if known else None)
        assert (tmp_path / LEDGER).read_bytes() == whole[: max(e for e in lines if e <= cut)]


def test_a_ledger_whose_bytes_were_changed_is_refused(tmp_path: Path) -> None:
    """Every byte but the last newline, without which the line was never acknowledged."""
    path = filled(tmp_path)
    whole = path.read_bytes()
    for at in range(0, len(whole) - 1):
        changed = bytearray(whole)
        changed[at] ^= 1
        path.write_bytes(changed)
        with pytest.raises(FormatError, match="was altered"):
            Ledger(tmp_path)
    path.write_bytes(whole.split(b"\n", 1)[1])
    with pytest.raises(FormatError, match="Line 1 of"):
        Ledger(tmp_path)


def test_two_brokers_cannot_share_a_ledger(tmp_path: Path) -> None:
    """The second is refused, until the first has ended."""
    first = Ledger(tmp_path)
    with pytest.raises(StorageError, match="in use by another broker"):
        Ledger(tmp_path)
    first.close()
    Ledger(tmp_path).close()


def test_a_lease_that_was_never_given_cannot_be_revoked(tmp_path: Path) -> None:
    """A typing error is noticed."""
    filled(tmp_path)
    for wrong in ("ab" * 15, "AB" * 16, "00" * 16):
        with pytest.raises(PliniusError, match="no lease"):
            revoke(tmp_path, wrong)


def test_a_disk_that_fails_ends_the_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an entry that may not be durable nothing is acknowledged; a restart goes on."""
    filled(tmp_path)
    ledger = Ledger(tmp_path)
    ledger.begin(LEASE, "00" * 16, 0)

    def fail(_: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail)
        with pytest.raises(StorageError, match="Input/output error"):
            ledger.advance(LEASE, commit(3), commit(4), 0)
    with pytest.raises(StorageError, match="earlier entry was not written"):
        ledger.advance(LEASE, commit(3), commit(4), 0)
    ledger.close()
    assert newest(tmp_path) in (commit(3), commit(4))


def test_a_killed_broker_never_forgets_an_acknowledged_commit(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """SIGKILL at random moments of anchoring, 25 times (100 with --soak): never older."""
    seed = int(os.environ.get("PLINIUS_TEST_SEED", random.randrange(2**32)))
    print(f"PLINIUS_TEST_SEED={seed}")
    rng, acknowledged = random.Random(seed), 0
    for lease in range(100 if request.config.getoption("--soak") else 25):
        command = [sys.executable, "-c", WRITER, str(tmp_path), str(lease)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            begun = int(writer.stdout.readline())
            assert acknowledged <= begun <= acknowledged + 1
            for _ in range(rng.randrange(30)):
                begun = int(writer.stdout.readline())
            writer.send_signal(signal.SIGKILL)
            rest = writer.stdout.read().split("\n")[:-1]  # a line that was cut is no answer
            acknowledged = int(rest[-1]) if rest else begun
            writer.wait()
