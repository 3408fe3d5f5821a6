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
from typing import Protocol

from plinius.errors import RegionError, StorageError
from plinius.pm.medium import LINE, Medium, merge_ranges, round_up


class TwinState(enum.Enum):
    """The state word: 8 bytes of text, readable in a hex dump."""

    IDLE = b"IDLE\0\0\0\0"
    MUTATING = b"MUTATING"
    COPYING = b"COPYING\0"

    @property
    def word(self) -> int:
        """The state as the little-endian integer that is stored."""
        return int.from_bytes(self.value, "little")


class StoreLog(Protocol):
    """Stores of a transaction that `Twins.store` did not make (see `Twins.join`).

    Each method takes where twins start in the medium, in bytes.
    """

    def flush(self, twin: int) -> None:
        """Flush all that was stored in a twin."""

    def copy(self, to: int, source: int) -> None:
        """Copy all that was stored from one twin to the other, and flush the copy."""

    def clear(self) -> None:
        """Forget the stores: the transaction has ended."""


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
        self._state_at = state_at
        self._main = main
        self._back = back
        self.length = length
        self._lock = threading.RLock()
        self._open: _Transaction | None = None
        self._failed = False
        self._recovered = False
        self._log: list[tuple[int, int]] = []
        self._joined: list[StoreLog] = []
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

    def view(self) -> memoryview:
        """A read-only view of the consistent copy. The host may change its bytes at any time."""
        return self._medium.view(self._read_from, self.length)

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

    def join(self, log: StoreLog) -> int:
        """Commit or roll back the stores in `log` with the open transaction; it is cleared then.

        Returns where they have to be made: the offset of MAIN in the medium, in bytes. Each store
        must be in the log before it is made. Raises RuntimeError (a programming error) outside a
        transaction of this thread.
        """
        self._check_inside()
        if log not in self._joined:
            self._joined.append(log)
        return self._main

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
        assert not self._joined
        self._set(TwinState.MUTATING)
        self._medium.fence()

    def _commit(self) -> None:
        ranges = merge_ranges(self._log)
        for start, end in ranges:
            self._medium.flush(self._main + start, end - start)
        for log in self._joined:
            log.flush(self._main)
        self._medium.fence()
        self._set(TwinState.COPYING)
        self._medium.fence()
        self._copy(self._back, self._main, ranges)
        self._finish()

    def _roll_back(self) -> None:
        self._copy(self._main, self._back, merge_ranges(self._log))
        self._finish()

    def _copy(self, to: int, source: int, ranges: list[tuple[int, int]]) -> None:
        for start, end in ranges:
            self._medium.copy(to + start, source + start, end - start)
        for log in self._joined:
            log.copy(to, source)

    def _finish(self) -> None:
        self._log.clear()
        for log in self._joined:
            log.clear()
        self._joined.clear()
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

    def _check(self, offset: int, length: int) -> None:
        if not (offset >= 0 and 0 <= length <= self.length - offset):
            raise RegionError(
                f"The region's heap points outside itself (bytes {offset} to {offset + length})",
                "It was damaged or altered: restore a copy of it, or start a new region",
            )
