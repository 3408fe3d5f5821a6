"""Records from IDX files, the format of MNIST (https://yann.lecun.com/exdb/mnist)."""

import gzip
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO, BinaryIO, cast

import numpy as np

from plinius.data.records import ABSENT, Array, ArraySpec, Source
from plinius.files import open_to_read
from plinius.sources.array_reader import ExactReader, paired_source, too_short, wrong_kind

_DTYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
_MAX_DIMS = 9
_GZIP_MAGIC = b"\x1f\x8b"
_MAX_DEFLATE = 1032  # deflate output is at most this many times as long as its input


def idx_source(images: Path | None, labels: Path | None, classes: int = 0) -> Source:
    """Records of a pair of IDX files, gzipped or not; either can be None, but not both.

    Greyscale images (h, w) become samples (1, h, w); other shapes are kept. Labels are usually
    single integers, below `classes` unless that is 0. Raises SourceError, StorageError.
    """
    samples = _IdxReader(images) if images else None
    sample = samples.spec if samples else ABSENT
    if len(sample.shape) == 2:
        sample = ArraySpec(sample.dtype, (1, *sample.shape))
    return paired_source(samples, _IdxReader(labels) if labels else None, sample, classes)


class _IdxReader:
    """The arrays of one IDX file: 0, 0, dtype, number of dimensions, dimensions (u32be), data."""

    def __init__(self, path: Path) -> None:
        self._path, self.name = path, str(path)
        with open_to_read(path) as file:
            size = os.fstat(file.fileno()).st_size
            self._gzipped = file.read(2) == _GZIP_MAGIC
            file.seek(0)
            reader = self._reader(file)
            head = reader.read(4, "its header")
            if head[:2] != b"\0\0" or head[2] not in _DTYPES or not 1 <= head[3] <= _MAX_DIMS:
                raise wrong_kind(path, "an IDX file")
            dims = struct.unpack(f">{head[3]}I", reader.read(4 * head[3], "its header"))
        self._header_bytes = 4 + 4 * head[3]
        self._stored = np.dtype(_DTYPES[head[2]])
        self.count = dims[0]
        self.spec = ArraySpec(self._stored.newbyteorder("<"), dims[1:])
        needed = self._header_bytes + self.count * self.spec.nbytes
        if needed > size * (_MAX_DEFLATE if self._gzipped else 1):
            raise too_short(self.name, needed, size)

    def __iter__(self) -> Iterator[Array]:
        with open_to_read(self._path) as file:
            reader = self._reader(file)
            reader.read(self._header_bytes, "its header")
            yield from reader.arrays(self.count, self._stored, self.spec)

    def _reader(self, file: BinaryIO) -> ExactReader:
        stream = gzip.GzipFile(fileobj=file) if self._gzipped else file
        return ExactReader(self.name, cast(IO[bytes], stream))
