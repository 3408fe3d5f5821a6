"""The persistence model: a medium that records its operations and knows what may be durable.

A store is visible to reads at once. What a power cut leaves is decided unit by unit:

- CACHE_LINE: the unit is the word (8 bytes), the largest store that is never torn. A word that was
  flushed (with its line) before a fence returned has the value that it had at the flush, or a later
  one. Any other word has any of the values that it had since it was last made durable.
  Stores and flushes belong to the thread that made them: a flush covers only the stores of its own
  thread, and only its own thread's drain or fence completes it.
- PAGE: the unit is the sector (512 bytes) of a page in the page cache, which the kernel may write
  back at any moment, in any order. A flush names pages; a fence makes them durable as they are at
  the fence, whichever thread stored or flushed.

Both promise less than what they model: a processor keeps the order of stores within a line, and a
flush writes back everything in its line, whichever thread stored it there.
"""

import itertools
import math
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from plinius.errors import RegionError
from plinius.pm.block_writer import CopyWriter
from plinius.pm.medium import LINE, PAGE, WORD, Granularity, round_up

SECTOR = 512
"""Bytes that a disk writes whole or not at all."""
_ANYONE = 0  # no thread has this number
_MOST_ENUMERATED = 20_000  # unfenced units; more of them always have too many images
_CHANCES = (0.0, 0.03, 0.5, 0.97, 1.0)  # of a unit to be durable, drawn for each store

_Words = npt.NDArray[np.uint64]


class PlainMedium:
    """A Medium in ordinary memory that starts with the bytes of `image` and records nothing.

    Raises RegionError for a range outside it. `bytes` is its memory, to look at and to change.
    """

    granularity = Granularity.CACHE_LINE

    def __init__(self, image: bytes | bytearray) -> None:
        self._hold(bytearray(image))

    @property
    def size(self) -> int:
        """See Medium."""
        return len(self._view)

    def read(self, offset: int, length: int) -> memoryview:
        """See Medium."""
        self._check(offset, length)
        return self._shown[offset : offset + length]

    view = read

    def read_into(self, offset: int, out: memoryview) -> None:
        """See Medium."""
        out[:] = self.read(offset, len(out))

    block_bytes = 2 * PAGE  # small, so that even a small state is written in several blocks

    def writer(self) -> CopyWriter:
        """See Medium."""
        return CopyWriter(self.write)

    def store(self, offset: int, data: bytes | memoryview) -> None:
        """See Medium."""
        self._check(offset, len(data))
        self._view[offset : offset + len(data)] = data

    def store_word(self, offset: int, word: int) -> None:
        """See Medium."""
        if offset % WORD:
            raise ValueError("a word is stored at a multiple of 8")
        self.store(offset, word.to_bytes(WORD, "little"))

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """See Medium."""
        self.store(offset, data)

    def copy(self, to: int, source: int, length: int) -> None:
        """See Medium."""
        self.store(to, self.read(source, length))

    def flush(self, offset: int, length: int) -> None:
        """See Medium."""
        self._check(offset, length)

    def drain(self) -> None:
        """See Medium."""

    def fence(self) -> None:
        """See Medium."""

    def quiesce(self) -> None:
        """See Medium."""

    def release(self, offset: int, length: int) -> None:
        """See Medium."""
        self._check(offset, length)
        self._view[offset : offset + length] = bytes(length)

    def reserve(self, offset: int, length: int) -> None:
        """See Medium."""
        self._check(offset, length)

    def resize(self, size: int) -> None:
        """See Medium."""
        self._hold(self.bytes + bytes(size - self.size))

    def close(self) -> None:
        """See Medium."""

    def _hold(self, image: bytearray) -> None:
        self.bytes = image
        self._view = memoryview(image)
        self._shown = self._view.toreadonly()

    def _check(self, offset: int, length: int) -> None:
        if not (offset >= 0 and 0 <= length <= self.size - offset):
            raise RegionError(
                f"Bytes {offset} to {offset + length} lie outside the medium of {self.size:,}",
                "Correct the offset or the length",
            )


class _Journal(NamedTuple):
    """Unfenced units in the order of their stores: their number, value, and the store's number."""

    at: npt.NDArray[np.int64]
    values: _Words
    made: npt.NDArray[np.int64]

    def only(self, which: npt.NDArray[np.bool_]) -> "_Journal":
        """The units that `which` selects."""
        return _Journal(self.at[which], self.values[which], self.made[which])


