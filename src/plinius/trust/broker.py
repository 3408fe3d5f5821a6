"""The broker, on the owner's side: challenge, evidence, verdict, release; and the anchor.

What it does, without its transport (trust/service.py). Every refusal to a trainer is one
sentence; the audit log has the reasons.
"""

import hashlib
import threading
import time
from collections.abc import Callable
from pathlib import Path

from plinius import sealing
from plinius.errors import AnchorError, AttestationError, KeyFileError, PliniusError
from plinius.jsonvalue import Json, to_json
from plinius.key_file import load_key
from plinius.keys import OwnerKey
from plinius.trust.audit import Audit
from plinius.trust.evidence import NONCE_BYTES, decode_evidence
from plinius.trust.ledger import Ledger
from plinius.trust.messages import AnchorRequest, decode_request, encode_answer
from plinius.trust.policy import JobPolicy, Policy
from plinius.trust.release import (
    DATASET_PURPOSES,
    LEASE_BYTES,
    Release,
    lease_key,
    run_secret,
    seal_release,
)
from plinius.trust.verify import judge

MAX_CHALLENGES = 10_000
"""Challenges that are open at once; more are refused."""


class Broker:
    """Releases the keys of jobs to trainers that the policy accepts; safe from several threads.

    `keys` are the owners' keys by their public id. `folder` holds ledger and audit log. Raises
    KeyFileError if the policy names a key that is not there, and what Ledger and Audit raise.
    """

    def __init__(
        self,
        policy: Policy,
        keys: dict[bytes, OwnerKey],
        folder: Path,
        clock: Callable[[], float] = time.time,
    ) -> None:
        for job in policy.jobs.values():
            if job.owner_key not in keys:
                raise KeyFileError(
                    f"The policy names the key {job.owner_key.hex()}, which is not there",
                    "Put its file into the folder of keys (--keys), as NAME.key",
                )
        self._policy, self._keys, self._clock = policy, keys, clock
        self._challenges: dict[bytes, float] = {}
        self._lock = threading.Lock()
        self.ledger = Ledger(folder)
        self._audit = Audit(folder)

    def close(self) -> None:
        """Close its files."""
        self.ledger.close()
        self._audit.close()

    def challenge(self) -> dict[str, Json]:
        """A fresh nonce, which serves once. Raises AttestationError if too many are open."""
        now = self._clock()
        with self._lock:
            while self._challenges:
                oldest = next(iter(self._challenges))
                if self._challenges[oldest] >= now:
                    break
                del self._challenges[oldest]
            if len(self._challenges) >= MAX_CHALLENGES:
                raise AttestationError("The broker has too many open challenges", "Try again later")
            nonce = sealing.fresh(NONCE_BYTES)
            self._challenges[nonce] = now + self._policy.nonce_seconds
        return {"nonce": nonce.hex(), "seconds": self._policy.nonce_seconds}

    def release(self, envelope: bytes, client: str) -> dict[str, Json]:
        """Judge evidence; the sealed keys of its job. Raises AttestationError, StorageError."""
        about: dict[str, Json] = {"evidence": hashlib.sha256(envelope).hexdigest()}
        try:
            evidence = decode_evidence(envelope)
            about |= {"kind": evidence.kind, "job": evidence.job.hex()}
            job = self._policy.jobs.get(evidence.job)
            if not self._take(evidence.nonce):
                raise AttestationError("the challenge is unknown, used or expired", "-")
            if job is None:
                raise AttestationError("the policy does not name this job", "-")
            verdict = judge(evidence, job.rules, int(self._clock()))
            about["verdict"] = verdict.as_json()
            if not verdict.accepted:
                raise AttestationError("no rule of the job accepts the evidence", "-")
            lease = sealing.fresh(LEASE_BYTES)
            release = self._release(job, lease)
            sealed = seal_release(release, evidence.public_key, lease, envelope)
        except AttestationError as error:
            self._audit.note("refused", client, **about, reason=error.what)
            raise AttestationError(
                "The broker refuses this trainer", "Ask the owner: the broker's log says why"
            ) from None
        expires = int(self._clock()) + job.lease_seconds
        self.ledger.add_lease(lease.hex(), job.digest.hex(), job.owner_key.hex(), expires)
        self._audit.note("released", client, **about, lease=lease.hex(), expires=expires)
        return {"lease": lease.hex(), "sealed": sealed.hex()}

    def anchor(self, data: bytes, client: str) -> bytes:
        """Answer an authenticated request of a lease. Raises AttestationError, StorageError."""
        request, tag = decode_request(data)
        lease = self.ledger.lease(request.lease)
        if lease is None:
            raise AttestationError("The lease is unknown", "Ask for new keys")
        owner, job = bytes.fromhex(lease.owner), bytes.fromhex(lease.job)
        if owner not in self._keys:
            raise AttestationError("The key of the lease is gone", "Ask the owner")
        key = lease_key(self._keys[owner], bytes.fromhex(request.lease))
        if not request.is_tagged(key, tag):
            raise AttestationError("The request is not authentic", "Ask for new keys")
        try:
            newest, refusal = self._anchored(request, self._policy.jobs.get(job)), None
        except AnchorError as error:
            newest, refusal = None, error.what
        if refusal is not None or request.ask != "advance":
            old, new = _listed(request.old), _listed(request.new)
            self._audit.note(
                request.ask, client, lease=request.lease, job=lease.job, run=request.run,
                old=old, new=new, refusal=refusal,
            )  # fmt: skip
        return encode_answer(key, tag, newest, refusal)

    def _anchored(self, request: AnchorRequest, job: JobPolicy | None) -> tuple[int, str] | None:
        now = self._clock()
        if job is None:
            raise AnchorError("The anchor refuses: the policy no longer names this job", "-")
        if request.ask == "begin":
            return self.ledger.begin(request.lease, request.run, now)
        rollback = request.ask == "rewind"
        if rollback and not job.allow_rollback:
            raise AnchorError("The anchor refuses: the policy allows no rollback of this job", "-")
        self.ledger.advance(request.lease, request.old, request.new, now, rollback)
        return request.new

    def _take(self, nonce: bytes) -> bool:
        """Use up a challenge; whether it was open."""
        with self._lock:
            return self._challenges.pop(nonce, 0.0) >= self._clock()

    def _release(self, job: JobPolicy, lease: bytes) -> Release:
        owner = self._keys[job.owner_key]
        keys = {
            (purpose, dataset.salt): owner.object_key(purpose, dataset.salt)
            for dataset in job.datasets
            for purpose in DATASET_PURPOSES
        }
        secret = run_secret(owner, job.digest)
        return Release(secret, owner.id, keys, lease_key(owner, lease), job.anchor_every)


def load_keys(folder: Path) -> dict[bytes, OwnerKey]:
    """The owners' keys in the files *.key of a folder, by id. Raises KeyFileError."""
    keys = [load_key(path) for path in sorted(folder.glob("*.key"))]
    if not keys:
        raise KeyFileError(f"{folder} has no key files", "Put NAME.key of plinius keygen there")
    return {key.id: key for key in keys}


def refusal_of(error: PliniusError) -> bytes:
    """The body of a refusal: what was found, and what to do."""
    return to_json({"refused": error.what, "todo": error.todo})


def _listed(newest: tuple[int, str] | None) -> Json:
    return list(newest) if newest else None
