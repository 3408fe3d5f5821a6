"""Twin-copy transactions (Correia, Felber, Ramalhete: Romulus, SPAA 2018).

MAIN is stored to in place, BACK holds the last committed copy, and a state word says which of the
two is whole. Invariants:

- IDLE:      MAIN and BACK are equal.
- MUTATING:  BACK is whole (the state before). MAIN may be anything.
- COPYING:   MAIN is whole (the state after). BACK may be anything.

A transaction costs 4 fences whatever its size:
state=MUTATING | 1 | stores, flushed | 2 | state=COPYING | 3, now durable | MAIN to BACK | 4 | IDLE.
The last state word needs no fence: recovery from COPYING only copies again.
"""

import enum
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from plinius.errors import RegionError, StorageError
from plinius.pm.medium import LINE, Medium, merge_ranges


class TwinState(enum.Enum):
    """The state word: 8 bytes of text, so that a hex dump can be read."""

    IDLE = b"IDLE\0\0\0\0"
    MUTATING = b"MUTATING"
    COPYING = b"COPYING\0"

    @property
    def word(self) -> int:
        """The state as the little-endian integer that is stored."""
        return int.from_bytes(self.value, "little")


class Twins:
    """Two copies of `length` bytes in a medium, changed only by transactions.

    Offsets are relative to the copy. Opening recovers; opened read-only, nothing is written and
    the whole copy is read wherever it is.
    """

    def __init__(
        self, medium: Medium, state_at: int, main: int, back: int, length: int, *, writable: bool
    ) -> None:
        self._medium = medium
        self._state_at = state_at
        self._main = main
        self._back = back
        self.length = length
        self._lock = threading.RLock()
        self._depth = 0
        self._doomed = False
        self._failed = False
        self._log: list[tuple[int, int]] = []
        self._writable = writable
        found = self.state()
        self._read_from = back if found is TwinState.MUTATING else main
        if writable:
            self._recover(found)

    def state(self) -> TwinState:
        """The state word. Raises RegionError if it is none of the three."""
        raw = bytes(self._medium.read(self._state_at, 8))
        try:
            return TwinState(raw)
        except ValueError:
            raise RegionError(
                f"The region's state word is {raw.hex()}, which is no state",
                "It was damaged or altered: restore a copy of it, or start a new region",
            ) from None

    def read(self, offset: int, length: int) -> bytes:
        """A copy of bytes of the readable twin (a copy, so that what is checked is what is used).

        Raises RegionError outside the twin.
        """
        self._check(offset, length)
        return bytes(self._medium.read(self._read_from + offset, length))

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All stores inside happen, or none.

        Nested transactions join the outer one. An exception rolls back; if it left an inner
        transaction and was caught inside the outer one, the outer one cannot commit and raises
        RuntimeError after rolling back.
        """
        with self._lock:
            if not self._writable:
                raise RuntimeError("the region was opened read-only")
            if self._failed:
                raise StorageError(
                    "An earlier write to the region failed, so its state must be recovered first",
                    "Check the disk, then start the program again",
                )
            if self._depth == 0:
                self._begin()
            self._depth += 1
            try:
                yield
            except BaseException:
                self._doomed = True
                raise
            finally:
                self._depth -= 1
                if self._depth == 0:
                    doomed, self._doomed = self._doomed, False
                    self._end(commit=not doomed)
            if self._depth == 0 and doomed:
                raise RuntimeError("rolled back: an inner transaction failed")

    def store(self, offset: int, data: bytes) -> None:
        """Write to MAIN inside a transaction; the lines touched join its log."""
        if self._depth == 0:
            raise RuntimeError("twins are stored to only inside a transaction")
        self._check(offset, len(data))
        self._medium.store(self._main + offset, data)
        end = -(-(offset + len(data)) // LINE) * LINE
        self._log.append((offset // LINE * LINE, min(end, self.length)))

    def equal(self) -> bool:
        """Whether MAIN and BACK hold the same bytes, as they must when IDLE."""
        with self._lock:
            main = self._medium.read(self._main, self.length)
            return main == self._medium.read(self._back, self.length)

    def _end(self, *, commit: bool) -> None:
        self._failed = True  # until the end is reached: a failed fence leaves recovery to do
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
        self._set(TwinState.MUTATING)
        self._medium.fence()

    def _commit(self) -> None:
        ranges = merge_ranges(self._log)
        for start, end in ranges:
            self._medium.flush(self._main + start, end - start)
        self._medium.fence()
        self._set(TwinState.COPYING)
        self._medium.fence()
        for start, end in ranges:
            self._medium.copy(self._back + start, self._main + start, end - start)
        self._finish()

    def _roll_back(self) -> None:
        for start, end in merge_ranges(self._log):
            self._medium.copy(self._main + start, self._back + start, end - start)
        self._finish()

    def _finish(self) -> None:
        self._log.clear()
        self._medium.fence()
        self._set(TwinState.IDLE)

    def _recover(self, found: TwinState) -> None:
        if found is TwinState.MUTATING:
            self._medium.copy(self._main, self._back, self.length)
        elif found is TwinState.COPYING:
            self._medium.copy(self._back, self._main, self.length)
        else:
            return
        self._finish()
        self._read_from = self._main

    def _check(self, offset: int, length: int) -> None:
        if not (offset >= 0 and 0 <= length <= self.length - offset):
            raise RegionError(
                f"The region's heap points outside itself (bytes {offset} to {offset + length})",
                "It was damaged or altered: restore a copy of it, or start a new region",
            )
