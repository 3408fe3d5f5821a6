"""Simulated evidence: signed by a development key that lies on the host. It proves nothing.

It is there so that everything around evidence can be used and tested on any machine. A policy
accepts it only by a rule of the kind "simulated" that names the public key of the signer.
"""

import hashlib
import re
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

import plinius
from plinius.errors import KeyFileError
from plinius.files import publish, read_file
from plinius.trust.claims import Claims, does_not_hold
from plinius.trust.evidence import Evidence, bind

_TAG = "plinius-development-key-1"
_LINE = re.compile(rf"{_TAG} ([0-9a-f]{{64}})\n")
_MAX_BYTES = 4096


class DevelopmentKey:
    """An Ed25519 key that signs simulated evidence. Its repr shows only its public half."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._key = Ed25519PrivateKey.from_private_bytes(secret)

    def __repr__(self) -> str:
        return f"DevelopmentKey(public={self.public.hex()})"

    @classmethod
    def generate(cls) -> "DevelopmentKey":
        """A new random key."""
        return cls(Ed25519PrivateKey.generate().private_bytes_raw())

    @classmethod
    def load(cls, path: Path) -> "DevelopmentKey":
        """Read a key file. Raises StorageError, KeyFileError."""
        found = _LINE.fullmatch(read_file(path, _MAX_BYTES).decode("latin-1"))
        if found is None:
            raise KeyFileError(
                f"{path} holds no development key", "Make one with plinius keygen --development"
            )
        return cls(bytes.fromhex(found[1]))

    def save(self, path: Path) -> None:
        """Write a key file of mode 0600. Raises StorageError if `path` exists."""
        with publish(path) as file:
            file.write(f"{_TAG} {self._secret.hex()}\n".encode())

    @property
    def public(self) -> bytes:
        """The public half (32 bytes), which a policy names."""
        return self._key.public_key().public_bytes_raw()

    def evidence(self, public_key: bytes, nonce: bytes, job: bytes) -> Evidence:
        """Simulated evidence bound to a key, a challenge and a job."""
        measurement = code_measurement()
        signature = self._key.sign(_message(measurement, bind(public_key, nonce, job)))
        fields = {"measurement": measurement, "signer": self.public, "signature": signature}
        return Evidence("simulated", public_key, nonce, job, fields)


def code_measurement() -> bytes:
    """SHA-256 over the names and contents of the package's Python files, as this host shows them.

    It helps to notice another version by accident. A host can claim any value.
    """
    root = Path(plinius.__file__).parent
    total = hashlib.sha256(b"plinius/code/1")
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix().encode()
        total.update(hashlib.sha256(name).digest() + hashlib.sha256(path.read_bytes()).digest())
    return total.digest()


def verify_simulated(evidence: Evidence) -> Claims:
    """The claims of simulated evidence. Raises AttestationError."""
    measurement, signer = evidence.fields["measurement"], evidence.fields["signer"]
    try:
        key = Ed25519PublicKey.from_public_bytes(signer)
        key.verify(evidence.fields["signature"], _message(measurement, evidence.report_data))
    except (InvalidSignature, ValueError):
        raise does_not_hold("its signature is not the signer's") from None
    values = {"measurement": measurement.hex(), "signer": signer.hex()}
    return Claims(evidence.report_data, {**values})


def _message(measurement: bytes, report_data: bytes) -> bytes:
    return b"plinius/simulated/1" + measurement.ljust(32, b"\0") + report_data
