"""List operations: thousands of words or lines of a medium in one call.

A list operation does exactly what the single operations of Medium do, called in order. On a mapped
file it is one native call; on any other medium (the simulated one, for example) it makes the single
operations.
"""

from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from plinius.errors import RegionError
from plinius.pm._persist import ffi, lib
from plinius.pm.cacheline import CacheLineMedium
from plinius.pm.mapped import MappedMedium
from plinius.pm.medium import LINE, WORD, Medium, check_native

if TYPE_CHECKING:
    from plinius.pm._persist import Pointer

Int64s = npt.NDArray[np.int64]
Uint64s = npt.NDArray[np.uint64]


@runtime_checkable
class ListOperations(Protocol):
    """List operations on the `length` bytes of a medium at `base`, a multiple of 64.

    Offsets are in bytes from `base`, multiples of 8; lines are numbered from `base`, 64 bytes each.
    Lists have shape (n,) and are contiguous. Raises RegionError for an item outside those bytes.
    """

    def store_words(self, base: int, length: int, offsets: Int64s, words: Uint64s) -> None:
        """Store each word in order: of several at one offset the last one stays."""

    def swap_words(self, base: int, length: int, first: Int64s, second: Int64s) -> None:
        """Exchange the words at first[i] and second[i], in order."""

    def flush_lines(self, base: int, length: int, lines: Int64s) -> None:
        """Flush each line."""

    def copy_lines(self, to: int, source: int, length: int, lines: Int64s) -> None:
        """Copy each line from `source` to the line of the same number at `to`, and flush it."""


def list_operations(medium: Medium) -> ListOperations:
    """The list operations of a medium: its own if it has some, or those that suit it."""
    if isinstance(medium, ListOperations):
        return medium
    if isinstance(medium, CacheLineMedium):
        return CacheLineLists(medium)
    return FileLists(medium) if isinstance(medium, MappedMedium) else OneByOne(medium)


class OneByOne:
    """The list operations, made of the single operations of any medium."""

    def __init__(self, medium: Medium) -> None:
        self._medium = medium

    def store_words(self, base: int, length: int, offsets: Int64s, words: Uint64s) -> None:
        """See ListOperations."""
        for offset, word in zip(offsets.tolist(), words.tolist(), strict=True):
            self._medium.store_word(base + offset, word)

    def swap_words(self, base: int, length: int, first: Int64s, second: Int64s) -> None:
        """See ListOperations."""
        for one, other in zip(first.tolist(), second.tolist(), strict=True):
            first_word, second_word = self._word(base + one), self._word(base + other)
            self._medium.store_word(base + one, second_word)
            self._medium.store_word(base + other, first_word)

    def flush_lines(self, base: int, length: int, lines: Int64s) -> None:
        """See ListOperations."""
        for line in lines.tolist():
            self._medium.flush(base + line * LINE, LINE)

    def copy_lines(self, to: int, source: int, length: int, lines: Int64s) -> None:
        """See ListOperations."""
        for line in lines.tolist():
            self._medium.copy(to + line * LINE, source + line * LINE, LINE)

    def _word(self, offset: int) -> int:
        return int.from_bytes(self._medium.read(offset, WORD), "little")


class CacheLineLists:
    """The list operations of a medium whose stores the processor flushes."""

    def __init__(self, medium: CacheLineMedium) -> None:
        self._medium = medium

    def store_words(self, base: int, length: int, offsets: Int64s, words: Uint64s) -> None:
        """See ListOperations."""
        _store_words(self._medium, base, length, offsets, words)

    def swap_words(self, base: int, length: int, first: Int64s, second: Int64s) -> None:
        """See ListOperations."""
        _swap_words(self._medium, base, length, first, second)

    def flush_lines(self, base: int, length: int, lines: Int64s) -> None:
        """See ListOperations."""
        _check_lines(base, length, lines)
        start, at = self._medium.address(base, length), ffi.from_buffer("int64_t[]", lines)
        check_native(lib.pl_flush_lines(self._medium.pwb, start, at, len(at)))

    def copy_lines(self, to: int, source: int, length: int, lines: Int64s) -> None:
        """See ListOperations. Uses streaming stores."""
        _check_lines(to, length, lines)
        to_at, from_at = self._medium.address(to, length), self._medium.address(source, length)
        at = ffi.from_buffer("int64_t[]", lines)
        check_native(lib.pl_copy_lines(self._medium.pwb, to_at, from_at, at, len(at)))


