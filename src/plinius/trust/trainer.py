"""The trainer's side: makes evidence, and asks a broker for the keys of a job."""

from pathlib import Path

from plinius.trust.attesters import attest
from plinius.trust.evidence import Evidence
from plinius.trust.release import ReleaseKey
from plinius.trust.simulated import DevelopmentKey


def make_evidence(key: ReleaseKey, nonce: bytes, job: bytes, simulated: Path | None) -> Evidence:
    """Evidence of this process, or simulated evidence if a development key is named.

    Raises AttestationError, and for a development key StorageError and KeyFileError.
    """
    if simulated is None:
        return attest(key.public, nonce, job)
    return DevelopmentKey.load(simulated).evidence(key.public, nonce, job)
