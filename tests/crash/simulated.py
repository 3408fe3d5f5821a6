"""A medium that can stop at any operation and show what a power cut might have left.

The model: a store changes what is read at once; what lasts is decided word by word (8 bytes). A
word that was flushed before a fence returned holds the flushed value or a later one; any other
holds any value it has had since it last lasted. This is weaker than any real processor, which
keeps the order of stores within a cache line.
"""

import random
from collections.abc import Callable

from plinius.pm.medium import LINE, WORD, Granularity


class Stopped(BaseException):
    """The machine stopped at the operation asked for."""


class SimulatedMedium:
    """Memory with the interface of a Medium, counting its operations and stopping at one."""

    granularity = Granularity.CACHE_LINE

    def __init__(self, size: int = 0, *, image: bytes | None = None) -> None:
        self._lasting = bytearray(image if image is not None else bytes(size))
        self._now = bytearray(self._lasting)
        self._versions: dict[int, list[bytes]] = {}
        self._flushed: dict[int, int] = {}
        self.operations: list[str] = []
        self.stop_at: int | None = None

    @property
    def size(self) -> int:
        return len(self._now)

    def read(self, offset: int, length: int) -> memoryview:
        assert offset >= 0 and 0 <= length <= self.size - offset
        return memoryview(bytes(self._now[offset : offset + length]))

    def store(self, offset: int, data: bytes | memoryview) -> None:
        self._operation("store")
        self._put(offset, bytes(data))

    def store_word(self, offset: int, word: int) -> None:
        assert offset % WORD == 0
        self._operation("store")
        self._put(offset, word.to_bytes(WORD, "little"))

    def write(self, offset: int, data: bytes | memoryview) -> None:
        self.store(offset, data)
        self.flush(offset, len(data))

    def copy(self, to: int, source: int, length: int) -> None:
        self.write(to, self.read(source, length))

    def flush(self, offset: int, length: int) -> None:
        self._operation("flush")
        first = offset // LINE * LINE // WORD
        last = -(-(offset + length) // LINE) * LINE // WORD
        for word in range(first, last):
            if word in self._versions:
                self._flushed[word] = len(self._versions[word])

    def fence(self) -> None:
        self._operation("fence")
        for word, count in self._flushed.items():
            versions = self._versions[word]
            self._lasting[word * WORD : (word + 1) * WORD] = versions[count - 1]
            if count == len(versions):
                del self._versions[word]
            else:
                del versions[:count]
        self._flushed.clear()

    def resize(self, size: int) -> None:
        self._operation("resize")
        more = bytes(size - self.size)
        self._lasting += more
        self._now += more

    def close(self) -> None:
        pass

    def images(self, seed: int, samples: int) -> list[bytes]:
        """What a cut now might leave: nothing unfenced, everything, and random mixtures."""
        rng = random.Random(seed)
        chosen: list[Callable[[list[bytes]], bytes | None]] = [
            lambda _: None,
            lambda versions: versions[-1],
        ]
        chosen += [lambda versions: rng.choice([None, *versions])] * samples
        found = []
        for choose in chosen:
            image = bytearray(self._lasting)
            for word, versions in self._versions.items():
                value = choose(versions)
                if value is not None:
                    image[word * WORD : (word + 1) * WORD] = value
            found.append(bytes(image))
        return found

    def _operation(self, name: str) -> None:
        if self.stop_at is not None and len(self.operations) >= self.stop_at:
            raise Stopped
        self.operations.append(name)

    def _put(self, offset: int, data: bytes) -> None:
        assert offset >= 0 and len(data) <= self.size - offset
        self._now[offset : offset + len(data)] = data
        for word in range(offset // WORD, -(-(offset + len(data)) // WORD)):
            value = bytes(self._now[word * WORD : (word + 1) * WORD])
            self._versions.setdefault(word, []).append(value)


def every_stop(
    start: bytes, act: Callable[[SimulatedMedium], object], samples: int = 3
) -> list[tuple[int, bytes, bool]]:
    """Run `act` from an image, stopped at every operation in turn, until it gets to its end.

    Returns (operation, image, whether `act` had returned) for every image a cut might leave.
    """
    found = []
    stop_at = 0
    while True:
        medium = SimulatedMedium(image=start)
        medium.stop_at = stop_at
        try:
            act(medium)
            ended = True
        except Stopped:
            ended = False
        found += [(stop_at, image, ended) for image in medium.images(stop_at, samples)]
        if ended:
            return found
        stop_at += 1
