"""The evidence of a trainer: one envelope for every kind, and what it is bound to.

An envelope is the JSON that `Evidence.encode` writes, byte for byte, of at most
`MAX_EVIDENCE_BYTES`; every other text is refused. Bytes are hex digits in lower case.

    version     2
    kind        "sgx", "tdx", "snp", "tpm" or "simulated"
    public_key  the key that released keys are sealed to (1216 bytes), and the one that signs
                receipts (32 bytes)
    nonce       the broker's challenge (32 bytes)
    job         SHA-256 of the job (32 bytes)
    evidence    what the kind needs: a map from the names in `FIELDS` to bytes

The device signs `report_data`, so that its evidence serves this key, challenge and job only.
"""

import hashlib
import re
from dataclasses import dataclass

from plinius.errors import AttestationError
from plinius.jsonvalue import Json, from_json, to_json

VERSION = 2
MAX_EVIDENCE_BYTES = 64 << 10
PUBLIC_KEY_BYTES = 1248  # 1184 of ML-KEM-768, 32 of X25519, 32 of Ed25519
NONCE_BYTES = 32
JOB_BYTES = 32
REPORT_DATA_BYTES = 64
NO_JOB = bytes(JOB_BYTES)
"""The job of evidence that was made for no job. No broker releases keys for it."""

FIELDS: dict[str, dict[str, int]] = {
    "sgx": {"quote": 16 << 10},
    "tdx": {"quote": 16 << 10},
    "snp": {"report": 1184, "vcek": 4096, "ask": 4096, "ark": 4096},
    "tpm": {"quote": 1024, "signature": 128, "ak": 256, "pcrs": 512},
    "simulated": {"measurement": 32, "signer": 32, "signature": 64},
}
"""The fields of each kind, with the most bytes that each may have."""

_HEX = re.compile(r"(?:[0-9a-f]{2})+")
_KEYS = {"version", "kind", "public_key", "nonce", "job", "evidence"}


@dataclass(frozen=True)
class Evidence:
    """What a trainer shows of itself; see the head of this file for the fields."""

    kind: str
    public_key: bytes
    nonce: bytes
    job: bytes
    fields: dict[str, bytes]

    @property
    def report_data(self) -> bytes:
        """What the device must have signed: `bind` of this envelope's own values."""
        return bind(self.public_key, self.nonce, self.job)

    def encode(self) -> bytes:
        """The envelope."""
        fields: dict[str, Json] = {name: value.hex() for name, value in self.fields.items()}
        return to_json(
            {
                "version": VERSION,
                "kind": self.kind,
                "public_key": self.public_key.hex(),
                "nonce": self.nonce.hex(),
                "job": self.job.hex(),
                "evidence": fields,
            }
        )


def bind(public_key: bytes, nonce: bytes, job: bytes) -> bytes:
    """The 64 bytes that bind evidence to a key, a challenge and a job.

    SHA-256("plinius/evidence/2" | SHA-256(public key) | nonce | job), then 32 zero bytes. All
    parts have a fixed length, so no two different triples give the same text.
    """
    if len(nonce) != NONCE_BYTES or len(job) != JOB_BYTES:
        raise ValueError("a nonce and the digest of a job have 32 bytes each")
    text = b"plinius/evidence/2" + hashlib.sha256(public_key).digest() + nonce + job
    return hashlib.sha256(text).digest().ljust(REPORT_DATA_BYTES, b"\0")


def decode_evidence(data: bytes) -> Evidence:
    """The evidence in an envelope. Raises AttestationError."""
    if len(data) > MAX_EVIDENCE_BYTES:
        raise malformed(f"it has more than {MAX_EVIDENCE_BYTES} bytes")
    try:
        found = from_json(data)
    except ValueError:
        raise malformed("it is no JSON object") from None
    if found.keys() != _KEYS or type(found["version"]) is not int:
        raise malformed("its fields are not those of an envelope")
    if found["version"] != VERSION:
        raise malformed(f"its version is not {VERSION}")
    kind, fields = found["kind"], found["evidence"]
    if not isinstance(kind, str) or kind not in FIELDS:
        raise malformed("its kind is unknown")
    if not isinstance(fields, dict) or fields.keys() != FIELDS[kind].keys():
        raise malformed(f"its evidence has not the fields of {kind} evidence")
    evidence = Evidence(
        kind,
        _exactly(found["public_key"], PUBLIC_KEY_BYTES, "public key"),
        _exactly(found["nonce"], NONCE_BYTES, "nonce"),
        _exactly(found["job"], JOB_BYTES, "job"),
        {name: _at_most(fields[name], most, name) for name, most in FIELDS[kind].items()},
    )
    if evidence.encode() != data:
        raise malformed("it is not written as this format says")
    return evidence


def malformed(why: str) -> AttestationError:
    """The refusal for bytes that are no evidence."""
    return AttestationError(
        f"This is no evidence: {why}", "Make it with plinius attest, of the same release"
    )


def _at_most(value: object, most: int, what: str) -> bytes:
    if not isinstance(value, str) or len(value) > 2 * most or not _HEX.fullmatch(value):
        raise malformed(f"its {what} is not at most {most} bytes in hex")
    return bytes.fromhex(value)


def _exactly(value: object, length: int, what: str) -> bytes:
    if not isinstance(value, str) or len(value) != 2 * length:
        raise malformed(f"its {what} is not {length} bytes in hex")
    return _at_most(value, length, what)
