"""Recipients: whom a fresh key of a dataset is sealed to, by HPKE (RFC 9180), as age does it.

An owner seals a dataset under a new key, and the key to the public halves of recipients, in a file
beside it. Who has a private half opens that file, and has the key. hpke.py has the suite,
docs/formats/recipients.md the bytes.
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.hpke import MLKEM768X25519PrivateKey

from plinius.errors import FormatError, KeyFileError, SealError
from plinius.files import publish, read_file
from plinius.key_file import read_public, read_secret, save_pair
from plinius.keys import OwnerKey
from plinius.sealing import KEY_BYTES, fresh
from plinius.trust import hpke

MOST_RECIPIENTS = 64
_SEED_BYTES, _X25519_BYTES = 64, 32
_SEALED_BYTES = 1088 + 32 + KEY_BYTES + 16  # what the KEM encapsulates, then the sealed key
_ID_BYTES = 8
_MAX_FILE = 4096 + MOST_RECIPIENTS * 2048
_SECRET_TAG, _PUBLIC_TAG = "plinius-recipient-key-1", "plinius-recipient-1"
_ENVELOPE_TAG = "plinius-key-for-1"
_SECRET_LINE = re.compile(rb"plinius-recipient-key-1 ([0-9a-f]{192})")
_PUBLIC_LINE = re.compile("plinius-recipient-1 ([A-Za-z0-9+/]+=*)")
_HEAD_LINE = re.compile("plinius-key-for-1 ([0-9a-f]{16})")
_ENTRY_LINE = re.compile("([0-9a-f]{16}) ([A-Za-z0-9+/]+=*)")
_NAME_PUBLIC = "Name the .pub file made by plinius keygen --recipient"
_NAME_ENVELOPE = "Name the .to file that plinius seal --to made"


class Recipient:
    """The public half of a recipient's key. Raises ValueError unless it is given 1216 bytes."""

    def __init__(self, public: bytes) -> None:
        self.public, self._key = public, hpke.public_key(public)

    def __repr__(self) -> str:
        return f"Recipient({self.id.hex()})"

    @property
    def id(self) -> bytes:
        """The first 8 bytes of the SHA-256 of the public half."""
        return hashlib.sha256(self.public).digest()[:_ID_BYTES]

    @classmethod
    def of_text(cls, text: str) -> "Recipient":
        """The recipient that `text` is. Raises ValueError for any other text."""
        found = cls(base64.b64decode(text, validate=True))
        if found.text != text:
            raise ValueError("another text says the same")
        return found

    @property
    def text(self) -> str:
        """The public half in base64."""
        return base64.b64encode(self.public).decode()

    @property
    def line(self) -> str:
        """The line of a .pub file."""
        return f"{_PUBLIC_TAG} {self.text}"

    def seal(self, secret: bytes, key_id: bytes) -> bytes:
        """An owner's key (32 bytes, of this id) sealed for this recipient."""
        return hpke.SUITE.encrypt(secret, self._key, _info(key_id, self.id))


class RecipientKey:
    """The private half, 96 bytes: the seed of ML-KEM-768, then X25519's. Its repr shows no key."""

    __slots__ = ("_key", "_secret", "recipient")

    def __init__(self, secret: bytes) -> None:
        mlkem = MLKEM768PrivateKey.from_seed_bytes(secret[:_SEED_BYTES])
        x25519 = X25519PrivateKey.from_private_bytes(secret[_SEED_BYTES:])
        self._secret, self._key = secret, MLKEM768X25519PrivateKey(mlkem, x25519)
        public = mlkem.public_key().public_bytes_raw() + x25519.public_key().public_bytes_raw()
        self.recipient = Recipient(public)

    def __repr__(self) -> str:
        return f"RecipientKey({self.recipient.id.hex()})"

    def __reduce__(self) -> str:
        raise TypeError("a recipient's key is not pickled")

    @classmethod
    def generate(cls) -> "RecipientKey":
        """A new random key."""
        return cls(fresh(_SEED_BYTES + _X25519_BYTES))

    def open(self, sealed: bytes, key_id: bytes) -> bytes:
        """What was sealed for this recipient. Raises SealError."""
        try:
            return hpke.SUITE.decrypt(sealed, self._key, _info(key_id, self.recipient.id))
        except (InvalidTag, ValueError):
            raise SealError(
                "The sealed key does not open with this recipient's key",
                "It was altered: fetch it again from its owner",
            ) from None

    def save(self, path: Path) -> Path:
        """Write the private half to `path` and the public half to `path`.pub, which is returned.

        Both are durable and have mode 0600. Raises KeyFileError if one of them exists, StorageError
        if it cannot be written.
        """
        name = self.recipient.id.hex()
        note = f"# Plinius key of recipient {name}: whoever has it opens what is sealed to it."
        secret = f"{note}\n{_SECRET_TAG} {self._secret.hex()}"
        return save_pair(path, secret, self.recipient.line)


