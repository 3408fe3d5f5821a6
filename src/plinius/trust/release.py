"""How keys are released: sealed by HPKE (hpke.py) to the key that the evidence is bound to.

`info` holds the digest of the whole evidence and the lease, so that
an answer opens for one exchange only.

What is released (never the owner's own key):

- of a run, its *run key*: HKDF(owner's key, salt = digest of the job, "plinius/1/run"). To the
  mirror it is an owner's key like any other, so the format of regions does not change;
- of each dataset of the job, the two keys of the format (docs/formats/owner-key.md) for its salt.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.hpke import MLKEM768X25519PrivateKey

from plinius.errors import AttestationError, KeyFileError
from plinius.jsonvalue import Json, from_json, to_json
from plinius.keys import OwnerKey
from plinius.sealing import Bytes, Sealer
from plinius.trust import hpke
from plinius.trust.evidence import PUBLIC_KEY_BYTES
from plinius.trust.secret_memory import SecretMemory
from plinius.trust.signing import SigningKey

DATASET_PURPOSES = ("dataset-header", "dataset-records")
LEASE_BYTES = 16
MAX_RELEASE_BYTES = 256 << 10


class ReleaseKey:
    """The fresh keys of one process, which its evidence is bound to: released keys are sealed to
    one, and the other signs receipts. Their private halves stay in memory.
    """

    def __init__(self) -> None:
        self._mlkem, self._x25519 = MLKEM768PrivateKey.generate(), X25519PrivateKey.generate()
        self._signing = SigningKey.generate()
        self._private = MLKEM768X25519PrivateKey(self._mlkem, self._x25519)

    def __repr__(self) -> str:
        return "ReleaseKey(<key>)"

    @property
    def public(self) -> bytes:
        """The public halves: 1184 bytes of ML-KEM-768, 32 of X25519, 32 of Ed25519."""
        x25519 = self._x25519.public_key().public_bytes_raw()
        mlkem = self._mlkem.public_key().public_bytes_raw()
        return mlkem + x25519 + self._signing.signer.public

    def sign(self, message: bytes) -> bytes:
        """A signature (64 bytes) by the key at the end of `public`."""
        return self._signing.sign(message)

    def open(self, sealed: bytes, lease: bytes, evidence: bytes) -> "Release":
        """What a broker released for an envelope. Raises AttestationError."""
        try:
            return Release.decode(hpke.SUITE.decrypt(sealed, self._private, info(lease, evidence)))
        except (InvalidTag, ValueError):
            raise AttestationError(
                "The broker's answer does not open", "Ask again; check the broker's address"
            ) from None


@dataclass(frozen=True, repr=False)
class Release:
    """The secrets of one lease: the run key (32 bytes), the keys of datasets, the lease's key.

    `datasets` maps (purpose, salt) to a key. `lease_key` authenticates what the trainer asks of
    the anchor, and the broker's answers. `owner_id` is the public id of the owner's key.
    """

    run_key: Bytes
    owner_id: bytes
    datasets: Mapping[tuple[str, bytes], Bytes]
    lease_key: Bytes
    anchor_every: int

    def kept_in(self, memory: SecretMemory) -> "Release":
        """The same, with its keys in that memory."""
        return replace(
            self,
            run_key=memory.keep(self.run_key),
            datasets={name: memory.keep(key) for name, key in self.datasets.items()},
            lease_key=memory.keep(self.lease_key),
        )

    def encode(self) -> bytes:
        """As JSON, to be sealed."""
        datasets: list[Json] = [
            [purpose, salt.hex(), key.hex()] for (purpose, salt), key in self.datasets.items()
        ]
        return to_json(
            {
                "run_key": self.run_key.hex(),
                "owner_id": self.owner_id.hex(),
                "datasets": datasets,
                "lease_key": self.lease_key.hex(),
                "anchor_every": self.anchor_every,
            }
        )

    @classmethod
    def decode(cls, data: bytes) -> "Release":
        """Raises ValueError. Only what was authenticated is decoded."""
        found = from_json(data)
        try:
            return cls(
                bytes.fromhex(found["run_key"]),
                bytes.fromhex(found["owner_id"]),
                {
                    (str(purpose), bytes.fromhex(salt)): bytes.fromhex(key)
                    for purpose, salt, key in found["datasets"]
                },
                bytes.fromhex(found["lease_key"]),
                int(found["anchor_every"]),
            )
        except (KeyError, TypeError):
            raise ValueError("it is no release of this version") from None


class DatasetKeys(OwnerKey):
    """The keys of some datasets: it stands for the owner's key where those are opened.

    Every other object is refused with KeyFileError, since its key was not released.
    """

    __slots__ = ("_id", "_keys")

    def __init__(self, owner_id: bytes, keys: Mapping[tuple[str, bytes], Bytes]) -> None:
        self._id, self._keys = owner_id, keys

    @property
    def id(self) -> bytes:
        """The public id of the owner's key (8 bytes)."""
        return self._id

    def sealer(self, purpose: str, salt: bytes) -> Sealer:
        """The sealer of one object whose key was released."""
        return Sealer(self._kept(purpose, salt))

    def object_key(self, purpose: str, salt: bytes) -> bytes:
        """The key of one object (32 bytes) that was released. Raises KeyFileError."""
        return bytes(self._kept(purpose, salt))

    def _kept(self, purpose: str, salt: bytes) -> Bytes:
        try:
            return self._keys[purpose, bytes(salt)]
        except KeyError:
            raise KeyFileError(
                "The key of this data was not released to this trainer",
                "Use the data that the job names, or have the owner add it to the policy",
            ) from None


def run_secret(owner: OwnerKey, job: bytes) -> bytes:
    """The secret (32 bytes) of the run of a job, whose digest `job` is (32 bytes)."""
    return owner.object_key("run", job)


def run_key(owner: OwnerKey, job: bytes) -> OwnerKey:
    """The key of the run of a job, as the owner derives it."""
    return OwnerKey(run_secret(owner, job))


def lease_key(owner: OwnerKey, lease: bytes) -> bytes:
    """The key (32 bytes) that authenticates the messages of a lease."""
    return owner.object_key("lease", hashlib.sha256(lease).digest())


def seal_release(release: Release, public_key: bytes, lease: bytes, evidence: bytes) -> bytes:
    """Seal a release to the key of an envelope. Raises AttestationError for a bad public key."""
    try:
        if len(public_key) != PUBLIC_KEY_BYTES:
            raise ValueError
        there = hpke.public_key(public_key[: hpke.PUBLIC_BYTES])
        return hpke.SUITE.encrypt(release.encode(), there, info(lease, evidence))
    except ValueError:
        raise AttestationError(
            "The key in the evidence cannot be used", "Make new evidence with plinius attest"
        ) from None


def info(lease: bytes, evidence: bytes) -> bytes:
    """What a release is bound to: the format, the lease, the whole envelope."""
    assert len(lease) == LEASE_BYTES
    return b"plinius/release/1" + lease + hashlib.sha256(evidence).digest()
