"""Twin-copy transactions (Correia, Felber, Ramalhete: Romulus, SPAA 2018).

Stores change MAIN in place, BACK holds the last committed copy, and a state word says which of the
two is consistent. Invariants:

- IDLE:      MAIN and BACK are equal.
- MUTATING:  BACK is consistent (the state before). MAIN may hold anything.
- COPYING:   MAIN is consistent (the state after). BACK may hold anything.

A transaction costs 4 fences whatever its size:
MUTATING | 1 | stores, flushed | 2 | COPYING | 3: it is durable | MAIN copied to BACK | 4 | IDLE.
The last state word needs no fence: if COPYING is found instead, recovery copies the same again.
"""

import enum
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import numpy as np
import numpy.typing as npt

from plinius.errors import RegionError, StorageError
from plinius.pm.medium import LINE, WORD, Int64s, Medium, merge_ranges, round_up
from plinius.pm.vectored import list_operations, read_words

_NO_LINES = np.empty(0, np.int64)


class TwinState(enum.Enum):
    """The state word: 8 bytes of text, readable in a hex dump."""

    IDLE = b"IDLE\0\0\0\0"
    MUTATING = b"MUTATING"
    COPYING = b"COPYING\0"

    @property
    def word(self) -> int:
        """The state as the little-endian integer that is stored."""
        return int.from_bytes(self.value, "little")


class _Transaction:
    """An open one: its thread, how many have joined it, whether one of them raised an error."""

    def __init__(self, owner: int) -> None:
        self.owner, self.depth, self.must_roll_back = owner, 0, False


