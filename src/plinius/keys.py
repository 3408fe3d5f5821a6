"""The owner's key and its file, which only its owner can read. The secret is never shown.

The file format is described in docs/formats/owner-key.md.
"""

import os
import re
from multiprocessing.context import get_spawning_popen
from pathlib import Path

from plinius import sealing
from plinius.errors import KeyFileError, SealError
from plinius.files import publish
from plinius.key_source import MAX_BYTES, NAME_A_KEY, ask_passphrase, key_text

_TAG = "plinius-owner-key-1"
_KEY_LINE = re.compile(rb"[ \t]*plinius-owner-key-1[ \t]+([0-9a-fA-F]{64})[ \t]*")
_WRAPPED_TAG = "plinius-wrapped-key-1"
_WRAPPED_LINE = re.compile(
    rb"[ \t]*plinius-wrapped-key-1[ \t]+([0-9a-fA-F]{16})[ \t]+([0-9a-fA-F]{64})"
    rb"[ \t]+([0-9a-fA-F]{96})[ \t]*"
)


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
        whoever, line = "whoever has it can open the data", f"{_TAG} {self._secret.hex()}"
        if passphrase is not None:
            whoever, line = "its passphrase opens it", self._wrapped(passphrase)
        text = f"# Plinius owner's key {self.id.hex()}: {whoever}. Keep it.\n{line}\n"
        with publish(path) as file:
            file.write(text.encode())

    def _wrapped(self, passphrase: str) -> str:
        salt = sealing.fresh(sealing.SALT_BYTES)
        sealer = sealing.derive_from_passphrase(passphrase.encode(), salt)
        sealed = sealer.seal(0, self._secret, _WRAPPED_TAG.encode() + self.id)
        return f"{_WRAPPED_TAG} {self.id.hex()} {salt.hex()} {sealed.hex()}"


def load_key(path: str | Path) -> OwnerKey:
    """Read a key from a file, or from `-` (standard input), `fd:N`, or `env:NAME`.

    A key under a passphrase is opened with that of PLINIUS_PASSPHRASE, or asks for it on the
    terminal. Raises KeyFileError if it cannot be read, the file can be read by others than its
    owner or belongs to another user (other than root), it holds no key, or the passphrase is wrong.
    """
    raw, name = key_text(path)
    line = _only_line(raw)
    if found := _KEY_LINE.fullmatch(line):
        return OwnerKey(bytes.fromhex(found[1].decode()))
    if found := _WRAPPED_LINE.fullmatch(line):
        key_id, salt, sealed = (bytes.fromhex(part.decode()) for part in found.groups())
        return _unwrapped(key_id, salt, sealed, name)
    raise KeyFileError(f"{name} holds no owner's key", NAME_A_KEY)


def read_secret(path: str | Path, line: re.Pattern[bytes], refusal: str, todo: str) -> bytes:
    """The 32 secret bytes of a private file whose only line but comments is as `line`.

    Group 1 of `line` is the hex digits. Raises KeyFileError as `load_key` does, with `refusal` if
    the file holds no such line.
    """
    raw, _ = key_text(path, todo)
    if found := line.fullmatch(_only_line(raw)):
        return bytes.fromhex(found[1].decode())
    raise KeyFileError(refusal, todo)


def _only_line(raw: bytes) -> bytes:
    """The line of a key file that is no comment; empty if there is another one, or too much."""
    lines = [line.removesuffix(b"\r") for line in raw.split(b"\n") if not line.startswith(b"#")]
    lines = [line for line in lines if line.strip(b" \t")]
    return lines[0] if len(raw) <= MAX_BYTES and len(lines) == 1 else b""


def _unwrapped(key_id: bytes, salt: bytes, sealed: bytes, name: str) -> OwnerKey:
    """The key that is sealed under a passphrase. Raises KeyFileError if it does not open."""
    sealer = sealing.derive_from_passphrase(ask_passphrase(name).encode(), salt)
    try:
        return OwnerKey(sealer.open(0, sealed, _WRAPPED_TAG.encode() + key_id))
    except SealError:
        raise KeyFileError(
            f"The key of {name} does not open with this passphrase", "Try again with the right one"
        ) from None


def require_key(key: object) -> None:
    """Raise KeyFileError for what is no owner's key, as the bytes of one."""
    if not isinstance(key, OwnerKey):
        raise KeyFileError(
            f"The key is a {type(key).__name__}, not an owner's key",
            "Load it with plinius.load_key(path)",
        )
