"""The committed sealed datasets: each good one opens to what the format's page says, each bad
one is refused by name."""

import hmac
import json
import struct
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from plinius.data.sealed_dataset import SealedDataset
from plinius.errors import FormatError, KeyFileError, PliniusError, SealError
from plinius.key_file import load_key
from plinius.keys import OwnerKey

FOLDER = Path(__file__).parent / "formats" / "sealed-dataset"
FETCH = "Fetch it again from its owner."
SEALED = (
    "It was altered, is in the wrong place, or was sealed with another key; "
    "fetch it again from its owner."
)
BAD: dict[str, tuple[type[PliniusError], str]] = {
    "magic": (FormatError, "{} is not a sealed dataset. Make one with plinius seal."),
    "version": (
        FormatError,
        "{} is a sealed dataset of version 2, and this program reads version 1. "
        "Use the release of plinius that made it.",
    ),
    "count": (FormatError, "The header of {} declares impossible sizes. " + FETCH),
    "dtype": (FormatError, "The header of {} is not valid. " + FETCH),
    "reserved": (FormatError, "The header of {} is not valid. " + FETCH),
    "truncated": (
        FormatError,
        "{} has 382 bytes, but its header declares 383: it was truncated. " + FETCH,
    ),
    "extended": (
        FormatError,
        "{} has 384 bytes, but its header declares 383: it was extended. " + FETCH,
    ),
    "other-key": (
        KeyFileError,
        "{} was sealed with key e164b86fda362370, but this is key 596dae7761826290. "
        "Give the key file it was sealed with (--key).",
    ),
    "classes": (SealError, "The header of {} does not open with this key. " + SEALED),
    "meta": (SealError, "The class list of {} does not open with this key. " + SEALED),
    "swapped-records": (SealError, "Record 0 of {} does not open with this key. " + SEALED),
    "flipped-tag": (SealError, "Record 2 of {} does not open with this key. " + SEALED),
}


@pytest.fixture
def key(tmp_path: Path) -> OwnerKey:
    """The public test key; git does not keep the mode a key file needs."""
    copy = tmp_path / "test.key"
    copy.write_bytes((FOLDER / "test.key").read_bytes())
    copy.chmod(0o600)
    return load_key(copy)


def test_good_opens_to_the_documented_content(key: OwnerKey) -> None:
    """The labelled vector holds three images, their labels and their class names."""
    dataset = SealedDataset.from_file(FOLDER / "good.sealed", key)
    samples, labels = dataset.open_batch([0, 1, 2])
    assert dataset.class_names == ("ash", "birch", "cedar")
    assert (dataset.header.id, dataset.header.classes) == (b"\1" * 16, 3)
    assert samples.dtype == np.uint8
    assert samples.reshape(3, 6).tolist() == [[10 * i + j for j in range(6)] for i in range(3)]
    assert labels.tolist() == [0, 1, 2]


def test_good_opens_by_the_page_alone() -> None:
    """A reader written from the format's page, with a cipher and nothing of ours, agrees."""
    raw, owner = (FOLDER / "good.sealed").read_bytes(), bytes(range(32))

    def cipher(purpose: bytes) -> AESGCM:
        secret = hmac.digest(raw[32:64], owner, "sha256")
        return AESGCM(hmac.digest(secret, b"plinius/1/" + purpose + b"\1", "sha256"))

    def nonce(number: int) -> bytes:
        return number.to_bytes(12, "big")

    header, records = cipher(b"dataset-header"), cipher(b"dataset-records")
    first = 256 + int.from_bytes(raw[12:16], "little")
    assert header.decrypt(nonce(0), raw[240:256], raw[:240]) == b""
    assert json.loads(header.decrypt(nonce(1), raw[256:first], raw[:256])) == {
        "class_names": ["ash", "birch", "cedar"]
    }
    for i in range(3):
        sealed = raw[first + 23 * i : first + 23 * (i + 1)]
        aad = struct.pack("<I16sQQ", 1, raw[16:32], 3, i)
        assert records.decrypt(nonce(i), sealed, aad) == bytes([*range(10 * i, 10 * i + 6), i])


def test_good_unlabelled_opens_to_the_documented_content(key: OwnerKey) -> None:
    """The vector without labels gives labels of zero bytes."""
    dataset = SealedDataset.from_file(FOLDER / "good-unlabelled.sealed", key)
    samples, labels = dataset.open_batch([1, 0])
    assert dataset.class_names == ()
    assert samples.dtype == np.float32
    assert samples.tolist() == [[1.0, 1.5], [0.0, 0.5]]
    assert labels.shape == (2, 0)


@pytest.mark.parametrize("name", sorted(BAD))
def test_bad_is_refused_by_name(key: OwnerKey, name: str) -> None:
    """Every bad vector is refused with the error and the sentence promised for it."""
    kind, sentence = BAD[name]
    file = FOLDER / f"bad-{name}.sealed"
    with pytest.raises(kind) as caught:
        SealedDataset.from_file(file, key).open_batch([0, 1, 2])
    assert type(caught.value) is kind
    assert str(caught.value) == sentence.format(file.name)


def test_every_vector_is_tested() -> None:
    """No bad vector is unused."""
    assert {f"bad-{name}.sealed" for name in BAD} == {f.name for f in FOLDER.glob("bad-*")}
