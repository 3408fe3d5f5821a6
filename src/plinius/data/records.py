"""What a record is: a sample and its label, each of one fixed type and shape, and streams of them.

Everything that yields records (`sources`, `legacy`) yields them through `Source`, which checks
each one, so whatever reads a source may rely on counts, types, shapes and label ranges.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from plinius.errors import SourceError

Array = npt.NDArray[Any]
Record = tuple[Array, Array]
"""One sample and its label."""

MAX_COUNT = 2**40
MAX_RECORD_BYTES = 64 * 2**20
MAX_DIMS = 8

DTYPES: dict[int, np.dtype[Any]] = {
    code: np.dtype(name)
    for code, name in enumerate(
        ("u1", "i1", "<u2", "<i2", "<u4", "<i4", "<u8", "<i8", "<f2", "<f4", "<f8"), start=1
    )
}
"""The types a part may have, by their code in a sealed dataset: little-endian, never objects."""


@dataclass(frozen=True)
class Part:
    """The type and shape of one part of every record; the shape is empty for a single number."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of this part in each record."""
        return self.dtype.itemsize * math.prod(self.shape)

    @property
    def is_index(self) -> bool:
        """Whether the part is a single whole number, as a class index is."""
        return self.shape == () and self.dtype.kind in "iu"

    def flaw(self) -> str | None:
        """Why no record may have this part, or None if it may."""
        if self == ABSENT:
            return None
        if self.dtype not in DTYPES.values():
            return f"type {self.dtype} is not one of {', '.join(map(str, DTYPES.values()))}"
        if len(self.shape) > MAX_DIMS:
            return f"{len(self.shape)} dimensions are more than {MAX_DIMS}"
        if any(dim < 1 for dim in self.shape):
            return f"shape {self.shape} holds nothing"
        if self.nbytes > MAX_RECORD_BYTES:
            return f"shape {self.shape} of {self.dtype} is larger than {MAX_RECORD_BYTES} bytes"
        return None


ABSENT = Part(np.dtype("u1"), (0,))
"""The part of zero bytes: a dataset without labels, or without samples."""


@dataclass(frozen=True)
class Source:
    """A finite stream of records, read anew by each iteration, one record in memory at a time.

    `classes` is 0 if unknown; with single whole numbers as labels, every label is below it.
    Raises SourceError when built of parts that cannot be sealed, and while iterating if a record
    does not fit what was declared.
    """

    name: str
    count: int
    sample: Part
    label: Part
    records: Callable[[], Iterator[Record]]
    classes: int = 0
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.count <= MAX_COUNT:
            raise SourceError(
                f"{self.name} holds {self.count} records", f"Give between 1 and {MAX_COUNT}"
            )
        for what, part in (("Samples", self.sample), ("Labels", self.label)):
            if flaw := part.flaw():
                raise SourceError(
                    f"{what} of {self.name} cannot be sealed: {flaw}", "Convert them first"
                )
        if not 1 <= self.sample.nbytes + self.label.nbytes <= MAX_RECORD_BYTES:
            raise SourceError(
                f"A record of {self.name} has {self.sample.nbytes + self.label.nbytes} bytes",
                f"Give between 1 and {MAX_RECORD_BYTES}",
            )
        if not 0 <= self.classes < 2**32:
            raise SourceError(f"{self.classes} classes are not possible", "Give their number")

    def __iter__(self) -> Iterator[Record]:
        seen = 0
        for sample, label in self.records():
            if seen == self.count:
                raise self._changed(f"more than the {self.count} records it had")
            self._check(seen, sample, label)
            yield sample, label
            seen += 1
        if seen != self.count:
            raise self._changed(f"{seen} records, not the {self.count} it had")

    def _check(self, index: int, sample: Array, label: Array) -> None:
        for what, value, part in (("sample", sample, self.sample), ("label", label, self.label)):
            if value.dtype != part.dtype or value.shape != part.shape:
                raise SourceError(
                    f"The {what} of record {index} of {self.name} is {value.dtype} {value.shape}, "
                    f"not {part.dtype} {part.shape} as the others",
                    "Make them all alike",
                )
        if self.label.is_index:
            number = int(label)
            if number < 0:
                raise SourceError(
                    f"The label of record {index} of {self.name} is {number}",
                    "Number the classes from 0",
                )
            if self.classes and number >= self.classes:
                raise SourceError(
                    f"The label of record {index} of {self.name} is {number}, "
                    f"but there are {self.classes} classes",
                    "Number the classes from 0, or correct the number of classes",
                )

    def _changed(self, found: str) -> SourceError:
        return SourceError(
            f"{self.name} changed while it was read: it now holds {found}",
            "Leave it alone and try again",
        )
