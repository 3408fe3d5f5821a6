"""The owner's key, a secret that is never shown. Its file: docs/formats/owner-key.md."""

import os
from multiprocessing.context import get_spawning_popen
from pathlib import Path

from plinius import sealing
from plinius.errors import KeyFileError
from plinius.files import publish

KEY_TAG = "plinius-owner-key-1"
WRAPPED_TAG = "plinius-wrapped-key-1"


class OwnerKey:
    """A secret of 32 bytes. Its repr and its errors show only its public id.

    Raises ValueError for a secret of another length.
    """

    __slots__ = ("_secret",)

    def __init__(self, secret: sealing.Bytes) -> None:
        if len(secret) != sealing.KEY_BYTES:
            raise ValueError(f"an owner's key is {sealing.KEY_BYTES} bytes")
        self._secret = secret

    def __repr__(self) -> str:
        return f"OwnerKey(id={self.id.hex()})"

    def __reduce__(self) -> tuple[type["OwnerKey"], tuple[bytes]]:
        if get_spawning_popen() is None:  # else it goes through a pipe to a child, into no file
            raise TypeError("an owner's key is pickled only for a process that is being started")
        return OwnerKey, (bytes(self._secret),)

    @classmethod
    def generate(cls) -> "OwnerKey":
        """A new random key."""
        return cls(sealing.fresh(sealing.KEY_BYTES))

    @property
    def id(self) -> bytes:
        """The public id of the key (8 bytes)."""
        return sealing.key_id(self._secret)

    def sealer(self, purpose: str, salt: bytes) -> sealing.Sealer:
        """The sealer of one object of this owner.

        Its key depends on `purpose` (a word of the object's format) and the object's random salt.
        """
        return sealing.derive(self._secret, purpose, salt)

    def object_key(self, purpose: str, salt: bytes) -> bytes:
        """The bare key of one object (32 bytes), to be released without the owner's key."""
        return sealing.derive_key(self._secret, purpose, salt)

    def require(self, wanted: bytes, what: str) -> None:
        """Raise KeyFileError, which names both ids, unless `wanted` is the id of this key.

        `what` is the name of the object that was sealed with key `wanted`.
        """
        if wanted != self.id:
            raise KeyFileError(
                f"{what} was sealed with key {wanted.hex()}, but this is key {self.id.hex()}",
                "Give the key file it was sealed with (--key)",
            )

    def save(self, path: str | Path, passphrase: str | None = None) -> None:
        """Write a durable key file of mode 0600, sealed under `passphrase` if it is given.

        Raises KeyFileError if `path` exists, StorageError if it cannot be written.
        """
        path = Path(path)
        if os.path.lexists(path):
            raise KeyFileError(
                f"{path} exists already, and overwriting a key would lose all data sealed with it",
                "Choose another name with -o",
            )
        whoever, line = "whoever has it can open the data", f"{KEY_TAG} {self._secret.hex()}"
        if passphrase is not None:
            whoever, line = "its passphrase opens it", self._wrapped(passphrase)
        text = f"# Plinius owner's key {self.id.hex()}: {whoever}. Keep it.\n{line}\n"
        with publish(path) as file:
            file.write(text.encode())

    def _wrapped(self, passphrase: str) -> str:
        salt = sealing.fresh(sealing.SALT_BYTES)
        sealer = sealing.derive_from_passphrase(passphrase.encode(), salt)
        sealed = sealer.seal(0, self._secret, WRAPPED_TAG.encode() + self.id)
        return f"{WRAPPED_TAG} {self.id.hex()} {salt.hex()} {sealed.hex()}"


def require_key(key: object) -> None:
    """Raise KeyFileError for what is no owner's key, as the bytes of one."""
    if not isinstance(key, OwnerKey):
        raise KeyFileError(
            f"The key is a {type(key).__name__}, not an owner's key",
            "Load it with plinius.load_key(path)",
        )
