"""The owner's key file as it is read, and the files of key pairs: a secret, and a public half.

The format is described in docs/formats/owner-key.md; only the owner of a file can read it.
"""

import os
import re
from pathlib import Path

from plinius import sealing
from plinius.errors import KeyFileError, SealError, StorageError
from plinius.files import publish, read_file
from plinius.key_source import MAX_BYTES, NAME_A_KEY, ask_passphrase, key_text
from plinius.keys import WRAPPED_TAG, OwnerKey

_KEY_LINE = re.compile(rb"[ \t]*plinius-owner-key-1[ \t]+([0-9a-fA-F]{64})[ \t]*")
_WRAPPED_LINE = re.compile(
    rb"[ \t]*plinius-wrapped-key-1[ \t]+([0-9a-fA-F]{16})[ \t]+([0-9a-fA-F]{64})"
    rb"[ \t]+([0-9a-fA-F]{96})[ \t]*"
)


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


def save_pair(path: Path, secret: str, public: str) -> Path:
    """Write a secret's text to `path`, its public half to `path`.pub, which is returned.

    Both are durable and have mode 0600. Raises KeyFileError if one of them exists, StorageError if
    it cannot be written.
    """
    beside = path.with_name(path.name + ".pub")
    for file in (path, beside):
        if os.path.lexists(file):
            raise KeyFileError(f"{file} exists already", "Choose another name with -o")
    for file, text in ((path, secret), (beside, public)):
        with publish(file) as out:
            out.write(f"{text}\n".encode())
    return beside


def read_public(path: str | Path, line: re.Pattern[str], refusal: str, todo: str) -> str:
    """Group 1 of `line`, which is the whole text of the file of a public half.

    Raises KeyFileError: with `refusal` for another text, and if it cannot be read.
    """
    try:
        text = read_file(path, MAX_BYTES).decode("ascii", "replace")
    except StorageError as error:
        raise KeyFileError(error.what, todo) from None
    if (match := line.fullmatch(text.removesuffix("\n"))) is None:
        raise KeyFileError(refusal, todo)
    return match[1]


def _only_line(raw: bytes) -> bytes:
    """The line of a key file that is no comment; empty if there is another one, or too much."""
    lines = [line.removesuffix(b"\r") for line in raw.split(b"\n") if not line.startswith(b"#")]
    lines = [line for line in lines if line.strip(b" \t")]
    return lines[0] if len(raw) <= MAX_BYTES and len(lines) == 1 else b""


def _unwrapped(key_id: bytes, salt: bytes, sealed: bytes, name: str) -> OwnerKey:
    """The key that is sealed under a passphrase. Raises KeyFileError if it does not open."""
    sealer = sealing.derive_from_passphrase(ask_passphrase(name).encode(), salt)
    try:
        return OwnerKey(sealer.open(0, sealed, WRAPPED_TAG.encode() + key_id))
    except SealError:
        raise KeyFileError(
            f"The key of {name} does not open with this passphrase", "Try again with the right one"
        ) from None
