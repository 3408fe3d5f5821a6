"""Records from IDX files, the format of MNIST."""

import gzip
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from plinius.data.records import ABSENT, Array, Part, Source
from plinius.sources.array_reader import Stream, file_size, foreign, open_file, paired, too_short

_IDX_TYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
_IDX_MAX_DIMS = 9
_GZIP_MAGIC = b"\x1f\x8b"
_MAX_DEFLATE = 1032  # deflate cannot shrink data further than this many times


def idx_source(images: Path | None, labels: Path | None, classes: int = 0) -> Source:
    """Records of an IDX pair, gzipped or not; either file may be left out.

    Greyscale images (h, w) become samples (1, h, w); other shapes are kept. Labels are usually
    single numbers, below `classes` unless that is 0. Raises SourceError.
    """
    first = _Idx(images) if images else None
    sample = first.part if first else ABSENT
    if len(sample.shape) == 2:
        sample = Part(sample.dtype, (1, *sample.shape))
    return paired(first, _Idx(labels) if labels else None, sample, classes)


class _Idx:
    """One IDX file: 0, 0, type, number of dimensions, big-endian dimensions, numbers."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, str(path)
        size = file_size(path)
        with open_file(path) as raw:
            self._packed = raw.read(2) == _GZIP_MAGIC
        with self._open() as file:
            stream = Stream(self.name, file)
            head = stream.exact(4, "its header")
            if head[:2] != b"\0\0" or head[2] not in _IDX_TYPES:
                raise foreign(path, "an IDX file")
            if not 1 <= head[3] <= _IDX_MAX_DIMS:
                raise foreign(path, "an IDX file")
            dims = struct.unpack(f">{head[3]}I", stream.exact(4 * head[3], "its header"))
        self._start = 4 + 4 * head[3]
        self._stored = np.dtype(_IDX_TYPES[head[2]])
        self.count = dims[0]
        self.part = Part(self._stored.newbyteorder("<"), dims[1:])
        needed = self._start + self.count * self.part.nbytes
        if needed > size * (_MAX_DEFLATE if self._packed else 1):
            raise too_short(self.name, needed, size)

    def __iter__(self) -> Iterator[Array]:
        with self._open() as file:
            stream = Stream(self.name, file)
            stream.exact(self._start, "its header")
            yield from stream.numbers(self.count, self._stored, self.part)

    def _open(self) -> IO[bytes]:
        file = open_file(self.path)
        if not self._packed:
            return file
        file.close()
        return gzip.open(self.path)  # type: ignore[return-value]