class FileLists:
    """The list operations of a file on an ordinary disk."""

    def __init__(self, medium: MappedMedium) -> None:
        self._medium = medium

    def store_words(self, base: int, length: int, offsets: Int64s, words: Uint64s) -> None:
        """See ListOperations."""
        _store_words(self._medium, base, length, offsets, words)

    def swap_words(self, base: int, length: int, first: Int64s, second: Int64s) -> None:
        """See ListOperations."""
        _swap_words(self._medium, base, length, first, second)

    def flush_lines(self, base: int, length: int, lines: Int64s) -> None:
        """See ListOperations. Flushes one range, from the first line to the last, as msync does not
        write clean pages.
        """
        _check_lines(base, length, lines)
        if len(lines):
            first, last = int(lines.min()) * LINE, int(lines.max()) * LINE
            self._medium.flush(base + first, last + LINE - first)

    def copy_lines(self, to: int, source: int, length: int, lines: Int64s) -> None:
        """See ListOperations."""
        _check_lines(to, length, lines)
        offsets = (lines[:, None] * LINE + np.arange(0, LINE, WORD)).reshape(-1)
        words = _read_words(self._medium.address(source, length), offsets)
        _store_words(self._medium, to, length, offsets, words.view(np.uint64))
        self.flush_lines(to, length, lines)


def read_words(view: memoryview, offsets: Int64s) -> Int64s:
    """A copy of the words at many offsets of a view whose address is a multiple of 8.

    The offsets, multiples of 8 in bytes, have shape (n,), and so has the result. Raises IndexError
    if one lies outside the view.
    """
    at = np.ascontiguousarray(offsets, np.int64)
    if _outside(at, len(view) - WORD):
        raise IndexError("a word outside the view")
    return _read_words(ffi.from_buffer(view), at)


# C follows a list without any checks, so every bound is checked here.


def _read_words(source: "Pointer", offsets: Int64s) -> Int64s:
    words = np.empty(offsets.size, np.int64)
    at, found = ffi.from_buffer("int64_t[]", offsets), ffi.from_buffer("uint64_t[]", words)
    check_native(lib.pl_read_words(source, at, found, len(at)))
    return words


def _store_words(
    medium: MappedMedium, base: int, length: int, offsets: Int64s, words: Uint64s
) -> None:
    _check_words(base, length, offsets)
    if len(words) != len(offsets):
        raise ValueError("there is one word for every offset")
    at, data = ffi.from_buffer("int64_t[]", offsets), ffi.from_buffer("uint64_t[]", words)
    check_native(lib.pl_store_words(medium.address(base, length), at, data, len(at)))


def _swap_words(
    medium: MappedMedium, base: int, length: int, first: Int64s, second: Int64s
) -> None:
    _check_words(base, length, first)
    _check_words(base, length, second)
    if len(first) != len(second):
        raise ValueError("each word is exchanged with one other")
    one, other = ffi.from_buffer("int64_t[]", first), ffi.from_buffer("int64_t[]", second)
    check_native(lib.pl_swap_words(medium.address(base, length), one, other, len(one)))


def _check_words(base: int, length: int, offsets: Int64s) -> None:
    _check_list(base, length, offsets, length - WORD)


def _check_lines(base: int, length: int, lines: Int64s) -> None:
    _check_list(base, length, lines, length // LINE - 1)


def _check_list(base: int, length: int, numbers: Int64s, last: int) -> None:
    if base % LINE or numbers.dtype != np.int64 or not numbers.flags.c_contiguous:
        raise ValueError("a list is a contiguous array of int64, and its base is line-aligned")
    if _outside(numbers, last):
        raise RegionError(
            f"A list points outside its part of the region (bytes {base} to {base + length})",
            "The region was damaged or altered: restore a copy of it, or start a new one",
        )


def _outside(numbers: Int64s, last: int) -> bool:
    """Whether a number is negative or above `last`; as uint64 a negative one is huge."""
    return bool(numbers.size and (last < 0 or numbers.view(np.uint64).max() > last))
