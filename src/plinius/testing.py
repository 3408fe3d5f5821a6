"""The persistence model: a medium that records its operations and shows what a cut might leave.

A store shows at once in what is read. What lasts is decided unit by unit:

- CACHE_LINE: the unit is the word (8 bytes), the smallest store that is never torn. A word that
  was flushed (with its line) before a fence returned holds the value it had at the flush, or a
  later one. Any other word holds any value it has had since it last lasted.
  Stores and flushes belong to the thread that made them: a flush reaches the stores of its own
  thread, and only its own thread's drain or fence completes it.
- PAGE: the unit is the sector (512 bytes) of a page in the page cache, which the kernel may write
  back at any moment, in any order. A flush names pages; a fence makes them last as they are then,
  whichever thread stored or flushed.

Both are weaker than what they model: a processor keeps the order of stores within a line, and a
flush writes back all that is in its line, whichever thread's cached store put it there.
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
from plinius.pm.medium import LINE, PAGE, WORD, Granularity

SECTOR = 512
ANYONE = 0  # no thread has this number
COUNTABLE = 20_000  # more unfenced units than this are never listed one by one
_CHANCES = (0.0, 0.03, 0.5, 0.97, 1.0)

Words = npt.NDArray[np.uint64]


class PlainMedium:
    """Memory with the interface and the bounds of a mapped medium; nothing is recorded."""

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

    block_bytes = 2 * PAGE  # small, so that a little state is written in several blocks

    def writer(self) -> CopyWriter:
        """See Medium."""
        return CopyWriter(self.write)

    def store(self, offset: int, data: bytes | memoryview) -> None:
        """See Medium."""
        self._check(offset, len(data))
        self._view[offset : offset + len(data)] = data

    def store_word(self, offset: int, word: int) -> None:
        """See Medium."""
        assert offset % WORD == 0
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
            raise RegionError(f"outside: {offset}, {length}", "Mend the test")


class Journal(NamedTuple):
    """Unfenced units in the order they were stored: where, what, and by which store."""

    at: npt.NDArray[np.int64]
    values: Words
    made: npt.NDArray[np.int64]

    def only(self, which: npt.NDArray[np.bool_]) -> "Journal":
        """The units chosen."""
        return Journal(self.at[which], self.values[which], self.made[which])


class Flush(NamedTuple):
    """A range that a thread has begun to write back, and how many stores had been made then."""

    thread: int
    first: int
    last: int
    made: int


class SimulatedMedium:
    """Memory with the interface of a medium, which knows what of it would survive a cut.

    `watch` is called with the name of every operation before it happens. Threads take turns,
    operation by operation.
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
        self._set(bytearray(image if image is not None else size))
        self._lasting = self._units.copy()
        self._parts: list[Journal] = []
        self._flushed: list[Flush] = []
        self._made_by: list[int] = []  # the thread of each store
        self._turn = threading.RLock()
        self.operations: list[str] = []
        self.stored_bytes = self.flushed_units = 0
        self.watch: Callable[[str], None] | None = None

    @property
    def size(self) -> int:
        """See Medium."""
        return len(self._now)

    def read(self, offset: int, length: int) -> memoryview:
        """See Medium."""
        self._check(offset, length)
        return self._shown[offset : offset + length]

    view = read

    def read_into(self, offset: int, out: memoryview) -> None:
        """See Medium."""
        out[:] = self.read(offset, len(out))

    block_bytes = PlainMedium.block_bytes

    def writer(self) -> CopyWriter:
        """See Medium."""
        return CopyWriter(self.write)

    def store(self, offset: int, data: bytes | memoryview) -> None:
        """See Medium."""
        with self._turn:
            self._operation("store")
            self._check(offset, len(data))
            self._now[offset : offset + len(data)] = data
            first, last = offset // self._unit, -(-(offset + len(data)) // self._unit)
            at = np.arange(first, last)
            made = np.full(last - first, len(self._made_by))
            self._parts.append(Journal(at, self._units[first:last].copy(), made))
            self._made_by.append(threading.get_ident())
            self.stored_bytes += len(data)

    def store_word(self, offset: int, word: int) -> None:
        """See Medium."""
        assert offset % WORD == 0
        self.store(offset, word.to_bytes(WORD, "little"))

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """See Medium."""
        self.store(offset, data)
        self.flush(offset, len(data))

    def copy(self, to: int, source: int, length: int) -> None:
        """See Medium."""
        self.write(to, bytes(self.read(source, length)))

    def flush(self, offset: int, length: int) -> None:
        """See Medium."""
        with self._turn:
            self._operation("flush")
            self._check(offset, length)
            first = offset // self._flush_unit * self._flush_unit
            last = min(-(-(offset + length) // self._flush_unit) * self._flush_unit, self.size)
            if length:
                thread = threading.get_ident()
                self._flushed.append(Flush(thread, first, last, len(self._made_by)))
                self.flushed_units += (last - first) // self._flush_unit

    def drain(self) -> None:
        """See Medium."""
        with self._turn:
            self._operation("drain")
            if self.granularity is not Granularity.PAGE:
                self._complete(threading.get_ident())

    def fence(self) -> None:
        """See Medium."""
        with self._turn:
            self._operation("fence")
            everyone = self.granularity is Granularity.PAGE
            self._complete(ANYONE if everyone else threading.get_ident())

    def quiesce(self) -> None:
        """See Medium."""

    def release(self, offset: int, length: int) -> None:
        """The pages are zeros; what a real medium does of it at a cut is up to it."""
        with self._turn:
            self._operation("release")
            self._check(offset, length)
            first, last = offset // self._unit, (offset + length) // self._unit
            at = self._journal().at
            self._keep(self._journal().only((at < first) | (at >= last)))
            self._now[offset : offset + length] = bytes(length)
            self._lasting[first:last] = 0

    def reserve(self, offset: int, length: int) -> None:
        """See Medium."""
        self._check(offset, length)

    def resize(self, size: int) -> None:
        """Grow; like the real one, this lasts when it returns."""
        with self._turn:
            self._operation("resize")
            more = bytes(size - self.size)
            self._set(self._now + more)
            lasting = self._lasting.tobytes() + more
            self._lasting = np.frombuffer(bytearray(lasting), np.uint64).reshape(self._units.shape)

    def close(self) -> None:
        """See Medium."""

    def killed(self) -> "SimulatedMedium":
        """What the next process maps after a kill: all stores show, no flush is remembered."""
        after = SimulatedMedium(image=self._now, granularity=self.granularity)
        after._lasting = self._lasting.copy()
        after._parts, after._made_by = [self._journal()], [ANYONE] * len(self._made_by)
        return after

    def lasting(self) -> bytes:
        """What a cut leaves at the least."""
        return self._lasting.tobytes()

    def choices(self) -> dict[int, list[bytes]]:
        """The units of which a cut may leave more than one value, and those values."""
        journal = self._journal()
        differs = (journal.values != self._lasting[journal.at]).any(axis=1)
        found: dict[int, list[bytes]] = {}
        for unit, value in zip(*journal.only(differs)[:2], strict=True):
            versions = found.setdefault(int(unit), [self._lasting[unit].tobytes()])
            if value.tobytes() not in versions:
                versions.append(value.tobytes())
        return found

    def every_image(self, limit: int) -> Iterator[bytes] | None:
        """All that a cut may leave, each once; None if there are more than `limit`."""
        if len(self._journal().at) > COUNTABLE:
            return None
        choices = self.choices()
        if math.prod(map(len, choices.values())) > limit:
            return None
        return self._product(choices)

    def sampled_image(self, rng: np.random.Generator) -> bytes:
        """One of the images that a cut may leave: of some stores all, of others none or a part."""
        journal = self._journal()
        if not len(journal.at):
            return self.lasting()
        chances = rng.choice(_CHANCES, len(self._made_by))[journal.made]
        return self._image(journal.only(rng.random(len(chances)) < chances))

    def images(self, seed: int, samples: int) -> list[bytes]:
        """What a cut now might leave: nothing unfenced, everything, and random mixtures."""
        rng = np.random.default_rng(seed)
        two = [self.lasting(), self._image(self._journal())]
        return two + [self.sampled_image(rng) for _ in range(samples)]

    def _complete(self, thread: int) -> None:
        """Make last what a thread flushed of its own stores, or what ANYONE flushed."""
        journal, makers = self._journal(), np.array(self._made_by, np.int64)
        seen = np.zeros(len(self._units), np.int64)
        for flush in self._flushed:
            if thread in (ANYONE, flush.thread):
                units = seen[flush.first // self._unit : -(-flush.last // self._unit)]
                # msync writes what a page holds when it runs; a write-back may come at once.
                np.maximum(units, len(makers) if thread == ANYONE else flush.made, out=units)
        if thread != ANYONE:
            reached = np.isin(makers, (ANYONE, thread))[journal.made]
            own = journal.only(reached & (seen[journal.at] > journal.made))
            # Before a store of its own that lasts, no older one is found any more.
            seen = np.zeros(len(self._units), np.int64)
            seen[own.at] = own.made + 1
        lasts = seen[journal.at] > journal.made
        self._lay(self._lasting, journal.only(lasts))
        self._flushed = [one for one in self._flushed if thread not in (ANYONE, one.thread)]
        self._keep(journal.only(~lasts))

    def _keep(self, kept: Journal) -> None:
        """Forget all other stores, and number these anew."""
        numbers, made = np.unique(kept.made, return_inverse=True)
        self._parts = [kept._replace(made=made)]
        self._made_by = [self._made_by[number] for number in numbers]
        seen = np.searchsorted(numbers, [flush.made for flush in self._flushed])
        self._flushed = [
            flush._replace(made=int(made)) for flush, made in zip(self._flushed, seen, strict=True)
        ]

    def _product(self, choices: dict[int, list[bytes]]) -> Iterator[bytes]:
        image = bytearray(self._lasting.tobytes())
        places = [unit * self._unit for unit in choices]
        for values in itertools.product(*choices.values()):
            for at, value in zip(places, values, strict=True):
                image[at : at + self._unit] = value
            yield bytes(image)

    def _image(self, journal: Journal) -> bytes:
        image = self._lasting.copy()
        self._lay(image, journal)
        return image.tobytes()

    def _lay(self, image: Words, journal: Journal) -> None:
        """Put stored units into an image; of several at one place the last one stays."""
        image[journal.at] = journal.values

    def _journal(self) -> Journal:
        """All that is unfenced, as one."""
        if len(self._parts) != 1:
            empty = Journal(np.empty(0, np.int64), self._lasting[:0], np.empty(0, np.int64))
            self._parts = [Journal(*map(np.concatenate, zip(empty, *self._parts, strict=True)))]
        return self._parts[0]

    def _set(self, now: bytearray) -> None:
        assert len(now) % self._unit == 0
        self._now = now
        self._units = np.frombuffer(now, np.uint64).reshape(-1, self._unit // WORD)
        self._shown = memoryview(now).toreadonly()

    def _operation(self, name: str) -> None:
        if self.watch is not None:
            self.watch(name)
        self.operations.append(name)

    def _check(self, offset: int, length: int) -> None:
        if not (offset >= 0 and 0 <= length <= self.size - offset):
            raise RegionError(f"outside: {offset}, {length}", "Mend the test")
