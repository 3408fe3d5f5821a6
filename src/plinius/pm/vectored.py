"""List operations: thousands of words or lines in one call, since a Python call for each is slow.

A list operation does exactly what the single operations of Medium do, called in order. A medium
that has none (the simulated one, for example) is used through OneByOne, which calls those.
"""

from typing import Protocol, runtime_checkable

import numpy as np

from plinius.pm._persist import ffi, lib
from plinius.pm.medium import LINE, WORD, Int64s, Medium, Uint64s, check_native


@runtime_checkable
class ListMedium(Medium, Protocol):
    """A medium with list operations on the `length` bytes at `base`, a multiple of 64.

    Offsets are in bytes from `base`, multiples of 8; lines are numbered from `base`, 64 bytes each.
    Lists have shape (n,). Raises RegionError for an item outside those bytes.
    """

    def store_words(self, base: int, length: int, offsets: Int64s, words: Uint64s) -> None:
        """Store each word in order: of several at one offset the last one stays."""

    def swap_words(self, base: int, length: int, first: Int64s, second: Int64s) -> None:
        """Exchange the words at first[i] and second[i], in order."""

    def flush_lines(self, base: int, length: int, lines: Int64s) -> None:
        """Flush each line."""

    def copy_lines(self, to: int, source: int, length: int, lines: Int64s) -> None:
        """Copy each line from `source` to the line of the same number at `to`, and flush it."""


class OneByOne:
    """The list operations, made of the single operations of any medium."""

    def __init__(self, medium: Medium) -> None:
        self._medium = medium

    def store_words(self, base: int, length: int, offsets: Int64s, words: Uint64s) -> None:
        """See ListMedium."""
        for offset, word in zip(offsets.tolist(), words.tolist(), strict=True):
            self._medium.store_word(base + offset, word)

    def swap_words(self, base: int, length: int, first: Int64s, second: Int64s) -> None:
        """See ListMedium."""
        for one, other in zip(first.tolist(), second.tolist(), strict=True):
            first_word, second_word = self._word(base + one), self._word(base + other)
            self._medium.store_word(base + one, second_word)
            self._medium.store_word(base + other, first_word)

    def flush_lines(self, base: int, length: int, lines: Int64s) -> None:
        """See ListMedium."""
        for line in lines.tolist():
            self._medium.flush(base + line * LINE, LINE)

    def copy_lines(self, to: int, source: int, length: int, lines: Int64s) -> None:
        """See ListMedium."""
        for line in lines.tolist():
            self._medium.copy(to + line * LINE, source + line * LINE, LINE)

    def _word(self, offset: int) -> int:
        return int.from_bytes(self._medium.read(offset, WORD), "little")


def list_operations(medium: Medium) -> ListMedium | OneByOne:
    """The medium's own list operations, or the same made of its single operations."""
    return medium if isinstance(medium, ListMedium) else OneByOne(medium)


def read_words(view: memoryview, offsets: Int64s) -> Int64s:
    """A copy of the words at many offsets of a view whose address is a multiple of 8.

    The offsets, multiples of 8 in bytes, have shape (n,), and so has the result. Raises IndexError
    if one lies outside the view: C follows them without any checks.
    """
    at = np.ascontiguousarray(offsets, np.int64)
    if at.size and at.view(np.uint64).max() > len(view) - WORD:  # a negative one is huge
        raise IndexError("a word outside the view")
    words = np.empty(at.size, np.int64)
    found = ffi.from_buffer("uint64_t[]", words)
    source, offsets_at = ffi.from_buffer(view), ffi.from_buffer("int64_t[]", at)
    check_native(lib.pl_read_words(source, offsets_at, found, at.size))
    return words
