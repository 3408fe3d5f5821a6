"""A column: the samples or the labels of a file, read front to back; a pair makes records.

Sizes in headers are held against the real file before anything is allocated, and one value is in
memory at a time.
"""

import stat
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from plinius.data.records import ABSENT, Array, Part, Record, Source
from plinius.errors import SourceError
from plinius.files import open_to_read


class Column(Protocol):
    """`count` values of one type and shape under a `name` for people, out of the file `path`."""

    path: Path
    name: str
    count: int
    part: Part

    def __iter__(self) -> Iterator[Array]: ...


class Stream:
    """Exact reads from one open file; every failure is a SourceError naming it."""

    def __init__(self, name: str, file: IO[bytes]) -> None:
        self._name, self._file = name, file

    def exact(self, length: int, what: str) -> bytes:
        """The next `length` bytes, which are part of `what`."""
        data = self._read(length)
        if len(data) != length:
            raise SourceError(
                f"{self._name} is truncated: it ends before the end of {what}", "Fetch it again"
            )
        return data

    def numbers(self, count: int, stored: np.dtype[Any], part: Part) -> Iterator[Array]:
        """The next `count` values, `stored` so in the file, as `part`; the file must end there."""
        length = part.nbytes
        for index in range(count):
            data = np.frombuffer(self.exact(length, f"record {index}"), stored)
            yield data.astype(part.dtype, copy=False).reshape(part.shape)
        self.end()

    def end(self) -> None:
        """Refuse if the file goes on."""
        if self._read(1):
            raise SourceError(
                f"{self._name} goes on after its last record", "Check that it is the right file"
            )

    def _read(self, length: int) -> bytes:
        try:
            return self._file.read(length)
        except (OSError, EOFError, zlib.error, zipfile.BadZipFile) as error:
            raise SourceError(f"{self._name} is damaged: {error}", "Fetch it again") from None


def paired(images: Column | None, labels: Column | None, sample: Part, classes: int) -> Source:
    """The source of two columns in step, its samples reshaped to `sample`.

    A missing column is ABSENT in every record. Raises SourceError if the counts differ.
    """
    one = images or labels
    if one is None:
        raise ValueError("images, labels or both must be given")
    if images and labels and images.count != labels.count:
        raise SourceError(
            f"{images.name} holds {images.count} samples, but {labels.name} {labels.count} labels",
            "Give files that belong together",
        )
    label = labels.part if labels else ABSENT
    if labels and len(label.shape) == 1:
        classes = label.shape[0]

    def records() -> Iterator[Record]:
        nothing = np.zeros(ABSENT.shape, ABSENT.dtype)
        xs = iter(images) if images else (nothing for _ in range(one.count))
        ys = iter(labels) if labels else (nothing for _ in range(one.count))
        for x, y in zip(xs, ys, strict=True):
            yield x.reshape(sample.shape), y

    return Source(one.name, one.count, sample, label, records, classes)


def file_size(path: Path) -> int:
    """The size of a file in bytes. Raises SourceError if it is not a regular file."""
    try:
        status = path.stat()
    except OSError as error:
        raise unreadable(path, error) from None
    if not stat.S_ISREG(status.st_mode):
        raise SourceError(f"{path} is not a file", "Name a file")
    return status.st_size


def open_file(path: Path) -> IO[bytes]:
    """The file, opened to be read. Raises SourceError."""
    try:
        return open_to_read(path)
    except OSError as error:
        raise unreadable(path, error) from None


def unreadable(path: Path, error: OSError) -> SourceError:
    """The refusal for a file or folder that cannot be read."""
    return SourceError(f"Cannot read {path}: {error.strerror}", "Name one that can be read")


def foreign(name: Path | str, kind: str) -> SourceError:
    """The refusal for a file that is not of the kind asked for."""
    return SourceError(f"{name} is not {kind}", "Check that it is the right file")


def too_short(name: str, needed: int, size: int) -> SourceError:
    """The refusal for a file that cannot hold what its header declares."""
    return SourceError(
        f"{name} is truncated: its header declares {needed} bytes, but the file has {size}",
        "Fetch it again",
    )
