"""Records from the files the original published: images and labels, each float32 under AES-128-GCM.

Images: u32le rows, columns, number; labels: u32le number; then records MAC(16) | IV(12) |
ciphertext of float32 little-endian numbers. Nothing binds a record to its place or its label to
its image: the format is read for the sake of existing data and never written.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from plinius import sealing
from plinius.data.records import ABSENT, MAX_RECORD_BYTES, Array, Part, Source
from plinius.errors import KeyFileError, SealError
from plinius.sources.array_reader import Stream, file_size, foreign, open_file, paired, too_short

_FLOAT = np.dtype("<f4")
_IMAGE_HEADER, _LABEL_HEADER = 12, 4
_MNIST_PIXELS = 784


def legacy_source(
    key: bytes, images: Path | None, labels: Path | None, skip_bytes: int | None = None
) -> Source:
    """Records of the original's files under its 16-byte key; either file may be left out.

    Samples are float32 (rows * columns,), labels float32 (classes,). With `skip_bytes`, the
    images file is a piece of a larger one: that many bytes are passed over instead of a header,
    and the images have 784 pixels. Raises SourceError, KeyFileError for a key of another length
    and, while iterating, SealError.
    """
    if len(key) != sealing.LEGACY_KEY_BYTES:
        raise KeyFileError(
            f"The original's key has {sealing.LEGACY_KEY_BYTES} bytes, this one {len(key)}",
            "Give the key the files were made with",
        )
    first = _images(key, images, skip_bytes) if images else None
    second = _labels(key, labels) if labels else None
    return paired(first, second, first.part if first else ABSENT, 0)


class _Column:
    """`count` sealed records of `length` float32 numbers, from byte `start` to the file's end."""

    def __init__(
        self, key: bytes, path: Path, what: str, start: int, count: int, length: int
    ) -> None:
        self.path, self.name, self.count = path, str(path), count
        self.part = Part(_FLOAT, (length,))
        self._key, self._what, self._start = key, what, start

    def __iter__(self) -> Iterator[Array]:
        stride = sealing.LEGACY_OVERHEAD + self.part.nbytes
        with open_file(self.path) as file:
            file.seek(self._start)
            stream = Stream(self.name, file)
            for index in range(self.count):
                sealed = stream.exact(stride, f"record {index}")
                try:
                    yield np.frombuffer(sealing.legacy_open(self._key, sealed), _FLOAT)
                except SealError:
                    raise sealing.broken(f"{self._what} {index} of {self.name}") from None
            stream.end()


def _images(key: bytes, path: Path, skip_bytes: int | None) -> _Column:
    size = file_size(path)
    if skip_bytes is None:
        rows, columns, count = _header(path, 3)
        start, pixels = _IMAGE_HEADER, rows * columns
    else:
        start, pixels = skip_bytes, _MNIST_PIXELS
        count = (size - start) // _stride(pixels)
    if not 1 <= pixels <= MAX_RECORD_BYTES // _FLOAT.itemsize:
        raise foreign(path, "an images file of the original")
    return _Column(key, path, "Image", start, _fitting(path, size, start, count, pixels), pixels)


def _labels(key: bytes, path: Path) -> _Column:
    """The header does not tell how long a label is, but the file's size does."""
    size = file_size(path)
    (count,) = _header(path, 1)
    if count == 0:
        raise foreign(path, "a labels file of the original")
    stride, left = divmod(size - _LABEL_HEADER, count)
    classes = (stride - sealing.LEGACY_OVERHEAD) // _FLOAT.itemsize
    if left or classes < 1 or stride != _stride(classes):
        raise foreign(path, "a labels file of the original, or is truncated")
    return _Column(key, path, "Label", _LABEL_HEADER, count, classes)


def _header(path: Path, numbers: int) -> list[int]:
    with open_file(path) as file:
        head = Stream(str(path), file).exact(4 * numbers, "its header")
    return [int(number) for number in np.frombuffer(head, "<u4")]


def _fitting(path: Path, size: int, start: int, count: int, pixels: int) -> int:
    needed = start + count * _stride(pixels)
    if needed > size:
        raise too_short(str(path), needed, size)
    if needed < size:
        raise foreign(path, "an images file of the original")
    return count


def _stride(length: int) -> int:
    return sealing.LEGACY_OVERHEAD + length * _FLOAT.itemsize