class Twins:
    """Two copies of `length` bytes in a medium, changed only by transactions.

    Offsets are in bytes from the start of a copy. Reads use the consistent copy. Nothing is written
    before `recover`, so without it the twins are read-only.
    """

    def __init__(self, medium: Medium, state_at: int, main: int, back: int, length: int) -> None:
        self._medium = medium
        self._lists = list_operations(medium)
        self._state_at = state_at
        self._main = main
        self._back = back
        self.length = length
        self._lock = threading.RLock()
        self._open: _Transaction | None = None
        self._failed = False
        self._recovered = False
        self._log: list[tuple[int, int]] = []
        self._lines: list[Int64s] = []
        self._read_from = back if self.state() is TwinState.MUTATING else main

    def state(self) -> TwinState:
        """The state in the medium. Raises RegionError if its word is none of the three."""
        raw = bytes(self._medium.read(self._state_at, 8))
        try:
            return TwinState(raw)
        except ValueError:
            raise RegionError(
                f"The region's state word is {raw.hex()}, which is no state",
                "It was damaged or altered: restore a copy of it, or start a new region",
            ) from None

    def read(self, offset: int, length: int) -> bytes:
        """A copy of `length` bytes, so that what is checked is also what is used.

        Raises RegionError outside the twin.
        """
        self._check(offset, length)
        return bytes(self._medium.read(self._read_from + offset, length))

    def read_words(self, offsets: npt.ArrayLike) -> Int64s:
        """A copy of the 8-byte words at many offsets: an int64 array of their shape, (n,).

        Raises ValueError if an offset is not a multiple of 8, RegionError outside the twin.
        """
        at = self._words_at(offsets)
        return read_words(self._medium.view(self._read_from, self.length), at)

    def reading(self) -> AbstractContextManager[object]:
        """A context in which no other thread changes what is read."""
        return self._lock

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """A context: all stores inside it happen, or none. They are durable when it is left.

        A nested transaction joins the outer one. An exception rolls everything back. If it is
        raised in a nested transaction and caught in the outer one, the outer one still cannot
        commit: it rolls back and raises RuntimeError. RuntimeError (a programming error) is also
        raised if the region was opened read-only; StorageError if the disk reports an error now,
        or did before and `recover` has not been called since.
        """
        with self._lock:
            mine = self._open if self._open and self._open.depth else self._begun()
            mine.depth += 1
            try:
                yield
            except BaseException:
                mine.must_roll_back = True
                raise
            finally:
                mine.depth -= 1
                if mine.depth == 0 and self._open is mine:  # or else recovery has ended it
                    self._end(commit=not mine.must_roll_back)
            if mine.depth == 0 and mine.must_roll_back:
                raise RuntimeError("rolled back: an inner transaction failed")

    def store(self, offset: int, data: bytes) -> None:
        """Write bytes, inside a transaction.

        Raises RegionError outside the twin, RuntimeError (a programming error) outside a
        transaction of this thread.
        """
        self._check_inside()
        self._check(offset, len(data))
        end = round_up(offset + len(data), LINE)
        # Logged first: after an interrupt in between, roll-back copies a line too many at worst.
        self._log.append((offset // LINE * LINE, min(end, self.length)))
        self._medium.store(self._main + offset, data)

    def store_words(self, offsets: npt.ArrayLike, values: npt.ArrayLike) -> None:
        """Write many 8-byte integers in order, inside a transaction: of several at one offset the
        last one stays.

        `offsets` has shape (n,) and is in bytes; `values` has the same shape. Raises ValueError if
        an offset is not a multiple of 8 or the shapes differ, TypeError for values that are not
        int64 or uint64, and what `store` raises; then nothing is stored.
        """
        self._check_inside()
        at = self._words_at(offsets)
        words = np.ascontiguousarray(values)
        if words.dtype not in (np.int64, np.uint64):
            raise TypeError("the words of a region are int64 or uint64")
        if words.shape != at.shape:
            raise ValueError("there is one value for every offset")
        self._log_words(at)
        self._lists.store_words(self._main, self.length, at, words.view(np.uint64))

    def swap_words(self, first: npt.ArrayLike, second: npt.ArrayLike) -> None:
        """Exchange the 8-byte words at the offsets first[i] and second[i], for each i in order, so
        an offset may occur more than once. Both have shape (n,). Raises what store_words raises.
        """
        self._check_inside()
        one, other = self._words_at(first), self._words_at(second)
        if one.shape != other.shape:
            raise ValueError("each word is exchanged with one other")
        self._log_words(np.concatenate((one, other)))
        self._lists.swap_words(self._main, self.length, one, other)

    def equal(self) -> bool:
        """Whether MAIN and BACK hold the same bytes, as they must when the state is IDLE."""
        with self._lock:
            main = self._medium.read(self._main, self.length)
            return main == self._medium.read(self._back, self.length)

    def _begun(self) -> "_Transaction":
        if not self._recovered:
            raise RuntimeError("the region was opened read-only")
        if self._failed:
            raise StorageError(
                "An earlier write to the region failed, so its state must be recovered first",
                "Check the disk, then start the program again",
            )
        if self._open:  # an interrupt fell just before its end
            self._end(commit=False)
        self._begin()
        self._open = _Transaction(threading.get_ident())
        return self._open

    def _end(self, *, commit: bool) -> None:
        self._failed, self._open = True, None  # after an error, recovery has to finish this
        if commit:
            self._commit()
        else:
            self._roll_back()
        self._failed = False

    def _set(self, state: TwinState) -> None:
        self._medium.store_word(self._state_at, state.word)
        self._medium.flush(self._state_at, 8)

    def _begin(self) -> None:
        assert not self._log
        assert not self._lines
        self._set(TwinState.MUTATING)
        self._medium.fence()

    def _commit(self) -> None:
        ranges, lines = merge_ranges(self._log), self._logged_lines()
        for start, end in ranges:
            self._medium.flush(self._main + start, end - start)
        if lines.size:
            self._lists.flush_lines(self._main, self.length, lines)
        self._medium.fence()
        self._set(TwinState.COPYING)
        self._medium.fence()
        self._copy(self._back, self._main, ranges, lines)
        self._finish()

    def _roll_back(self) -> None:
        self._copy(self._main, self._back, merge_ranges(self._log), self._logged_lines())
        self._finish()

    def _copy(self, to: int, source: int, ranges: list[tuple[int, int]], lines: Int64s) -> None:
        for start, end in ranges:
            self._medium.copy(to + start, source + start, end - start)
        if lines.size:
            self._lists.copy_lines(to, source, self.length, lines)

    def _logged_lines(self) -> Int64s:
        """The lines that store_words touched. Within one call a line may occur more than once."""
        if len(self._lines) < 2:
            return self._lines[0] if self._lines else _NO_LINES
        return _without_repeats(np.sort(np.concatenate(self._lines)))

    def _finish(self) -> None:
        self._log.clear()
        self._lines.clear()
        self._medium.fence()
        self._set(TwinState.IDLE)

    def recover(self) -> None:
        """Bring an interrupted transaction to an end, and allow new ones.

        Copies the consistent twin over the other one. A transaction that an interrupt left open is
        rolled back, or finished if it was committed. Raises StorageError if the disk reports an
        error.
        """
        found = self.state()
        self._recovered, self._open = True, None
        if found is TwinState.IDLE:
            self._failed = False
            return
        # The word found may only be in the caches, left there by a process that was killed. It
        # must be durable before the other twin is overwritten: the twin that it calls consistent
        # is the only one from then on.
        self._set(found)
        self._medium.fence()
        if found is TwinState.MUTATING:
            self._medium.copy(self._main, self._back, self.length)
        else:
            self._medium.copy(self._back, self._main, self.length)
        self._finish()
        self._failed = False
        self._read_from = self._main

    @property
    def in_transaction(self) -> bool:
        """Whether this thread has a transaction open."""
        return self._open is not None and self._open.owner == threading.get_ident()

    def _check_inside(self) -> None:
        if not self.in_transaction:
            raise RuntimeError("a region is stored to only inside a transaction")

    def _log_words(self, offsets: Int64s) -> None:
        self._lines.append(_without_repeats(offsets // LINE))
        if sum(map(len, self._lines)) > self.length // WORD:
            self._lines = [self._logged_lines()]  # so the log is never larger than the twin

    def _words_at(self, offsets: npt.ArrayLike) -> Int64s:
        at = np.ascontiguousarray(offsets, np.int64)
        if at.ndim != 1 or int(np.bitwise_or.reduce(at)) % WORD:
            raise ValueError("the offsets of words are a list of multiples of 8")
        if at.size and at.view(np.uint64).max() > self.length - WORD:  # a negative one is huge
            self._check(int(at.min()), WORD)
            self._check(int(at.max()), WORD)
        return at

    def _check(self, offset: int, length: int) -> None:
        if not (offset >= 0 and 0 <= length <= self.length - offset):
            raise RegionError(
                f"The region's heap points outside itself (bytes {offset} to {offset + length})",
                "It was damaged or altered: restore a copy of it, or start a new region",
            )


def _without_repeats(lines: Int64s) -> Int64s:
    """The lines without repetitions of the one before."""
    if lines.size < 2:
        return lines
    new = np.empty(lines.size, np.bool_)
    new[0] = True
    np.not_equal(lines[1:], lines[:-1], out=new[1:])
    return lines if new.all() else lines[new]
