"""What a record is: a sample and its label, each of one fixed dtype and shape.

`plinius.sources` yields records through `Source`, which checks every one: code that reads a source
can rely on its counts, dtypes, shapes and label ranges.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from plinius.errors import SourceError
from plinius.jsonvalue import Json

Array = npt.NDArray[Any]
Record = tuple[Array, Array]
"""One sample and its label."""

Progress = Callable[[int, int], None]
"""A callback for long work, called now and then with (done, total)."""

MAX_COUNT = 2**40
MAX_RECORD_BYTES = 64 * 2**20
MAX_DIMS = 8

DTYPES: dict[int, np.dtype[Any]] = {
    code: np.dtype(name)
    for code, name in enumerate(
        ("u1", "i1", "<u2", "<i2", "<u4", "<i4", "<u8", "<i8", "<f2", "<f4", "<f8"), start=1
    )
}
"""The dtypes that records may have, by their code in a sealed dataset; all little-endian."""


@dataclass(frozen=True)
class ArraySpec:
    """The dtype and shape of the sample, or of the label, of every record.

    The shape of a single number is ().
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of one such array."""
        return self.dtype.itemsize * math.prod(self.shape)

    @property
    def is_index(self) -> bool:
        """Whether the array is a single integer, as a class index is."""
        return self.shape == () and self.dtype.kind in "iu"

    def problem(self) -> str | None:
        """Why no record can have such an array, or None if it can."""
        if self == ABSENT:
            return None
        if self.dtype not in DTYPES.values():
            return f"dtype {self.dtype} is not one of {', '.join(map(str, DTYPES.values()))}"
        if len(self.shape) > MAX_DIMS:
            return f"{len(self.shape)} dimensions are more than {MAX_DIMS}"
        if any(dim < 1 for dim in self.shape):
            return f"shape {self.shape} has no elements"
        if self.nbytes > MAX_RECORD_BYTES:
            return f"shape {self.shape} of {self.dtype} is larger than {MAX_RECORD_BYTES} bytes"
        return None


ABSENT = ArraySpec(np.dtype("u1"), (0,))
"""The labels of a dataset without labels, or the samples of one without samples: 0 bytes."""


@dataclass(frozen=True)
class Source:
    """A finite sequence of records; each iteration calls `records` and reads them from the start.

    `name` is used in messages. `classes` is the number of classes, 0 if unknown; if labels are
    single integers, each must be below it. `about` has the other members of the sealed meta block
    (docs/formats/sealed-dataset.md). Raises SourceError when created with counts, dtypes or
    shapes that cannot be sealed, and while iterating if a record differs from what was declared.
    """

    name: str
    count: int
    sample: ArraySpec
    label: ArraySpec
    records: Callable[[], Iterator[Record]]
    classes: int = 0
    class_names: tuple[str, ...] = ()
    about: dict[str, Json] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 1 <= self.count <= MAX_COUNT:
            raise SourceError(
                f"{self.name} holds {self.count} records", f"Give between 1 and {MAX_COUNT}"
            )
        for what, spec in (("Samples", self.sample), ("Labels", self.label)):
            if problem := spec.problem():
                raise SourceError(
                    f"{what} of {self.name} cannot be sealed: {problem}", "Convert them first"
                )
        if not 1 <= self.sample.nbytes + self.label.nbytes <= MAX_RECORD_BYTES:
            raise SourceError(
                f"A record of {self.name} has {self.sample.nbytes + self.label.nbytes} bytes",
                f"Give between 1 and {MAX_RECORD_BYTES}",
            )
        if not 0 <= self.classes < 2**32:
            raise SourceError(f"{self.classes} classes are not possible", "Give 0 to 2**32 - 1")

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
        for what, value, spec in (("sample", sample, self.sample), ("label", label, self.label)):
            if value.dtype != spec.dtype or value.shape != spec.shape:
                raise SourceError(
                    f"The {what} of record {index} of {self.name} is {value.dtype} {value.shape}, "
                    f"not {spec.dtype} {spec.shape} as declared for all records",
                    "Give every record the same dtype and shape",
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
            "Try again while nothing writes to it",
        )
