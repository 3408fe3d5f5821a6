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

from plinius.errors import KeyFileError, StorageError
from plinius.files import publish, read_file
from plinius.key_file import read_secret

SIGNATURE_BYTES = 64
PUBLIC_BYTES = 32
_SECRET_TAG, _PUBLIC_TAG = "plinius-signing-key-1", "plinius-signer-1"
_SECRET_LINE = re.compile(rb"plinius-signing-key-1 ([0-9a-f]{64})")
_PUBLIC_LINE = re.compile(r"plinius-signer-1 ([0-9a-f]{64})")
_MAX_PUBLIC_FILE = 4096


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
        public = path.with_name(path.name + ".pub")
        for file in (path, public):
            if os.path.lexists(file):
                raise KeyFileError(f"{file} exists already", "Choose another name with -o")
        name = self.signer.public.hex()
        with publish(path) as out:
            out.write(
                f"# Plinius signing key of signer {name}: whoever has it can sign jobs. Keep it\n"
                "# away from the trainer.\n"
                f"{_SECRET_TAG} {self._key.private_bytes_raw().hex()}\n".encode()
            )
        with publish(public) as out:
            out.write(f"{_PUBLIC_TAG} {name}\n".encode())
        return public


def load_signing_key(path: str | Path) -> SigningKey:
    """Read the secret of a signing key. Raises KeyFileError, as `load_key` does."""
    todo = "Name a file made by plinius keygen --signing"
    return SigningKey(read_secret(path, _SECRET_LINE, f"{path} holds no signing key", todo))


def load_signer(path: str | Path) -> Signer:
    """Read the public half of a signing key. Raises KeyFileError."""
    todo = "Name the .pub file made by plinius keygen --signing"
    try:
        text = read_file(path, _MAX_PUBLIC_FILE).decode("ascii", "replace")
    except StorageError as error:
        raise KeyFileError(error.what, todo) from None
    match = _PUBLIC_LINE.fullmatch(text.removesuffix("\n"))
    if match is None:
        raise KeyFileError(f"{path} holds no signer", todo)
    return Signer(bytes.fromhex(match[1]))
