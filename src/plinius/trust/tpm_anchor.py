"""A TPM of this machine as the anchor of a mirror, for the one run of a job.

Two NV indices hold it: a counter, which never goes back, and a record of 96 bytes:

    | counter (8) | commit (8) | digest (32) | random (16) | HMAC-SHA256 of these (32) |

Invariants (proofs: tests/trust/test_tpm_anchor.py):

1. Only who has the run's key makes a record, or uses the indices (their auth value is derived of
   it; HMAC sessions).
2. A record counts while the counter has the value that it names, or one less. It is written first,
   and the counter is counted up then: a process that is killed between the two leaves a record
   that names one more, and the next process counts up.
3. So an older record never counts again: it names a value that the counter has passed. A counter
   that is made anew begins beyond every value that the TPM ever had (Part 3, NV_Increment).
4. Who begins writes a record of its own, and counts up: a trainer that began before finds another
   record than its own, and stops. Nothing is acknowledged before record and counter were read
   back and are this process's own.

The commit number 0 with a digest of zeros stands for no commit.
"""

import hmac
import struct

from plinius import sealing
from plinius.errors import AnchorError
from plinius.keys import OwnerKey
from plinius.trust.ledger import Newest
from plinius.trust.tpm_device import COUNTER_BYTES, Index, Tpm

_RECORD = struct.Struct(">QQ32s16s")
_TAG_BYTES = 32
_OWNERS_INDICES = 0x01800000  # to 0x01BFFFFF: what the owner of a TPM defines (TCG registry)
_NOTHING = (0, "00" * 32)


class TpmAnchor:
    """The TPM as the anchor of a mirror (plinius.mirror.anchoring.Anchor).

    `terms` is the digest of the job's terms (32 bytes): a job has one run. The TPM is opened here.
    Raises AnchorError.
    """

    def __init__(
        self, run_key: OwnerKey, terms: bytes, every: int, accept_rollback: bool = False
    ) -> None:
        self.every, self.accept_rollback = every, accept_rollback
        self._mac_key = run_key.object_key("tpm-record", terms)
        place = int.from_bytes(run_key.object_key("tpm-place", terms)[:4], "big") % (1 << 21)
        first = _OWNERS_INDICES + 2 * place
        self.counter = Index(first, COUNTER_BYTES, True)
        self.record = Index(first + 1, _RECORD.size + _TAG_BYTES, False)
        self._tpm = Tpm(run_key.object_key("tpm-auth", terms))
        self._mine: bytes | None = None

    def __repr__(self) -> str:
        return f"TpmAnchor({self.counter.handle:#x}, {self.record.handle:#x})"

    def close(self) -> None:
        """Let go of the TPM."""
        self._tpm.close()

    def begin(self, run_id: str) -> Newest | None:
        """Make this trainer the only one of its run; the newest commit. Raises AnchorError."""
        tpm = self._tpm
        if tpm.is_written(self.record):
            if not tpm.is_written(self.counter):
                raise AnchorError(
                    "The TPM's counter was removed, and its record of the newest commit is there",
                    "The anchor is lost: ask the owner for another job",
                )
            counter = self._count()
            named, newest = self._decoded(tpm.read(self.record), counter)
            if named > counter:  # the process before was killed between the two
                tpm.count(self.counter)
                counter += 1
        else:  # nothing was ever acknowledged, or the indices were removed
            for index in (self.record, self.counter):
                if tpm.is_written(index) is None:
                    tpm.define(index)
            tpm.count(self.counter)
            newest, counter = None, self._count()
        self._store(counter, newest)
        return newest

    def advance(self, old: Newest | None, new: Newest) -> None:
        """Have the TPM remember a newer commit. Raises AnchorError."""
        self._replace(old, new)

    def rewind(self, old: Newest | None, new: Newest | None) -> None:
        """Have the TPM accept a rollback: who gives the command has the key. Raises AnchorError."""
        self._replace(old, new)

    def _replace(self, old: Newest | None, new: Newest | None) -> None:
        data, counter = self._tpm.read(self.record), self._count()
        if data != self._mine:
            raise _taken_over()
        named, newest = self._decoded(data, counter)
        if named != counter:
            raise _taken_over()
        if newest == new:
            return
        if newest != old:
            raise AnchorError("The TPM knows another commit as the newest", "Ask the owner")
        self._store(counter, new)

    def _store(self, counter: int, newest: Newest | None) -> None:
        """Write a record for the counter's next value, and count up."""
        commit, digest = newest or _NOTHING
        plain = _RECORD.pack(counter + 1, commit, bytes.fromhex(digest), sealing.fresh(16))
        data = plain + self._tag(plain)
        self._tpm.write(self.record, data)
        self._tpm.count(self.counter)
        if self._tpm.read(self.record) != data or self._count() != counter + 1:
            raise _taken_over()
        self._mine = data

    def _count(self) -> int:
        return int.from_bytes(self._tpm.read(self.counter), "big")

    def _decoded(self, data: bytes, counter: int) -> tuple[int, Newest | None]:
        """The count and the commit that a record names.

        Raises AnchorError unless it is authentic, and counts while the counter has this value.
        """
        plain, tag = data[: _RECORD.size], data[_RECORD.size :]
        if not hmac.compare_digest(tag, self._tag(plain)):
            raise AnchorError(
                "The TPM's record of the newest commit is not authentic",
                "Somebody wrote over it: the anchor is lost, ask the owner for another job",
            )
        named, commit, digest, _ = _RECORD.unpack(plain)
        if named not in (counter, counter + 1):
            raise AnchorError(
                f"The TPM's record was rolled back: it names count {named}, and the counter is at "
                f"{counter}",
                "The anchor is lost: ask the owner for another job",
            )
        return named, (commit, digest.hex()) if commit else None

    def _tag(self, plain: bytes) -> bytes:
        return hmac.digest(self._mac_key, b"plinius/tpm-anchor/1|" + plain, "sha256")


def _taken_over() -> AnchorError:
    return AnchorError(
        "The anchor refuses: another trainer continues this run, and this one would be a fork",
        "End one of them",
    )
