"""Records from .npz archives."""

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from plinius.data.records import Array, Part, Source
from plinius.errors import SourceError
from plinius.sources.array_reader import Stream, file_size, foreign, paired, too_short

_MAX_DEFLATE = 1032  # deflate cannot shrink data further than this many times
_NPY_MAGIC = b"\x93NUMPY\x01\x00"
_NPY_HEADER = re.compile(
    rb"\{ *'descr': *'([<>|=][a-zA-Z]\d{0,3})', *'fortran_order': *(True|False), *"
    rb"'shape': *\(((?:\d{1,15}, *)*(?:\d{1,15})?)\),? *\}\s*"
)
_ZIP_ERRORS = (zipfile.BadZipFile, NotImplementedError, ValueError, RuntimeError, OSError)


def npz_source(path: Path, classes: int = 0) -> Source:
    """Records of an .npz archive: array `x` holds the samples, array `y` (if any) the labels.

    Shapes and types are kept, except that big-endian numbers become little-endian. Whole numbers
    as labels are below `classes` unless that is 0. Raises SourceError.
    """
    file_size(path)
    with _archive(path) as archive:
        names = archive.namelist()
    if "x.npy" not in names:
        raise SourceError(f"{path} has no array named x", "Save it with numpy.savez(path, x=, y=)")
    x = _Npy(path, "x")
    return paired(x, _Npy(path, "y") if "y.npy" in names else None, x.part, classes)


class _Npy:
    """One array of an .npz archive; its header is matched as a whole, never evaluated."""

    def __init__(self, path: Path, array: str) -> None:
        self.path, self._member, self.name = path, f"{array}.npy", f"Array {array} of {path}"
        with _archive(path) as archive, self._open(archive) as file:
            size = archive.getinfo(self._member).file_size
            stream = Stream(self.name, file)
            head = stream.exact(len(_NPY_MAGIC) + 2, "its header")
            header = stream.exact(int.from_bytes(head[-2:], "little"), "its header")
        match = _NPY_HEADER.fullmatch(header)
        if not head.startswith(_NPY_MAGIC) or not match:
            raise self._unfit()
        if match[2] == b"True":
            raise SourceError(f"{self.name} is in Fortran order", "Save it in C order")
        try:
            self._stored = np.dtype(match[1].decode())
        except TypeError:
            raise self._unfit() from None
        shape = tuple(int(dim) for dim in match[3].replace(b" ", b"").split(b",") if dim)
        if not shape or self._stored.hasobject:
            raise self._unfit()
        self._start = len(head) + len(header)
        self.count = shape[0]
        self.part = Part(self._stored.newbyteorder("<"), shape[1:])
        needed = self._start + self.count * self.part.nbytes
        if needed > min(size, file_size(path) * _MAX_DEFLATE):
            raise too_short(self.name, needed, size)

    def __iter__(self) -> Iterator[Array]:
        with _archive(self.path) as archive, self._open(archive) as file:
            stream = Stream(self.name, file)
            stream.exact(self._start, "its header")
            yield from stream.numbers(self.count, self._stored, self.part)

    def _open(self, archive: zipfile.ZipFile) -> IO[bytes]:
        info = archive.getinfo(self._member)
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise foreign(self.path, "an archive written by numpy.savez")
        try:
            return archive.open(info)
        except _ZIP_ERRORS:
            raise foreign(self.path, "an archive written by numpy.savez") from None

    def _unfit(self) -> SourceError:
        return foreign(self.name, "an array of plain numbers")


def _archive(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except _ZIP_ERRORS:
        raise foreign(path, "an archive written by numpy.savez") from None
