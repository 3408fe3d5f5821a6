"""Reads the samples or the labels of a file from front to back, and pairs both into records.

Sizes declared in a file are compared with its real size before anything is allocated, and one
array is in memory at a time.
"""

import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from plinius.data.records import ABSENT, Array, ArraySpec, Record, Source
from plinius.errors import SourceError


class ArrayReader(Protocol):
    """Reads `count` arrays of one `spec` from a file; each iteration starts at the first.

    `name` is used in messages. Iterating raises SourceError if the file does not hold them.
    """

    name: str
    count: int
    spec: ArraySpec

    def __iter__(self) -> Iterator[Array]: ...


class ExactReader:
    """Reads exactly the bytes asked for from an open file; else raises SourceError.

    `name` is used in messages.
    """

    def __init__(self, name: str, file: IO[bytes]) -> None:
        self._name, self._file = name, file

    def read(self, length: int, what: str) -> bytes:
        """The next `length` bytes, which belong to `what` (for the message)."""
        data = self._read(length)
        if len(data) != length:
            raise SourceError(
                f"{self._name} is truncated: it ends before the end of {what}", "Fetch it again"
            )
        return data

    def arrays(self, count: int, stored: np.dtype[Any], spec: ArraySpec) -> Iterator[Array]:
        """The next `count` arrays, of dtype `stored` in the file, as `spec`; then the end."""
        for index in range(count):
            data = np.frombuffer(self.read(spec.nbytes, f"record {index}"), stored)
            yield data.astype(spec.dtype, copy=False).reshape(spec.shape)
        self.expect_end()

    def expect_end(self) -> None:
        """Raise SourceError if there are more bytes."""
        if self._read(1):
            raise SourceError(
                f"{self._name} continues after its last record", "Check that it is the right file"
            )

    def _read(self, length: int) -> bytes:
        try:
            return self._file.read(length)
        except (OSError, EOFError, zlib.error, zipfile.BadZipFile) as error:
            raise SourceError(f"{self._name} is damaged: {error}", "Fetch it again") from None


def paired_source(
    samples: ArrayReader | None, labels: ArrayReader | None, sample: ArraySpec, classes: int
) -> Source:
    """The source of records (sample i, label i), with samples reshaped to `sample.shape`.

    A reader that is None gives ABSENT arrays. `classes` is 0 if unknown; labels of one dimension
    have as many classes as elements. Raises SourceError if the counts differ or they
    look swapped, ValueError if both readers are None.
    """
    one = samples or labels
    if one is None:
        raise ValueError("samples, labels or both must be given")
    if samples and labels and samples.count != labels.count:
        raise SourceError(
            f"{samples.name} holds {samples.count} samples, "
            f"but {labels.name} {labels.count} labels",
            "Give files that belong together",
        )
    if samples and labels and not samples.spec.shape and len(labels.spec.shape) > 1:
        raise SourceError(
            f"{samples.name} holds single numbers, and {labels.name} arrays of "
            f"{len(labels.spec.shape)} dimensions: samples and labels look swapped",
            "Exchange them",
        )
    label = labels.spec if labels else ABSENT
    if labels and len(label.shape) == 1:
        classes = label.shape[0]

    def records() -> Iterator[Record]:
        absent = np.zeros(ABSENT.shape, ABSENT.dtype)
        xs = iter(samples) if samples else (absent for _ in range(one.count))
        ys = iter(labels) if labels else (absent for _ in range(one.count))
        for x, y in zip(xs, ys, strict=True):
            yield x.reshape(sample.shape), y

    return Source(one.name, one.count, sample, label, records, classes)


def wrong_kind(name: Path | str, kind: str) -> SourceError:
    """The refusal for a file that is not `kind`."""
    return SourceError(f"{name} is not {kind}", "Check that it is the right file")


def too_short(name: str, needed: int, size: int) -> SourceError:
    """The refusal for a file of `size` bytes whose header declares `needed` bytes."""
    return SourceError(
        f"{name} is truncated: its header declares {needed} bytes, but the file has {size}",
        "Fetch it again",
    )
