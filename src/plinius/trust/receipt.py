"""The receipt of a training run: an in-toto statement in a DSSE envelope, signed by the trainer.

docs/formats/receipt.md describes it. The key that signs is bound in the evidence that the receipt
carries, so an owner verifies it with the policy and the public half of the signing key alone.
"""

import base64
import binascii
import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from plinius.errors import AttestationError, FormatError, PliniusError
from plinius.jsonvalue import Json, from_json, to_json
from plinius.trust.evidence import decode_evidence
from plinius.trust.job_file import SignedJob, read_job
from plinius.trust.policy import Policy
from plinius.trust.release import ReleaseKey
from plinius.trust.signing import PUBLIC_BYTES, Signer
from plinius.trust.verify import Verdict, judge

MAX_RECEIPT_BYTES = 512 << 10
PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "urn:plinius:receipt:v1"
_PREDICATE = {
    "made", "plinius", "job", "run", "iteration", "datasets", "first", "last", "restarts",
    "restart_count", "anchor", "accuracy", "evidence",
}  # fmt: skip


@dataclass(frozen=True)
class Verified:
    """A receipt that holds: what it says, and the verdict on its evidence."""

    predicate: dict[str, Any]
    job: SignedJob
    verdict: Verdict


def sign_receipt(predicate: dict[str, Json], key: ReleaseKey) -> bytes:
    """The file of a receipt; `predicate` has the fields of docs/formats/receipt.md."""
    assert predicate.keys() == _PREDICATE
    payload = to_json(_statement(predicate))
    signed: dict[str, Json] = {
        "keyid": hashlib.sha256(key.public[-PUBLIC_BYTES:]).hexdigest(),
        "sig": base64.b64encode(key.sign(_message(payload))).decode(),
    }
    data = to_json(
        {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [signed],
        }
    )
    if len(data) > MAX_RECEIPT_BYTES:
        raise FormatError(f"The receipt has {len(data)} bytes", "Its job is too long")
    return data


def verify_receipt(
    data: bytes, policy: Policy, owner: Signer, at: datetime | None = None
) -> Verified:
    """What a receipt says, if the policy accepts its evidence and all of it belongs together.

    The evidence is judged as of `at`, else as of the time that the receipt names. Raises
    FormatError for what is no receipt, AttestationError for one that does not hold, and what
    `read_job` raises.
    """
    payload, keyid, signature = _opened(data)
    try:
        statement = from_json(payload)
        predicate: dict[str, Any] = statement["predicate"]
        evidence = decode_evidence(predicate["evidence"].encode())
        signer = Signer(evidence.public_key[-PUBLIC_BYTES:])
        if keyid != hashlib.sha256(signer.public).hexdigest():
            raise _does_not_hold("its key is not the one in its evidence")
        if not signer.verifies(_message(payload), signature):
            raise _does_not_hold("its signature is not that of the key in its evidence")
        # From here on it is what the process with this evidence said.
        if predicate.keys() != _PREDICATE or payload != to_json(_statement(predicate)):
            raise malformed("its statement is not of this version")
        made = datetime.strptime(predicate["made"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
        if (named := policy.jobs.get(evidence.job)) is None:
            raise _does_not_hold("the policy does not name its job")
        verdict = judge(evidence, named.rules, int((at or made).timestamp()))
        if not verdict.accepted:
            reasons = "; ".join(f"{rule}: {one[0]}" for rule, one in verdict.reasons.items())
            raise _does_not_hold(f"the policy refuses its evidence ({reasons})")
        job = read_job(predicate["job"].encode(), owner, "The job in the receipt")
        _require_consistent(predicate, job, evidence.job)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise malformed("its statement is not of this version") from None
    return Verified(predicate, job, verdict)


def _require_consistent(said: dict[str, Any], signed: SignedJob, digest: bytes) -> None:
    """Raise AttestationError unless the parts of a receipt belong together."""
    job = signed.job
    if bytes.fromhex(signed.digest) != digest:
        raise _does_not_hold("its job is not the one of its evidence")
    if [[one[0], one[1]] for one in said["datasets"]] != [[it.role, it.id] for it in job.datasets]:
        raise _does_not_hold("its datasets are not those of its job")
    if job.run not in ("any", said["run"]) or said["iteration"] > job.recipe.iterations:
        raise _does_not_hold("its run is not one of its job")
    if said["anchor"] != said["last"] or said["last"][0] < 1:
        raise _does_not_hold("its last commit is not the one that its anchor knew")


def _statement(predicate: dict[str, Any]) -> dict[str, Json]:
    subject: Json = {
        "name": f"plinius-run:{predicate['run']}",
        "digest": {"sha256": predicate["last"][1]},
    }
    return {
        "_type": STATEMENT_TYPE,
        "subject": [subject],
        "predicateType": PREDICATE_TYPE,
        "predicate": predicate,
    }


def _opened(data: bytes) -> tuple[bytes, str, bytes]:
    """Payload, key id and signature of an envelope that is written in the one way there is."""
    if len(data) > MAX_RECEIPT_BYTES:
        raise malformed(f"it has more than {MAX_RECEIPT_BYTES} bytes")
    try:
        found = from_json(data)
        (signed,) = found["signatures"]
        payload, signature = _from_base64(found["payload"]), _from_base64(signed["sig"])
        keyid = str(signed["keyid"])
        again: dict[str, Json] = {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [{"keyid": keyid, "sig": base64.b64encode(signature).decode()}],
        }
        if to_json(again) != data:
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise malformed("it is no envelope of DSSE as this format writes it") from None
    return payload, keyid, signature


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        raise ValueError("it is not base64") from None


def _message(payload: bytes) -> bytes:
    """What is signed: the pre-authentication encoding of DSSE 1.0."""
    kind = PAYLOAD_TYPE.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def malformed(why: str) -> PliniusError:
    """The refusal for bytes that are no receipt."""
    return FormatError(f"This is no receipt: {why}", "Make it with plinius receipt, same release")


def _does_not_hold(why: str) -> AttestationError:
    return AttestationError(f"The receipt does not hold: {why}", "Ask whoever made it for another")
