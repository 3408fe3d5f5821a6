"""The owner's key: made, stored in a file only its owner can read, never shown.

A key file is text: comment lines starting with `#`, then `plinius-owner-key-1 <64 hex digits>`.
"""

import os
import stat
from pathlib import Path

from plinius import sealing
from plinius.errors import KeyFileError, StorageError
from plinius.files import sync_folder

_TAG = "plinius-owner-key-1"
_MAX_BYTES = 4096


class OwnerKey:
    """A 32-byte key. Its repr and its errors show only its public id."""

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
        """The sealer for one object of this owner, named by purpose and random salt."""
        return sealing.derive(self._secret, purpose, salt)

    def require(self, wanted: bytes, what: str) -> None:
        """Refuse with both ids if `what` was sealed under the key of another id."""
        if wanted != self.id:
            raise KeyFileError(
                f"{what} was sealed with key {wanted.hex()}, but this is key {self.id.hex()}",
                "Give the key file it was sealed with (--key)",
            )

    def save(self, path: str | Path) -> None:
        """Write a key file with mode 0600, durably. Refuses to overwrite anything."""
        path = Path(path)
        text = (
            f"# Plinius owner's key {self.id.hex()}: whoever has it can open the data. Keep it.\n"
            f"{_TAG} {self._secret.hex()}\n"
        )
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            raise KeyFileError(
                f"{path} exists already, and overwriting a key would lose all data sealed with it",
                "Choose another name with -o",
            ) from None
        except OSError as error:
            raise StorageError(
                f"Cannot create {path}: {error.strerror}", "Choose a folder you can write to"
            ) from None
        try:
            with os.fdopen(handle, "w", encoding="ascii") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            sync_folder(path.parent)
        except OSError as error:
            path.unlink(missing_ok=True)
            raise StorageError(
                f"Cannot write {path}: {error.strerror}", "Free some space or choose another folder"
            ) from None


def load_key(path: str | Path) -> OwnerKey:
    """Read a key file. Raises KeyFileError if others can read it or it holds no key."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise KeyFileError(
            f"Cannot read the key file {path}: {error.strerror}",
            "Name a key file made by plinius keygen",
        ) from None
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise KeyFileError(f"{path} is not a file", "Name a key file made by plinius keygen")
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
        raw = os.read(handle, _MAX_BYTES)
    finally:
        os.close(handle)
    lines = [line for line in raw.decode("ascii", "replace").splitlines() if line.strip()]
    words = [line.split() for line in lines if not line.startswith("#")]
    try:
        if len(words) == 1 and words[0][0] == _TAG and len(words[0]) == 2:
            return OwnerKey(bytes.fromhex(words[0][1]))
    except ValueError:
        pass
    raise KeyFileError(f"{path} holds no owner's key", "Name a key file made by plinius keygen")


def require_key(key: object) -> None:
    """Raise KeyFileError for what is no owner's key, as the bytes of one."""
    if not isinstance(key, OwnerKey):
        raise KeyFileError(
            f"The key is a {type(key).__name__}, not an owner's key",
            "Load it with plinius.load_key(path)",
        )
