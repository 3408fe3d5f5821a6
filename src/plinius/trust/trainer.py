"""The trainer's side: makes evidence, gets the keys of a job from a broker, uses it as anchor."""

import logging
import time
from dataclasses import dataclass
from pathlib import Path

from plinius import sealing
from plinius.errors import AnchorError, AttestationError
from plinius.jsonvalue import from_json
from plinius.keys import OwnerKey
from plinius.sealing import KEY_BYTES
from plinius.trust.attesters import attest
from plinius.trust.client import Address, Client, UnreachableError
from plinius.trust.evidence import NONCE_BYTES, Evidence, bind
from plinius.trust.ledger import Newest
from plinius.trust.measure import Measure
from plinius.trust.messages import AnchorRequest, decode_answer
from plinius.trust.release import LEASE_BYTES, DatasetKeys, Release, ReleaseKey
from plinius.trust.secret_memory import SecretMemory
from plinius.trust.simulated import DevelopmentKey
from plinius.trust.tpm import quote_by_tpm

RETRY_SECONDS = 60.0
"""For so long a trainer asks again for an anchor that does not answer; then it stops."""

_log = logging.getLogger("plinius")


@dataclass(frozen=True)
class Source:
    """Where evidence comes from: a development key, a TPM's AK (its handle), or the TEE here."""

    simulated: Path | None = None
    tpm: str | None = None


def make_evidence(key: ReleaseKey, nonce: bytes, job: bytes, source: Source) -> Evidence:
    """Evidence of this process, for a key, a challenge and a job.

    Raises AttestationError, NotInstalledError, and for a development key StorageError and
    KeyFileError.
    """
    if source.simulated is not None:
        return DevelopmentKey.load(source.simulated).evidence(key.public, nonce, job)
    if source.tpm is not None:
        fields = quote_by_tpm(source.tpm, bind(key.public, nonce, job))
        return Evidence("tpm", key.public, nonce, job, fields)
    return attest(key.public, nonce, job)


_TEE = Source()


@dataclass(frozen=True)
class Granted:
    """What a broker gave: the key of the run, the keys of its datasets, and its anchor.

    `key_memory` says whether they are kept in memory of their own. `key` is bound in `evidence`,
    the envelope that the broker accepted.
    """

    run_key: OwnerKey
    dataset_keys: DatasetKeys
    anchor: "BrokerAnchor"
    evidence_kind: str
    key_memory: Measure
    key: ReleaseKey
    evidence: bytes


def ask_for_keys(
    address: Address, job: bytes, source: Source = _TEE, *, accept_rollback: bool = False
) -> Granted:
    """Attest to a broker and get the keys of a job; they stay in the memory of this process.

    `job` is the job's SHA-256 (32 bytes). Raises AttestationError, StorageError, KeyFileError.
    """
    client = Client(address)
    key = ReleaseKey()
    try:
        nonce = bytes.fromhex(from_json(client.post("/v1/challenge", b""))["nonce"])
        if len(nonce) != NONCE_BYTES:
            raise ValueError
        evidence = make_evidence(key, nonce, job, source)
        envelope = evidence.encode()
        answer = from_json(client.post("/v1/release", envelope))
        lease, sealed = bytes.fromhex(answer["lease"]), bytes.fromhex(answer["sealed"])
        if len(lease) != LEASE_BYTES:
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise AttestationError(
            f"{address.url} does not answer as a broker", "Check the address"
        ) from None
    release = key.open(sealed, lease, envelope)
    memory = SecretMemory((len(release.datasets) + 2) * KEY_BYTES)
    release = release.kept_in(memory)
    anchor = BrokerAnchor(client, release, lease, accept_rollback)
    datasets = DatasetKeys(release.owner_id, release.datasets)
    run = OwnerKey(release.run_key)
    return Granted(run, datasets, anchor, evidence.kind, memory.measure, key, envelope)


class BrokerAnchor:
    """The broker as the anchor of a mirror (plinius.mirror.anchoring.Anchor)."""

    def __init__(
        self, client: Client, release: Release, lease: bytes, accept_rollback: bool
    ) -> None:
        self._client, self._key, self._lease = client, release.lease_key, lease.hex()
        self._run = ""
        self.every, self.accept_rollback = release.anchor_every, accept_rollback

    def __repr__(self) -> str:
        return f"BrokerAnchor(lease={self._lease})"

    def begin(self, run_id: str) -> Newest | None:
        """Make this trainer the only one of its run; the newest commit. Raises AnchorError."""
        self._run = run_id
        return self._ask("begin", None, None)

    def advance(self, old: Newest | None, new: Newest) -> None:
        """Have the broker remember a newer commit. Raises AnchorError."""
        self._ask("advance", old, new)

    def rewind(self, old: Newest | None, new: Newest | None) -> None:
        """Have the broker accept a rollback, if the policy allows it. Raises AnchorError."""
        self._ask("rewind", old, new)

    def _ask(self, ask: str, old: Newest | None, new: Newest | None) -> Newest | None:
        fresh = sealing.fresh(16).hex()
        body, tag = AnchorRequest(self._lease, ask, self._run, old, new, fresh).encode(self._key)
        until, pause = time.monotonic() + RETRY_SECONDS, 0.1
        while True:
            try:
                newest, refusal = decode_answer(
                    self._key, tag, self._client.post("/v1/anchor", body)
                )
            except (UnreachableError, AttestationError, ValueError) as error:
                # Only an authentic answer counts: anybody could refuse in the broker's name.
                if time.monotonic() > until:
                    raise AnchorError(
                        f"The anchor gave no authentic answer for {RETRY_SECONDS:.0f} s: {error}",
                        "Check the broker; the same command then resumes the run",
                    ) from None
                _log.warning("The anchor does not answer, and is asked again: %s", error)
                time.sleep(pause)
                pause = min(5.0, 2 * pause)
                continue
            if refusal is not None:
                raise AnchorError(refusal, "Ask the owner; the broker's audit log has more")
            return newest
