"""The owner's key and its file, which only its owner can read. The secret is never shown.

The file format is described in docs/formats/owner-key.md.
"""

import os
import re
from pathlib import Path

from plinius import sealing
from plinius.errors import KeyFileError, StorageError
from plinius.files import open_to_read, publish

_TAG = "plinius-owner-key-1"
_KEY_LINE = re.compile(rb"[ \t]*plinius-owner-key-1[ \t]+([0-9a-fA-F]{64})[ \t]*")
_MAX_BYTES = 4096
_NAME_A_KEY = "Name a key file made by plinius keygen"


class OwnerKey:
    """A secret of 32 bytes. Its repr and its errors show only its public id.

    Raises ValueError for a secret of another length.
    """

    __slots__ = ("_secret",)

    def __init__(self, secret: bytes) -> None:
        if len(secret) != sealing.KEY_BYTES:
            raise ValueError(f"an owner's key is {sealing.KEY_BYTES} bytes")
        self._secret = secret

    def __repr__(self) -> str:
        return f"OwnerKey(id={self.id.hex()})"

    def __reduce__(self) -> str:
        raise TypeError("an owner's key is not pickled")

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

    def save(self, path: str | Path) -> None:
        """Write a durable key file of mode 0600.

        Raises KeyFileError if `path` exists, StorageError if it cannot be written.
        """
        path = Path(path)
        if os.path.lexists(path):
            raise KeyFileError(
                f"{path} exists already, and overwriting a key would lose all data sealed with it",
                "Choose another name with -o",
            )
        text = (
            f"# Plinius owner's key {self.id.hex()}: whoever has it can open the data. Keep it.\n"
            f"{_TAG} {self._secret.hex()}\n"
        )
        with publish(path) as file:
            file.write(text.encode())


def load_key(path: str | Path) -> OwnerKey:
    """Read a key file.

    Raises KeyFileError if it cannot be read, others than its owner can read it, it belongs to
    another user (other than root), or it holds no key.
    """
    try:
        file = open_to_read(path)
    except StorageError as error:
        raise KeyFileError(error.what, _NAME_A_KEY) from None
    with file:
        status = os.fstat(file.fileno())
        if status.st_uid not in (os.geteuid(), 0):
            raise KeyFileError(
                f"The key file {path} belongs to another user (uid {status.st_uid})",
                "Make a key of your own, or copy it so that it is yours",
            )
        if status.st_mode & 0o077:
            raise KeyFileError(
                f"Others can read the key file {path} (mode {status.st_mode & 0o777:04o})",
                f"Run chmod 600 {path}, and make a new key if others may have read it",
            )
        raw = file.read(_MAX_BYTES + 1)
    if len(raw) > _MAX_BYTES:
        raise KeyFileError(f"{path} holds no owner's key", _NAME_A_KEY)
    lines = [line.removesuffix(b"\r") for line in raw.split(b"\n") if not line.startswith(b"#")]
    found = [_KEY_LINE.fullmatch(line) for line in lines if line.strip(b" \t")]
    if len(found) == 1 and found[0]:
        return OwnerKey(bytes.fromhex(found[0][1].decode()))
    raise KeyFileError(f"{path} holds no owner's key", _NAME_A_KEY)


def require_key(key: object) -> None:
    """Raise KeyFileError for what is no owner's key, as the bytes of one."""
    if not isinstance(key, OwnerKey):
        raise KeyFileError(
            f"The key is a {type(key).__name__}, not an owner's key",
            "Load it with plinius.load_key(path)",
        )
