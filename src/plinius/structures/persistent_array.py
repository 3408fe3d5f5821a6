"""A persistent array of numbers, which its root's name finds again after any stop.

0   48  header (see structure_header.py); its three numbers are zero
48  8n  n elements, int64 or float64, little-endian
"""

import operator
from typing import Self, overload

import numpy as np
import numpy.typing as npt

from plinius.pm.medium import WORD
from plinius.pm.region import Region
from plinius.structures.list_operations import Int64s
from plinius.structures.structure_header import HEADER, Structure
from plinius.structures.words import Words

Index = int | slice | npt.NDArray[np.integer]
Numbers = npt.NDArray[np.int64] | npt.NDArray[np.float64]


class PersistentArray(Structure):
    """An array of a fixed number of int64 or float64, of shape (n,).

    It is indexed by an integer, a slice, or an array of indices of shape (k,). What is read is a
    copy. Reading and writing raise IndexError for an index out of bounds, TypeError for an index or
    a value of an unsuitable type, RegionError if the array was dropped or is damaged; writing
    raises what Twins.transaction does.
    """

    MAGIC, WHAT, KINDS = b"PLNSARR\n", "array", ("int64", "float64")

    def __init__(self, region: Region, name: str) -> None:
        super().__init__(region, name)
        self._words = Words(region)

    @classmethod
    def create(cls, region: Region, name: str, length: int, kind: str = "int64") -> Self:
        """Make an array of `length` zeros; `kind` is "int64" or "float64".

        Raises ValueError if the name is taken or an argument is unsuitable, RegionFullError.
        """
        if length < 0:
            raise ValueError("the length of an array is not negative")
        return cls._make(region, name, kind, length, length * WORD)

    @property
    def offset(self) -> int:
        """The offset of its first element in the heap, in bytes: for Words and Twins."""
        return self._at + HEADER.size

    @overload
    def __getitem__(self, index: int) -> int | float: ...
    @overload
    def __getitem__(self, index: slice | npt.NDArray[np.integer]) -> Numbers: ...
    def __getitem__(self, index: Index) -> int | float | Numbers:
        with self._twins.reading():
            words = self._words.read(self._offsets(self._places(index)))
        values: Numbers = words.view(self.kind)
        return values if isinstance(index, slice | np.ndarray) else values[0].item()

    def __setitem__(self, index: Index, values: npt.ArrayLike) -> None:
        given = np.asarray(values)
        if given.size and not np.can_cast(given.dtype, self.kind, "same_kind"):
            raise TypeError(f"the elements of array {self.name} are {self.kind}")
        with self._twins.transaction():
            places = self._places(index)
            words = np.broadcast_to(given.astype(self.kind), places.shape)
            self._words.store(self._offsets(places), np.ascontiguousarray(words).view(np.int64))

    def swap(self, first: Int64s | int, second: Int64s | int) -> None:
        """Exchange the elements first[i] and second[i], for each i in order.

        Both are integers, or arrays of shape (k,). Raises IndexError, and ValueError if their
        shapes differ.
        """
        one, other = np.atleast_1d(first), np.atleast_1d(second)
        if one.shape != other.shape:
            raise ValueError("each element is exchanged with one other")
        with self._twins.transaction():
            offsets = self._offsets(self._places(np.concatenate((one, other))))
            self._words.swap(offsets[: one.size], offsets[one.size :])

    def _places(self, index: Index) -> Int64s:
        length = self._header()[0]
        if isinstance(index, slice):
            return np.arange(*index.indices(length), dtype=np.int64)
        if not isinstance(index, np.ndarray):
            at = operator.index(index)
            index = np.array([at + length if at < 0 else at])
        if index.dtype.kind not in "iu" or index.ndim != 1:
            raise TypeError("an array is indexed by an integer, a slice or a list of integers")
        places = np.ascontiguousarray(index, np.int64)
        # As uint64 a negative one is huge.
        if places.size and places.view(np.uint64).max() >= length:
            raise IndexError(f"array {self.name} has {length:,} elements")
        return places

    def _offsets(self, places: Int64s) -> Int64s:
        offsets = places * WORD
        offsets += self.offset
        return offsets

    def _check(self) -> None:
        self._header()

    def _header(self) -> tuple[int, int, int, int]:
        header = super()._header()
        if header[0] > (self._length - HEADER.size) // WORD:
            self._refuse("it is longer than its block")
        return header
