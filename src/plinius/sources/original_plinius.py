"""Records from the files of the original Plinius: images and labels, float32 under AES-128-GCM.

Images: u32le rows, columns, count; labels: u32le count; then records tag(16) | nonce(12) |
ciphertext of little-endian float32 numbers. Nothing binds a record to its index, or a label to its
image. The format is therefore only read, for existing data, and never written.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from plinius import sealing
from plinius.data.records import ABSENT, MAX_RECORD_BYTES, Array, ArraySpec, Source
from plinius.errors import KeyFileError, SealError
from plinius.files import open_to_read
from plinius.sources.array_reader import ExactReader, paired_source, too_short, wrong_kind

_FLOAT = np.dtype("<f4")
_IMAGE_HEADER, _LABEL_HEADER = 12, 4
_MNIST_PIXELS = 784


def legacy_source(
    key: bytes, images: Path | None, labels: Path | None, skip_bytes: int | None = None
) -> Source:
    """Records of the original's files under its 16-byte key; either can be None, but not both.

    Samples are float32 (rows * columns,), labels float32 (classes,). With `skip_bytes`, the images
    file is a part of a larger one: that many bytes are skipped instead of a header, and the images
    have 784 pixels. Raises SourceError, StorageError, KeyFileError for a key of another length
    and, while iterating, SealError.
    """
    if len(key) != sealing.LEGACY_KEY_BYTES:
        raise KeyFileError(
            f"The original's key has {sealing.LEGACY_KEY_BYTES} bytes, this one {len(key)}",
            "Give the key the files were made with",
        )
    samples = _images(key, images, skip_bytes) if images else None
    targets = _labels(key, labels) if labels else None
    return paired_source(samples, targets, samples.spec if samples else ABSENT, 0)


class _LegacyReader:
    """`count` sealed arrays of `length` float32 numbers, from byte `start` to the file's end."""

    def __init__(
        self, key: bytes, path: Path, what: str, start: int, count: int, length: int
    ) -> None:
        self._path, self.name, self.count = path, str(path), count
        self.spec = ArraySpec(_FLOAT, (length,))
        self._key, self._what, self._start = key, what, start

    def __iter__(self) -> Iterator[Array]:
        stride = _stride(self.spec.shape[0])
        with open_to_read(self._path) as file:
            file.seek(self._start)
            reader = ExactReader(self.name, file)
            for index in range(self.count):
                sealed = reader.read(stride, f"record {index}")
                try:
                    yield np.frombuffer(sealing.legacy_open(self._key, sealed), _FLOAT)
                except SealError:
                    raise sealing.does_not_open(f"{self._what} {index} of {self.name}") from None
            reader.expect_end()


def _images(key: bytes, path: Path, skip_bytes: int | None) -> _LegacyReader:
    if skip_bytes is None:
        size, (rows, columns, count) = _header(path, 3)
        start, pixels = _IMAGE_HEADER, rows * columns
    else:
        size, _ = _header(path, 0)
        start, pixels = skip_bytes, _MNIST_PIXELS
        count = (size - start) // _stride(pixels)
    if not 1 <= pixels <= MAX_RECORD_BYTES // _FLOAT.itemsize:
        raise wrong_kind(path, "an images file of the original")
    _require_size(path, size, start + count * _stride(pixels))
    return _LegacyReader(key, path, "Image", start, count, pixels)


def _labels(key: bytes, path: Path) -> _LegacyReader:
    """The header does not say how long a label is; it follows from the size of the file."""
    size, (count,) = _header(path, 1)
    if count == 0:
        raise wrong_kind(path, "a labels file of the original")
    stride, left = divmod(size - _LABEL_HEADER, count)
    classes = (stride - sealing.LEGACY_OVERHEAD) // _FLOAT.itemsize
    if left or classes < 1 or stride != _stride(classes):
        raise wrong_kind(path, "a labels file of the original, or is truncated")
    return _LegacyReader(key, path, "Label", _LABEL_HEADER, count, classes)


def _header(path: Path, numbers: int) -> tuple[int, list[int]]:
    """The size of a file in bytes, and its first `numbers` u32le numbers."""
    with open_to_read(path) as file:
        size = os.fstat(file.fileno()).st_size
        head = ExactReader(str(path), file).read(4 * numbers, "its header")
    return size, [int(number) for number in np.frombuffer(head, "<u4")]


def _require_size(path: Path, size: int, needed: int) -> None:
    if needed > size:
        raise too_short(str(path), needed, size)
    if needed < size:
        raise wrong_kind(path, "an images file of the original")


def _stride(length: int) -> int:
    """Bytes of one sealed array of `length` float32 numbers."""
    return sealing.LEGACY_OVERHEAD + length * _FLOAT.itemsize
