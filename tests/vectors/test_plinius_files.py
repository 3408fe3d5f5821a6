"""The files the original published: read whole, sealed anew, and refused when altered."""

import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest

from plinius.data.sealed_dataset import SealedDataset, seal_dataset
from plinius.errors import KeyFileError, SealError, SourceError
from plinius.keys import OwnerKey
from plinius.sources.original_plinius import legacy_source

FOLDER = Path(__file__).parents[2].parent / "shared" / "vectors" / "plinius"
LABELS, IMAGES = FOLDER / "enc_mnist_labels.data", FOLDER / "img.ae"
KEY = bytes.fromhex("7639792442264528482b4d3b62515e8f")
SKIP = 1588
HISTOGRAM = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]

pytestmark = pytest.mark.skipif(not LABELS.exists(), reason=f"the vectors are not in {FOLDER}")


def test_all_labels_open() -> None:
    """The 60,000 labels are MNIST's: their histogram, and the digest of the rebuilt IDX file."""
    source = legacy_source(KEY, None, LABELS)
    hot = np.array([label for _, label in source])
    assert (source.count, source.classes, hot.dtype.name) == (60000, 10, "float32")
    assert ((hot == 0) | (hot == 1)).all()
    assert (hot.sum(axis=1) == 1).all()
    digits = hot.argmax(axis=1).astype(np.uint8)
    assert np.bincount(digits).tolist() == HISTOGRAM
    idx = b"\0\0\x08\x01" + struct.pack(">I", 60000) + digits.tobytes()
    assert hashlib.md5(idx).hexdigest() == "a25bea736e30d166cdddb491f175f624"


def test_all_images_open() -> None:
    """The 346 images of the last part are whole pixels times float32(1/255), and MNIST's."""
    images = np.array([image for image, _ in legacy_source(KEY, IMAGES, None, SKIP)])
    assert (images.shape, images.dtype.name) == ((346, 784), "float32")
    pixels = np.rint(images * 255).astype(np.uint8)
    assert (pixels * np.float32(1 / 255) == images).all()
    digest = hashlib.sha256(pixels.tobytes()).hexdigest()
    assert digest.startswith("b7204a4db0011b54")
    assert digest.endswith("a30bfe0")


def test_images_and_labels_seal_and_open_again(tmp_path: Path) -> None:
    """Images with their own labels, sealed in our format, open to the same arrays."""
    raw = LABELS.read_bytes()
    last = tmp_path / "labels.data"
    last.write_bytes(struct.pack("<I", 346) + raw[-346 * 68 :])
    source = legacy_source(KEY, IMAGES, last, SKIP)
    key = OwnerKey.generate()
    seal_dataset(source, key, tmp_path / "mnist.sealed")
    samples, labels = SealedDataset.from_file(tmp_path / "mnist.sealed", key).open_batch(range(346))
    assert labels.argmax(axis=1)[:10].tolist() == [5, 2, 9, 4, 1, 0, 3, 7, 5, 8]
    for got_x, got_y, (x, y) in zip(samples, labels, source, strict=True):
        assert np.array_equal(got_x, x)
        assert np.array_equal(got_y, y)


def test_labels_seal_and_open_again(tmp_path: Path) -> None:
    """Labels alone make a dataset whose samples are empty."""
    key = OwnerKey.generate()
    source = legacy_source(KEY, None, LABELS)
    seal_dataset(source, key, tmp_path / "labels.sealed")
    opened = SealedDataset.from_file(tmp_path / "labels.sealed", key).open_batch(range(60000))
    assert opened[0].shape == (60000, 0)
    assert np.array_equal(opened[1], np.array([label for _, label in source]))


@pytest.mark.parametrize("offset", [0, 16, 28, 3163])
def test_one_flipped_bit_is_refused(tmp_path: Path, offset: int) -> None:
    """A flipped bit in tag, nonce or ciphertext of an image is refused by the image's number."""
    raw = bytearray(IMAGES.read_bytes())
    raw[SKIP + 7 * 3164 + offset] ^= 1
    bad = tmp_path / "img.bad"
    bad.write_bytes(raw)
    with pytest.raises(SealError, match=rf"^Image 7 of {bad} does not open with this key\."):
        list(legacy_source(KEY, bad, None, SKIP))


def test_a_headed_images_file_is_read(tmp_path: Path) -> None:
    """A whole images file starts with rows, columns and number."""
    whole = tmp_path / "imgs.data"
    whole.write_bytes(struct.pack("<3I", 28, 28, 346) + IMAGES.read_bytes()[SKIP:])
    expected = list(legacy_source(KEY, IMAGES, None, SKIP))
    for (got, _), (image, _) in zip(legacy_source(KEY, whole, None), expected, strict=True):
        assert np.array_equal(got, image)


def test_a_wrong_key_is_refused() -> None:
    """Another key opens nothing; a key of another length is refused at once."""
    with pytest.raises(SealError, match="^Label 0 of "):
        next(iter(legacy_source(bytes(16), None, LABELS)))
    with pytest.raises(KeyFileError, match="^The original's key has 16 bytes, this one 32"):
        legacy_source(bytes(32), None, LABELS)


def test_counts_that_differ_are_refused() -> None:
    """346 images do not belong to 60,000 labels."""
    with pytest.raises(SourceError) as caught:
        legacy_source(KEY, IMAGES, LABELS, SKIP)
    assert str(caught.value) == (
        f"{IMAGES} holds 346 samples, but {LABELS} 60000 labels. Give files that belong together."
    )


def test_files_that_do_not_add_up_are_refused(tmp_path: Path) -> None:
    """Cut, extended, or with a huge count in the header: refused before anything is read."""
    labels, images = LABELS.read_bytes()[: 4 + 68 * 5], IMAGES.read_bytes()[SKIP : SKIP + 3164]
    file = tmp_path / "file"
    for raw in (labels, struct.pack("<I", 5) + labels[4:-1], bytes(4), b"\5\0"):
        file.write_bytes(raw)
        with pytest.raises(SourceError):
            legacy_source(KEY, None, file)
    for header in ((28, 28, 2), (2**32 - 1, 2**32 - 1, 1), (0, 28, 1), (1, 1, 1), (28, 28, 0)):
        file.write_bytes(struct.pack("<3I", *header) + images)
        with pytest.raises(SourceError):
            legacy_source(KEY, file, None)
    for skip in (1, 10**9):
        with pytest.raises(SourceError):
            legacy_source(KEY, file, None, skip)