def load_recipient_key(path: str | Path) -> RecipientKey:
    """Read the private half of a recipient's key. Raises KeyFileError, as `load_key` does."""
    todo = "Name a file made by plinius keygen --recipient"
    return RecipientKey(read_secret(path, _SECRET_LINE, f"{path} holds no recipient's key", todo))


def load_recipient(path: str | Path) -> Recipient:
    """Read the public half of a recipient's key. Raises KeyFileError."""
    refusal = f"{path} holds no recipient"
    text = read_public(path, _PUBLIC_LINE, refusal, _NAME_PUBLIC)
    try:
        return Recipient.of_text(text)
    except ValueError:
        raise KeyFileError(refusal, _NAME_PUBLIC) from None


def fresh_key_for(recipients: Sequence[Recipient], path: Path) -> OwnerKey:
    """A new owner's key, sealed to each recipient in the new file `path`.

    The key itself is written nowhere. Raises KeyFileError for no recipient, one that is there
    twice, or more than 64; StorageError.
    """
    ids = [recipient.id for recipient in recipients]
    if not 1 <= len(set(ids)) == len(ids) <= MOST_RECIPIENTS:
        raise KeyFileError(
            f"{len(ids)} recipients are given, {len(set(ids))} of them different",
            f"Give 1 to {MOST_RECIPIENTS}, each once",
        )
    secret = fresh(KEY_BYTES)
    key = OwnerKey(secret)
    lines = [f"{_ENVELOPE_TAG} {key.id.hex()}"]
    for recipient in recipients:
        sealed = base64.b64encode(recipient.seal(secret, key.id)).decode()
        lines.append(f"{recipient.id.hex()} {sealed}")
    with publish(path) as out:
        out.write(("\n".join(lines) + "\n").encode())
    return key


def open_key_for(path: Path, mine: RecipientKey) -> tuple[OwnerKey, bytes]:
    """The key that is sealed to a recipient in a file, and the text of a key file of it.

    Raises KeyFileError if it is sealed to others only, FormatError for another file, SealError,
    StorageError.
    """
    key_id, entries = _read(path)
    sealed = entries.get(mine.recipient.id)
    if sealed is None:
        raise KeyFileError(
            f"{path} is not sealed to recipient {mine.recipient.id.hex()}, but to "
            f"{', '.join(one.hex() for one in [*entries][:3])}",
            "Ask its owner to seal the data to your public half too",
        )
    secret = mine.open(sealed, key_id)
    key = OwnerKey(secret) if len(secret) == KEY_BYTES else None
    if key is None or key.id != key_id:
        raise SealError(f"{path} holds another key than it says", "Fetch it again from its owner")
    return key, f"plinius-owner-key-1 {secret.hex()}\n".encode()


def _read(path: Path) -> tuple[bytes, dict[bytes, bytes]]:
    """The id of the key, and what is sealed to each recipient by id."""
    text = read_file(path, _MAX_FILE).decode("ascii", "replace")
    head, *lines = text.split("\n")
    found = _HEAD_LINE.fullmatch(head)
    entries: dict[bytes, bytes] = {}
    matches = [_ENTRY_LINE.fullmatch(line) for line in lines[:-1]]
    for match in matches:
        if match and len(sealed := _decoded(match[2])) == _SEALED_BYTES:
            entries[bytes.fromhex(match[1])] = sealed
    whole = found and lines and lines[-1] == "" and len(entries) == len(matches)
    if not found or not whole or not 1 <= len(entries) <= MOST_RECIPIENTS:
        raise FormatError(f"{path} holds no key for recipients", _NAME_ENVELOPE)
    return bytes.fromhex(found[1]), entries


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        return b""


def _info(key_id: bytes, recipient_id: bytes) -> bytes:
    """What a sealed key is bound to."""
    return b"plinius/recipient/1" + key_id + recipient_id
