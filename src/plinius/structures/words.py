"""Many 8-byte words of the twins, read, stored and exchanged in one call."""

import numpy as np
import numpy.typing as npt

from plinius.errors import RegionError
from plinius.pm.medium import LINE, WORD
from plinius.pm.region import Region
from plinius.structures.list_operations import Int64s, list_operations, read_words

_NO_LINES = np.empty(0, np.int64)


class Words:
    """The words of a region's twins, by lists of their offsets.

    `offsets` have shape (n,) and are in bytes from the start of a copy. Every method raises
    ValueError if one is not a multiple of 8, RegionError if one is outside the twin; then nothing
    is stored.

    It is the StoreLog of what it stores: it keeps the lines of 64 bytes that a transaction stored
    to.
    """

    def __init__(self, region: Region) -> None:
        self._twins = region.twins
        self._lists = list_operations(region.medium)
        self._lines: list[Int64s] = []

    def read(self, offsets: npt.ArrayLike) -> Int64s:
        """A copy of the words: an int64 array of shape (n,)."""
        return read_words(self._twins.view(), self._places(offsets))

    def store(self, offsets: npt.ArrayLike, values: npt.ArrayLike) -> None:
        """Store words in order, inside a transaction: of several at one offset the last one stays.

        `values` has the shape of `offsets`. Raises ValueError if it has not, TypeError for values
        that are not int64 or uint64, RuntimeError (a programming error) outside a transaction of
        this thread.
        """
        main = self._twins.join(self)
        at = self._places(offsets)
        words = np.ascontiguousarray(values)
        if words.dtype not in (np.int64, np.uint64):
            raise TypeError("the words of a region are int64 or uint64")
        if words.shape != at.shape:
            raise ValueError("there is one value for every offset")
        self._log_lines(at)
        self._lists.store_words(main, self._twins.length, at, words.view(np.uint64))

    def swap(self, first: npt.ArrayLike, second: npt.ArrayLike) -> None:
        """Exchange the words at the offsets first[i] and second[i], for each i in order, so an
        offset may occur more than once. Raises as `store` does.
        """
        main = self._twins.join(self)
        one, other = self._places(first), self._places(second)
        if one.shape != other.shape:
            raise ValueError("each word is exchanged with one other")
        self._log_lines(np.concatenate((one, other)))
        self._lists.swap_words(main, self._twins.length, one, other)

    def flush(self, twin: int) -> None:
        """See StoreLog."""
        self._lists.flush_lines(twin, self._twins.length, self._logged())

    def copy(self, to: int, source: int) -> None:
        """See StoreLog."""
        self._lists.copy_lines(to, source, self._twins.length, self._logged())

    def clear(self) -> None:
        """See StoreLog."""
        self._lines.clear()

    def _log_lines(self, offsets: Int64s) -> None:
        """Note the lines, before they are stored to: after an interrupt in between, roll-back
        copies some lines too many at worst.
        """
        self._lines.append(_without_repeats(offsets // LINE))
        if sum(map(len, self._lines)) > self._twins.length // WORD:
            self._logged()  # so the log is never larger than the twin

    def _logged(self) -> Int64s:
        """The lines stored to, as one list. Those of a single call may have repeats."""
        if len(self._lines) > 1:
            self._lines = [_without_repeats(np.sort(np.concatenate(self._lines)))]
        return self._lines[0] if self._lines else _NO_LINES

    def _places(self, offsets: npt.ArrayLike) -> Int64s:
        at = np.ascontiguousarray(offsets, np.int64)
        if at.ndim != 1 or int(np.bitwise_or.reduce(at)) % WORD:
            raise ValueError("the offsets of words are a list of multiples of 8")
        if at.size and at.view(np.uint64).max() > self._twins.length - WORD:  # negative: huge
            raise RegionError(
                "A list of words points outside the region's heap",
                "It was damaged or altered: restore a copy of it, or start a new region",
            )
        return at


def _without_repeats(lines: Int64s) -> Int64s:
    """The lines without repetitions of the one before."""
    if lines.size < 2:
        return lines
    new = np.empty(lines.size, np.bool_)
    new[0] = True
    np.not_equal(lines[1:], lines[:-1], out=new[1:])
    return lines if new.all() else lines[new]