class _Flush(NamedTuple):
    """A range that a thread has flushed, and how many stores had been made before."""

    thread: int
    start: int
    end: int
    made: int


class SimulatedMedium(PlainMedium):
    """A Medium in ordinary memory that knows which images a power cut may leave of it.

    It starts, durable, with the bytes of `image`, or with `size` zeros. The size is a multiple of
    the unit: 8 bytes at CACHE_LINE, 512 at PAGE. Threads may share it; their operations happen one
    at a time.

    `watch`, if set, is called with the name of each operation ("store", "flush", "drain", "fence"
    or "resize") before it happens; what it raises is raised by the operation, which then has not
    happened. `operations` has the names of all operations that happened. `stored_bytes` and
    `flushed_units` (lines, or pages at PAGE) count them.
    """

    def __init__(
        self,
        size: int = 0,
        *,
        image: bytes | bytearray | None = None,
        granularity: Granularity = Granularity.CACHE_LINE,
    ) -> None:
        self.granularity = granularity
        page = granularity is Granularity.PAGE
        self._unit, self._flush_unit = (SECTOR, PAGE) if page else (WORD, LINE)
        super().__init__(image if image is not None else bytes(size))
        self._durable = self._units.copy()
        self._parts: list[_Journal] = []
        self._flushed: list[_Flush] = []
        self._made_by: list[int] = []  # the thread of each store
        self._lock = threading.RLock()
        self.operations: list[str] = []
        self.stored_bytes = self.flushed_units = 0
        self.watch: Callable[[str], None] | None = None

    def store(self, offset: int, data: bytes | memoryview) -> None:
        """See Medium."""
        with self._lock:
            self._operation("store")
            self._check(offset, len(data))
            self._view[offset : offset + len(data)] = data
            start = offset // self._unit
            end = round_up(offset + len(data), self._unit) // self._unit
            at = np.arange(start, end)
            made = np.full(end - start, len(self._made_by))
            self._parts.append(_Journal(at, self._units[start:end].copy(), made))
            self._made_by.append(threading.get_ident())
            self.stored_bytes += len(data)

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """See Medium."""
        self.store(offset, data)
        self.flush(offset, len(data))

    def copy(self, to: int, source: int, length: int) -> None:
        """See Medium."""
        self.write(to, bytes(self.read(source, length)))

    def flush(self, offset: int, length: int) -> None:
        """See Medium."""
        with self._lock:
            self._operation("flush")
            self._check(offset, length)
            start = offset // self._flush_unit * self._flush_unit
            end = min(round_up(offset + length, self._flush_unit), self.size)
            if length:
                thread = threading.get_ident()
                self._flushed.append(_Flush(thread, start, end, len(self._made_by)))
                self.flushed_units += (end - start) // self._flush_unit

    def drain(self) -> None:
        """See Medium."""
        with self._lock:
            self._operation("drain")
            if self.granularity is not Granularity.PAGE:
                self._complete(threading.get_ident())

    def fence(self) -> None:
        """See Medium."""
        with self._lock:
            self._operation("fence")
            everyone = self.granularity is Granularity.PAGE
            self._complete(_ANYONE if everyone else threading.get_ident())

    def release(self, offset: int, length: int) -> None:
        """See Medium. The bytes are zeros at once, durably."""
        with self._lock:
            self._operation("release")
            self._check(offset, length)
            first, last = offset // self._unit, (offset + length) // self._unit
            at = self._journal().at
            self._keep(self._journal().only((at < first) | (at >= last)))
            self._view[offset : offset + length] = bytes(length)
            self._durable[first:last] = 0

    def reserve(self, offset: int, length: int) -> None:
        """See Medium."""
        self._check(offset, length)

    def resize(self, size: int) -> None:
        """See Medium."""
        with self._lock:
            self._operation("resize")
            more = bytes(size - self.size)
            self._hold(self.bytes + more)
            durable = self._durable.tobytes() + more
            self._durable = np.frombuffer(bytearray(durable), np.uint64).reshape(self._units.shape)

    def after_kill(self) -> "SimulatedMedium":
        """The medium of the next process after a kill: all stores are visible, and none is flushed.

        What is durable stays so.
        """
        after = SimulatedMedium(image=self.bytes, granularity=self.granularity)
        after._durable = self._durable.copy()
        after._parts, after._made_by = [self._journal()], [_ANYONE] * len(self._made_by)
        return after

    def durable(self) -> bytes:
        """The image of which nothing is present that is not certainly durable."""
        return self._durable.tobytes()

    def choices(self) -> dict[int, list[bytes]]:
        """The units of which a power cut may leave one of several values: those, by unit number."""
        journal = self._journal()
        differs = (journal.values != self._durable[journal.at]).any(axis=1)
        found: dict[int, list[bytes]] = {}
        for unit, value in zip(*journal.only(differs)[:2], strict=True):
            versions = found.setdefault(int(unit), [self._durable[unit].tobytes()])
            if value.tobytes() not in versions:
                versions.append(value.tobytes())
        return found

    def every_image(self, limit: int) -> Iterator[bytes] | None:
        """All images that a power cut may leave now, or None if there are more than `limit`."""
        if len(self._journal().at) > _MOST_ENUMERATED:
            return None
        choices = self.choices()
        if math.prod(map(len, choices.values())) > limit:
            return None
        return self._product(choices)

    def sampled_image(self, rng: np.random.Generator) -> bytes:
        """One image that a power cut may leave now: of each store all, some or no units."""
        journal = self._journal()
        if not len(journal.at):
            return self.durable()
        chances = rng.choice(_CHANCES, len(self._made_by))[journal.made]
        return self._image(journal.only(rng.random(len(chances)) < chances))

    def images(self, seed: int, samples: int) -> list[bytes]:
        """Images that a power cut may leave now: without all that is not durable, with all of it,
        and `samples` mixtures of the two.
        """
        rng = np.random.default_rng(seed)
        two = [self.durable(), self._image(self._journal())]
        return two + [self.sampled_image(rng) for _ in range(samples)]

    def _complete(self, thread: int) -> None:
        """Make durable what a thread flushed of its own stores, or all that was flushed."""
        journal, makers = self._journal(), np.array(self._made_by, np.int64)
        seen = np.zeros(len(self._units), np.int64)
        for flush in self._flushed:
            if thread in (_ANYONE, flush.thread):
                units = seen[flush.start // self._unit : flush.end // self._unit]
                # msync writes what a page holds when it runs; the processor may write at the flush.
                np.maximum(units, len(makers) if thread == _ANYONE else flush.made, out=units)
        if thread != _ANYONE:
            reached = np.isin(makers, (_ANYONE, thread))[journal.made]
            own = journal.only(reached & (seen[journal.at] > journal.made))
            # Where its own store is durable, no older store is found any more.
            seen = np.zeros(len(self._units), np.int64)
            seen[own.at] = own.made + 1
        durable = seen[journal.at] > journal.made
        self._apply(self._durable, journal.only(durable))
        self._flushed = [one for one in self._flushed if thread not in (_ANYONE, one.thread)]
        self._keep(journal.only(~durable))

    def _keep(self, kept: _Journal) -> None:
        """Forget all other stores, and number these from 0."""
        numbers, made = np.unique(kept.made, return_inverse=True)
        self._parts = [kept._replace(made=made)]
        self._made_by = [self._made_by[number] for number in numbers]
        seen = np.searchsorted(numbers, [flush.made for flush in self._flushed])
        self._flushed = [
            flush._replace(made=int(made)) for flush, made in zip(self._flushed, seen, strict=True)
        ]

    def _product(self, choices: dict[int, list[bytes]]) -> Iterator[bytes]:
        image = bytearray(self._durable.tobytes())
        offsets = [unit * self._unit for unit in choices]
        for values in itertools.product(*choices.values()):
            for at, value in zip(offsets, values, strict=True):
                image[at : at + self._unit] = value
            yield bytes(image)

    def _image(self, journal: _Journal) -> bytes:
        image = self._durable.copy()
        self._apply(image, journal)
        return image.tobytes()

    def _apply(self, image: _Words, journal: _Journal) -> None:
        """Store units into an image, in order."""
        image[journal.at] = journal.values

    def _journal(self) -> _Journal:
        """All units that are not durable yet, as one journal."""
        if len(self._parts) != 1:
            empty = _Journal(np.empty(0, np.int64), self._durable[:0], np.empty(0, np.int64))
            self._parts = [_Journal(*map(np.concatenate, zip(empty, *self._parts, strict=True)))]
        return self._parts[0]

    def _hold(self, image: bytearray) -> None:
        if len(image) % self._unit:
            raise ValueError(f"the size is a multiple of {self._unit} bytes at this granularity")
        super()._hold(image)
        self._units = np.frombuffer(image, np.uint64).reshape(-1, self._unit // WORD)

    def _operation(self, name: str) -> None:
        if self.watch is not None:
            self.watch(name)
        self.operations.append(name)
