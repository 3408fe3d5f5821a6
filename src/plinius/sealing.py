"""Authenticated encryption and key derivation: the only file that touches AES.

AES-256-GCM (NIST SP 800-38D) under keys derived by HKDF-SHA256 (RFC 5869). Each sealed object
draws a fresh random salt, so each has a key of its own and its nonces may simply count. A sealed
piece is `ciphertext | tag`, `TAG_BYTES` longer than its plaintext.
"""

import copy
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from plinius.errors import SealError

KEY_BYTES = 32
SALT_BYTES = 32
TAG_BYTES = 16
KEY_ID_BYTES = 8
LEGACY_KEY_BYTES = 16
LEGACY_OVERHEAD = 28  # MAC(16) | IV(12)
_MAX_NONCE = 2**96 - 1

Bytes = bytes | bytearray | memoryview
"""Anything readable; what is written into must be a writable bytearray or memoryview."""


class Sealer:
    """Seals and opens numbered pieces under one derived key.

    Sealing numbers must rise: a number used twice would repeat a nonce, so it raises ValueError.
    """

    def __init__(self, key: bytes) -> None:
        self._aead = AESGCM(key)
        self._next, self._end = 0, _MAX_NONCE + 1

    def __repr__(self) -> str:
        return "Sealer(<key>)"

    def part(self, end: int) -> "Sealer":
        """A sealer of the numbers left below `end`, for another thread; this one goes on there."""
        if not self._next <= end <= self._end:
            raise ValueError("parts of a sealer follow each other")
        part = copy.copy(self)
        part._end, self._next = end, end
        return part

    def seal_into(self, number: int, plaintext: Bytes, aad: bytes, out: Bytes) -> None:
        """Write `plaintext` sealed as piece `number` to `out` (len(plaintext) + TAG_BYTES)."""
        nonce = self._take(number)
        self._aead.encrypt_into(nonce, plaintext, aad, out)

    def seal(self, number: int, plaintext: Bytes, aad: bytes) -> bytes:
        """`plaintext` sealed as piece `number`."""
        return self._aead.encrypt(self._take(number), plaintext, aad)

    def open_into(self, number: int, sealed: Bytes, aad: bytes, out: Bytes) -> None:
        """Write the plaintext of piece `number` to `out`; on SealError, `out` means nothing."""
        try:
            self._aead.decrypt_into(_nonce(number), sealed, aad, out)
        except InvalidTag:
            raise broken() from None

    def open(self, number: int, sealed: Bytes, aad: bytes) -> bytes:
        """The plaintext of piece `number`. Raises SealError without saying why."""
        if len(sealed) < TAG_BYTES:
            raise broken()
        try:
            return self._aead.decrypt(_nonce(number), sealed, aad)
        except InvalidTag:
            raise broken() from None

    def _take(self, number: int) -> bytes:
        if not self._next <= number < self._end:
            raise ValueError("a piece number may be sealed once only")
        self._next = number + 1
        return _nonce(number)


def derive(owner_key: bytes, purpose: str, salt: bytes) -> Sealer:
    """The sealer of one object: HKDF-SHA256(owner key, salt, info = "plinius/1/" + purpose)."""
    return Sealer(_hkdf(owner_key, salt, purpose, KEY_BYTES))


def key_id(owner_key: bytes) -> bytes:
    """A public name of an owner's key (8 bytes): tells keys apart and reveals nothing else."""
    return _hkdf(owner_key, b"", "key-id", KEY_ID_BYTES)


def fresh(length: int) -> bytes:
    """Random bytes from the operating system."""
    return os.urandom(length)


def legacy_open(key: bytes, sealed: Bytes) -> bytes:
    """Open MAC(16) | IV(12) | ciphertext, AES-128-GCM without AAD: the original's format."""
    if len(sealed) < LEGACY_OVERHEAD:
        raise broken()
    view = memoryview(sealed)
    try:
        body = bytes(view[LEGACY_OVERHEAD:]) + bytes(view[:TAG_BYTES])
        return AESGCM(key).decrypt(bytes(view[TAG_BYTES:LEGACY_OVERHEAD]), body, None)
    except InvalidTag:
        raise broken() from None


def broken(what: str = "Sealed data") -> SealError:
    """The one refusal for bytes that do not open."""
    return SealError(
        f"{what} does not open with this key",
        "It was altered, is in the wrong place, or was sealed with another key; "
        "fetch it again from its owner",
    )


def _hkdf(key: bytes, salt: bytes, purpose: str, length: int) -> bytes:
    info = b"plinius/1/" + purpose.encode()
    return HKDF(algorithm=SHA256(), length=length, salt=salt, info=info).derive(key)


def _nonce(number: int) -> bytes:
    if not 0 <= number <= _MAX_NONCE:
        raise ValueError("piece number out of range")
    return number.to_bytes(12, "big")
