"""Lists: thousands of words or lines in one call, so that Python's cost per store does not rule.

A list operation means exactly the single ones of Medium, one after another. A medium that lacks
them (one that records or counts, say) is used through OneByOne, which spells that out.
"""

from typing import Protocol, runtime_checkable

import numpy as np

from plinius.pm._persist import ffi, lib
from plinius.pm.medium import LINE, WORD, Int64s, Medium, Uint64s, done


@runtime_checkable
class ListMedium(Medium, Protocol):
    """A medium with list operations on the `length` bytes at `base`.

    Offsets are of bytes, multiples of 8; lines count 64 bytes; both are relative to `base`, which
    lies on a whole line. Raise RegionError for one outside those bytes.
    """

    def store_words(self, base: int, length: int, offsets: Int64s, words: Uint64s) -> None:
        """store_word for each, in order: of several to one place the last one stays."""

    def swap_words(self, base: int, length: int, first: Int64s, second: Int64s) -> None:
        """Exchange the words at first[i] and second[i], in order."""

    def flush_lines(self, base: int, length: int, lines: Int64s) -> None:
        """Flush each line."""

    def copy_lines(self, to: int, source: int, length: int, lines: Int64s) -> None:
        """Copy each line from `source` to the same place after `to`, and flush what was written."""


class OneByOne:
    """The list operations by the single ones of any medium."""

    def __init__(self, medium: Medium) -> None:
        self._medium = medium

    def store_words(self, base: int, length: int, offsets: Int64s, words: Uint64s) -> None:
        """See ListMedium."""
        for offset, word in zip(offsets.tolist(), words.tolist(), strict=True):
            self._medium.store_word(base + offset, word)

    def swap_words(self, base: int, length: int, first: Int64s, second: Int64s) -> None:
        """See ListMedium."""
        for one, other in zip(first.tolist(), second.tolist(), strict=True):
            kept, moved = self._word(base + one), self._word(base + other)
            self._medium.store_word(base + one, moved)
            self._medium.store_word(base + other, kept)

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


def lists_of(medium: Medium) -> ListMedium | OneByOne:
    """The medium's own list operations, or the same by its single ones."""
    return medium if isinstance(medium, ListMedium) else OneByOne(medium)


def read_words(view: memoryview, offsets: Int64s) -> Int64s:
    """Copies of the words at many offsets of a view, whose start is aligned to 8.

    The offsets, multiples of 8, are checked again, as C follows them without looking: raises
    IndexError.
    """
    at = np.ascontiguousarray(offsets, np.int64)
    if at.size and at.view(np.uint64).max() > len(view) - WORD:  # a negative one is huge
        raise IndexError("a word outside the view")
    words = np.empty(at.size, np.int64)
    source, offsets_at = ffi.from_buffer(view), ffi.from_buffer("int64_t[]", at)
    done(lib.pl_read_words(source, offsets_at, ffi.from_buffer("uint64_t[]", words), at.size))
    return words
