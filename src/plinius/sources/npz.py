"""Records from .npz archives."""

import io
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from numpy.lib import format as npy

from plinius.data.records import Array, ArraySpec, Source
from plinius.errors import SourceError
from plinius.files import open_to_read
from plinius.sources.array_reader import ExactReader, paired_source, too_short, wrong_kind

_MAX_DEFLATE = 1032  # deflate output is at most this many times as long as its input
_VERSION_1 = npy.magic(1, 0)
_MAX_HEADER_BYTES = 1024  # NumPy parses a header as a Python literal: short ones are harmless
_ARCHIVE = "an archive written by numpy.savez"
_ZIP_ERRORS = (zipfile.BadZipFile, NotImplementedError, ValueError, RuntimeError, OSError)


def npz_source(path: Path, classes: int = 0) -> Source:
    """Records of an .npz archive: array `x` holds the samples, array `y` (if any) the labels.

    Shapes and dtypes are kept, except that big-endian numbers become little-endian. Labels that
    are single integers are below `classes` unless that is 0. Raises SourceError, StorageError.
    """
    with _archive(path) as (archive, _):
        names = archive.namelist()
    if "x.npy" not in names:
        raise SourceError(f"{path} has no array named x", "Save it with numpy.savez(path, x=, y=)")
    samples = _NpyReader(path, "x")
    labels = _NpyReader(path, "y") if "y.npy" in names else None
    return paired_source(samples, labels, samples.spec, classes)


class _NpyReader:
    """The rows of one array of an .npz archive, in .npy format version 1; nothing is unpickled."""

    def __init__(self, path: Path, array: str) -> None:
        self._path, self._member, self.name = path, f"{array}.npy", f"Array {array} of {path}"
        with _archive(path) as (archive, file_bytes), self._open(archive) as reader:
            size = archive.getinfo(self._member).file_size
            start = reader.read(len(_VERSION_1) + 2, "its header")
            length = int.from_bytes(start[-2:], "little")
            if not start.startswith(_VERSION_1) or length > _MAX_HEADER_BYTES:
                raise self._not_plain()
            header = start + reader.read(length, "its header")
        stream = io.BytesIO(header)
        try:
            npy.read_magic(stream)
            shape, fortran_order, self._stored = npy.read_array_header_1_0(stream)
        except Exception:  # what is no header raises nearly anything
            raise self._not_plain() from None
        if fortran_order:
            raise SourceError(f"{self.name} is in Fortran order", "Save it in C order")
        if not shape or min(shape) < 0 or self._stored.hasobject:
            raise self._not_plain()
        self._header_bytes = len(header)
        self.count = shape[0]
        self.spec = ArraySpec(self._stored.newbyteorder("<"), shape[1:])
        needed = self._header_bytes + self.count * self.spec.nbytes
        if needed > min(size, file_bytes * _MAX_DEFLATE):
            raise too_short(self.name, needed, size)

    def __iter__(self) -> Iterator[Array]:
        with _archive(self._path) as (archive, _), self._open(archive) as reader:
            reader.read(self._header_bytes, "its header")
            yield from reader.arrays(self.count, self._stored, self.spec)

    @contextmanager
    def _open(self, archive: zipfile.ZipFile) -> Iterator[ExactReader]:
        info = archive.getinfo(self._member)
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise wrong_kind(self._path, _ARCHIVE)
        try:
            file = archive.open(info)
        except _ZIP_ERRORS:
            raise wrong_kind(self._path, _ARCHIVE) from None
        with file:
            yield ExactReader(self.name, file)

    def _not_plain(self) -> SourceError:
        return wrong_kind(self.name, "an array of plain numbers")


@contextmanager
def _archive(path: Path) -> Iterator[tuple[zipfile.ZipFile, int]]:
    """An open archive, and the bytes of its file."""
    with open_to_read(path) as file:
        try:
            archive = zipfile.ZipFile(file)
        except _ZIP_ERRORS:
            raise wrong_kind(path, _ARCHIVE) from None
        with archive:
            yield archive, os.fstat(file.fileno()).st_size
