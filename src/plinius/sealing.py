"""Authenticated encryption and key derivation: the only file that touches AES.

AES-256-GCM (NIST SP 800-38D) under keys derived by HKDF-SHA256 (RFC 5869), and for a key under
a passphrase by scrypt (RFC 7914). Each sealed object
(a dataset, a commit) has a fresh random salt and therefore a key of its own, so the nonce of a
message is its number. A sealed message is `ciphertext | tag`, `TAG_BYTES` longer than its
plaintext.
"""

import copy
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from plinius.errors import SealError

KEY_BYTES = 32
SALT_BYTES = 32
TAG_BYTES = 16
KEY_ID_BYTES = 8
LEGACY_KEY_BYTES = 16
LEGACY_OVERHEAD = 28  # MAC(16) | IV(12)
_MAX_NONCE = 2**96 - 1

Bytes = bytes | bytearray | memoryview
"""Bytes to read. A parameter named `out` is written to and must be writable."""


class Sealer:
    """Seals and opens numbered messages under one derived key.

    Each message is sealed with a higher number (0 to 2**96 - 1) than the one before; another
    number raises ValueError, since a number used twice would repeat a nonce. Opening is free of
    this rule, and safe from several threads.
    """

    def __init__(self, key: Bytes) -> None:
        self._aead = AESGCM(key)
        self._next, self._end = 0, _MAX_NONCE + 1

    def __repr__(self) -> str:
        return "Sealer(<key>)"

    def split_off(self, end: int) -> "Sealer":
        """A sealer for the unused numbers below `end`, for another thread.

        This one keeps the numbers from `end` on. Raises ValueError if it has not all of these.
        """
        if not self._next <= end <= self._end:
            raise ValueError("a sealer can only give away numbers that it has not used")
        other = copy.copy(self)
        other._end, self._next = end, end
        return other

    def seal_into(self, number: int, plaintext: Bytes, aad: bytes, out: Bytes) -> None:
        """Write `plaintext` sealed as message `number` to `out` (len(plaintext) + TAG_BYTES)."""
        nonce = self._take(number)
        self._aead.encrypt_into(nonce, plaintext, aad, out)

    def seal(self, number: int, plaintext: Bytes, aad: bytes) -> bytes:
        """`plaintext` sealed as message `number`."""
        return self._aead.encrypt(self._take(number), plaintext, aad)

    def open_into(self, number: int, sealed: Bytes, aad: bytes, out: Bytes) -> None:
        """Write the plaintext of message `number` to `out` (len(sealed) - TAG_BYTES).

        Raises SealError without saying why; do not use what `out` then holds.
        """
        try:
            self._aead.decrypt_into(_nonce(number), sealed, aad, out)
        except InvalidTag:
            raise does_not_open() from None

    def open(self, number: int, sealed: Bytes, aad: bytes) -> bytes:
        """The plaintext of message `number`. Raises SealError without saying why."""
        if len(sealed) < TAG_BYTES:
            raise does_not_open()
        try:
            return self._aead.decrypt(_nonce(number), sealed, aad)
        except InvalidTag:
            raise does_not_open() from None

    def _take(self, number: int) -> bytes:
        if not self._next <= number < self._end:
            raise ValueError("a message number may be sealed once only")
        self._next = number + 1
        return _nonce(number)


def derive(owner_key: Bytes, purpose: str, salt: bytes) -> Sealer:
    """The sealer of one object: HKDF-SHA256(owner key, salt, info = "plinius/1/" + purpose)."""
    return Sealer(derive_key(owner_key, purpose, salt))


def derive_from_passphrase(passphrase: bytes, salt: bytes) -> Sealer:
    """The sealer of a wrapped key: scrypt (RFC 7914), n = 2**17, r = 8, p = 1: 128 MiB of memory.

    The salt is new for every wrapped key, so that its sealer seals one message.
    """
    return Sealer(Scrypt(salt=salt, length=KEY_BYTES, n=2**17, r=8, p=1).derive(passphrase))


def key_id(owner_key: Bytes) -> bytes:
    """The public id of an owner's key (8 bytes). It reveals nothing else of the key."""
    return derive_key(owner_key, "key-id", b"", KEY_ID_BYTES)


def fresh(length: int) -> bytes:
    """Random bytes from the operating system."""
    return os.urandom(length)


def legacy_open(key: bytes, sealed: Bytes) -> bytes:
    """Open a record of the original Plinius: tag(16) | nonce(12) | ciphertext, no AAD.

    AES-128-GCM under its 16-byte key. Raises SealError.
    """
    if len(sealed) < LEGACY_OVERHEAD:
        raise does_not_open()
    view = memoryview(sealed)
    try:
        body = bytes(view[LEGACY_OVERHEAD:]) + bytes(view[:TAG_BYTES])
        return AESGCM(key).decrypt(bytes(view[TAG_BYTES:LEGACY_OVERHEAD]), body, None)
    except InvalidTag:
        raise does_not_open() from None


def does_not_open(what: str = "Sealed data") -> SealError:
    """The refusal for bytes that do not open; the same for every cause. `what` is named in it."""
    return SealError(
        f"{what} does not open with this key",
        "It was altered, is in the wrong place, or was sealed with another key; "
        "fetch it again from its owner",
    )


def derive_key(key: Bytes, purpose: str, salt: bytes, length: int = KEY_BYTES) -> bytes:
    """A key derived from `key`: HKDF-SHA256(key, salt, info = "plinius/1/" + purpose)."""
    info = b"plinius/1/" + purpose.encode()
    return HKDF(algorithm=SHA256(), length=length, salt=salt, info=info).derive(key)


def _nonce(number: int) -> bytes:
    if not 0 <= number <= _MAX_NONCE:
        raise ValueError("message number out of range")
    return number.to_bytes(12, "big")
