"""Sealing: known answers, no number twice, nothing opens that was touched."""

import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plinius import sealing
from plinius.errors import SealError
from plinius.keys import OwnerKey

SENTENCE = (
    "Sealed data does not open with this key. It was altered, is in the wrong place, or was "
    "sealed with another key; fetch it again from its owner."
)


def hkdf(key: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    """RFC 5869 in its own words: extract, then expand."""
    secret = hmac.new(salt or bytes(32), key, hashlib.sha256).digest()
    out = block = b""
    number = 1
    while len(out) < length:
        block = hmac.new(secret, block + info + bytes([number]), hashlib.sha256).digest()
        out, number = out + block, number + 1
    return out[:length]


def test_the_independent_hkdf_knows_rfc_5869() -> None:
    """Test case 1 of RFC 5869, so that the next test can rely on it."""
    out = hkdf(b"\x0b" * 22, bytes(range(13)), bytes(range(0xF0, 0xFA)), 42)
    assert out.hex() == (
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
    )


@given(st.binary(min_size=32, max_size=32), st.binary(max_size=40), st.text(max_size=20))
def test_keys_are_derived_by_hkdf(key: bytes, salt: bytes, purpose: str) -> None:
    """What a derived sealer seals opens under the key of an independent HKDF."""
    sealed = sealing.derive(key, purpose, salt).seal(5, b"text", b"aad")
    secret = hkdf(key, salt, b"plinius/1/" + purpose.encode(), 32)
    assert sealing.Sealer(secret).open(5, sealed, b"aad") == b"text"


def test_the_key_id_is_derived_by_hkdf() -> None:
    """The public id is 8 bytes of HKDF without salt."""
    assert OwnerKey(bytes(32)).id == hkdf(bytes(32), b"", b"plinius/1/key-id", 8)


def test_purposes_salts_and_owners_part_keys() -> None:
    """A message opens under the very purpose, salt and owner it was sealed with, and no other."""
    sealed = OwnerKey(bytes(32)).sealer("a", b"1").seal(0, b"text", b"")
    for owner, purpose, salt in ((0, "b", b"1"), (0, "a", b"2"), (1, "a", b"1")):
        with pytest.raises(SealError):
            OwnerKey(bytes([owner] * 32)).sealer(purpose, salt).open(0, sealed, b"")


def test_known_answers_of_aes_256_gcm() -> None:
    """Test cases 13 and 14 of the GCM specification, with message number 0 as the zero nonce."""
    assert sealing.Sealer(bytes(32)).seal(0, b"", b"").hex() == "530f8afbc74536b9a963b4f1c4cb738b"
    assert sealing.Sealer(bytes(32)).seal(0, bytes(16), b"").hex() == (
        "cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919"
    )


def test_known_answer_with_nonce_and_aad() -> None:
    """Test case 16 of the GCM specification, its nonce read as a message number."""
    key = bytes.fromhex("feffe9928665731c6d6a8f9467308308" * 2)
    plaintext = bytes.fromhex(
        "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72"
        "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39"
    )
    aad = bytes.fromhex("feedfacedeadbeeffeedfacedeadbeefabaddad2")
    number = int("cafebabefacedbaddecaf888", 16)
    sealed = sealing.Sealer(key).seal(number, plaintext, aad)
    assert sealed.hex() == (
        "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa"
        "8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662"
        "76fc6ece0f4e1768cddf8853bb2d551b"
    )
    assert sealing.Sealer(key).open(number, sealed, aad) == plaintext


def test_a_number_is_sealed_once() -> None:
    """A number used before, or below one used before, would repeat a nonce."""
    sealer = sealing.Sealer(bytes(32))
    sealer.seal(3, b"", b"")
    for number in (3, 2, 0):
        with pytest.raises(ValueError, match="^a message number may be sealed once only$"):
            sealer.seal(number, b"", b"")
        with pytest.raises(ValueError, match="^a message number may be sealed once only$"):
            sealer.seal_into(number, b"", b"", bytearray(16))
    sealer.seal(4, b"", b"")


@pytest.mark.parametrize("number", [-1, 2**96])
def test_numbers_out_of_range_are_refused(number: int) -> None:
    """A number must fit the nonce, to seal as to open."""
    sealer = sealing.Sealer(bytes(32))
    with pytest.raises(ValueError, match="^(message number out of range|a message number may be)"):
        sealer.seal(number, b"", b"")
    with pytest.raises(ValueError, match="^message number out of range$"):
        sealer.open(number, bytes(16), b"")


@given(st.binary(max_size=40), st.binary(max_size=20), st.integers(0, 2**96 - 1))
def test_what_is_sealed_in_place_opens_in_place(text: bytes, aad: bytes, number: int) -> None:
    """Both ways to seal give the same message, and both ways to open the same text."""
    out = bytearray(len(text) + sealing.TAG_BYTES)
    sealing.Sealer(bytes(32)).seal_into(number, text, aad, out)
    assert out == sealing.Sealer(bytes(32)).seal(number, text, aad)
    room = bytearray(len(text))
    sealing.Sealer(bytes(32)).open_into(number, out, aad, room)
    assert room == text


def test_nothing_opens_that_was_touched() -> None:
    """A flipped byte, another number or AAD, a shorter or longer message: one sentence for all."""
    sealer = sealing.Sealer(bytes(32))
    good = sealer.seal(7, b"some plain text", b"aad")
    cases = [(7, good[:i] + bytes([good[i] ^ 1]) + good[i + 1 :], b"aad") for i in range(len(good))]
    cases += [(8, good, b"aad"), (7, good, b"aae"), (7, good, b""), (7, good + b"\0", b"aad")]
    cases += [(7, good[:length], b"aad") for length in range(len(good))]
    for number, sealed, aad in cases:
        with pytest.raises(SealError) as caught:
            sealer.open(number, sealed, aad)
        assert str(caught.value) == SENTENCE
        assert caught.value.__suppress_context__ or caught.value.__context__ is None
    with pytest.raises(SealError, match="^Sealed data does not open"):
        sealer.open_into(8, good, b"aad", bytearray(15))


def test_the_original_format_opens_and_refuses() -> None:
    """MAC, nonce, ciphertext under AES-128: test case 4 of the GCM specification without AAD."""
    key = bytes.fromhex("feffe9928665731c6d6a8f9467308308")
    nonce, mac = "cafebabefacedbaddecaf888", "4d5c2af327cd64a62cf35abd2ba6fab4"
    text = "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72"
    text += "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b391aafd255"
    body = "42831ec2217774244b7221b784d0d49ce3aa212f2c02a4e035c17e2329aca12e"
    body += "21d514b25466931c7d8f6a5aac84aa051ba30b396a0aac973d58e091473f5985"
    sealed = bytes.fromhex(mac + nonce + body)
    assert sealing.legacy_open(key, sealed).hex() == text
    for length in (0, 27, 28, len(sealed) - 1):
        with pytest.raises(SealError):
            sealing.legacy_open(key, sealed[:length])
    for place in range(len(sealed)):
        bad = sealed[:place] + bytes([sealed[place] ^ 1]) + sealed[place + 1 :]
        with pytest.raises(SealError):
            sealing.legacy_open(key, bad)
