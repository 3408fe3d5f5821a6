"""The owner's signing key (Ed25519, RFC 8032), its public half, and the files of both.

It is another key than the owner's key, and it is not derived from it: the trainer holds the owner's
key in this release, and must not be able to sign a job. The files are described in
docs/formats/job.md.
"""

import os
import re
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from plinius.key_file import read_public, read_secret, save_pair

SIGNATURE_BYTES = 64
PUBLIC_BYTES = 32
_SECRET_TAG, _PUBLIC_TAG = "plinius-signing-key-1", "plinius-signer-1"
_SECRET_LINE = re.compile(rb"plinius-signing-key-1 ([0-9a-f]{64})")
_PUBLIC_LINE = re.compile(r"plinius-signer-1 ([0-9a-f]{64})")


class Signer:
    """The public half of a signing key: it verifies what that key signed.

    Raises ValueError unless it is given 32 bytes.
    """

    def __init__(self, public: bytes) -> None:
        self.public = public
        self._key = Ed25519PublicKey.from_public_bytes(public)

    def __repr__(self) -> str:
        return f"Signer({self.public.hex()})"

    def verifies(self, message: bytes, signature: bytes) -> bool:
        """Whether `signature` (64 bytes) is this signer's, of exactly this message."""
        try:
            self._key.verify(signature, message)
        except InvalidSignature:
            return False
        return True


class SigningKey:
    """A secret of 32 bytes that signs. Its repr shows only the public half."""

    __slots__ = ("_key", "signer")

    def __init__(self, secret: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(secret)
        raw = self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        self.signer = Signer(raw)

    def __repr__(self) -> str:
        return f"SigningKey({self.signer.public.hex()})"

    def __reduce__(self) -> str:
        raise TypeError("a signing key is not pickled")

    @classmethod
    def generate(cls) -> "SigningKey":
        """A new random key."""
        return cls(os.urandom(32))

    def sign(self, message: bytes) -> bytes:
        """The signature (64 bytes). Equal messages have equal signatures."""
        return self._key.sign(message)

    def save(self, path: Path) -> Path:
        """Write the secret to `path` and the public half to `path`.pub, which is returned.

        Both are durable and have mode 0600. Raises KeyFileError if one of them exists, StorageError
        if it cannot be written.
        """
        name = self.signer.public.hex()
        note = (
            f"# Plinius signing key of signer {name}: whoever has it can sign jobs. Keep it\n"
            "# away from the trainer."
        )
        secret = f"{note}\n{_SECRET_TAG} {self._key.private_bytes_raw().hex()}"
        return save_pair(path, secret, f"{_PUBLIC_TAG} {name}")


def load_signing_key(path: str | Path) -> SigningKey:
    """Read the secret of a signing key. Raises KeyFileError, as `load_key` does."""
    todo = "Name a file made by plinius keygen --signing"
    return SigningKey(read_secret(path, _SECRET_LINE, f"{path} holds no signing key", todo))


def load_signer(path: str | Path) -> Signer:
    """Read the public half of a signing key. Raises KeyFileError."""
    todo = "Name the .pub file made by plinius keygen --signing"
    found = read_public(path, _PUBLIC_LINE, f"{path} holds no signer", todo)
    return Signer(bytes.fromhex(found))
