"""What the persistent structures share: a header in the heap that a root names.

0   8   magic, of the structure
8   8   kind of element: "int64", "float64" or "bytes", padded with zeros
16  8   count of elements
24  24  three words of the structure's own
48  ..  its body
"""

import struct
from typing import NoReturn, Self

from plinius.errors import RegionError
from plinius.pm.region import Region

HEADER = struct.Struct("<8s8sQQQQ")
_CLEAR_BYTES = 1 << 20


class Rooted:
    """What the structures share: a header that a root names."""

    MAGIC = b""
    WHAT = ""
    KINDS: tuple[str, ...] = ()

    def __init__(self, region: Region, name: str) -> None:
        self.name = name
        self._twins, self._heap = region.twins, region.heap
        with self._twins.reading():
            span = self._heap.roots().get(name)
            if span is None:
                raise RegionError(
                    f"The region holds no {self.WHAT} named {name}", "Create it, or name another"
                )
            self._at, self._length = span.offset, span.length
            if span.length < HEADER.size:
                self._refuse("its header is cut short")
            self._kind = HEADER.unpack(self._twins.read(self._at, HEADER.size))[1]
            if self._kind not in map(_kind_bytes, self.KINDS):
                self._refuse("its elements are of no kind it could hold")
            self._check()

    @property
    def kind(self) -> str:
        """What its elements are."""
        return str(self._kind.rstrip(b"\0").decode())

    @classmethod
    def _make(cls, region: Region, name: str, kind: str, count: int, body: int) -> Self:
        if kind not in cls.KINDS:
            raise ValueError(f"a {cls.WHAT} holds {' or '.join(cls.KINDS)}")
        with region.twins.transaction():
            if name in region.heap.roots():
                raise ValueError(f"root {name} exists already")
            at = region.heap.allocate(HEADER.size + body)
            header = HEADER.pack(cls.MAGIC, _kind_bytes(kind), count, 0, 0, 0)
            region.twins.store(at, header)
            for start in range(0, body, _CLEAR_BYTES):
                zeros = bytes(min(_CLEAR_BYTES, body - start))
                region.twins.store(at + HEADER.size + start, zeros)
            region.heap.set_root(name, at, HEADER.size + body)
            return cls(region, name)

    def __len__(self) -> int:
        with self._twins.reading():
            return self._header()[0]

    def blocks(self) -> list[int]:
        """The offsets of the heap's blocks that it owns."""
        return [self._at]

    def drop(self) -> None:
        """Give all its space back, and its name."""
        with self._twins.transaction():
            blocks = self.blocks()
            self._twins.store(self._at, bytes(HEADER.size))  # other handles find it gone
            self._heap.drop_root(self.name)
            for block in blocks:
                self._free(block)

    def _free(self, block: int) -> None:
        try:
            self._heap.free(block)
        except ValueError:
            self._refuse("a block of it is not its own")

    def _header(self) -> tuple[int, int, int, int]:
        """Count, first, position, last. Raises RegionError if it is no longer this structure."""
        magic, kind, *rest = HEADER.unpack(self._twins.read(self._at, HEADER.size))
        if magic != self.MAGIC or kind != self._kind:
            self._refuse(f"it is no {self.WHAT}, or was dropped")
        if rest[0] > self._twins.length // 8:  # an element takes 8 bytes at the least
            self._refuse("it counts more elements than there can be")
        return rest[0], rest[1], rest[2], rest[3]

    def _check(self) -> None:
        """Raise RegionError unless every invariant holds."""
        raise NotImplementedError

    def _refuse(self, why: str) -> NoReturn:
        raise RegionError(
            f"The {self.WHAT} {self.name} cannot be used: {why}",
            "If you did not expect that, restore a copy of the region",
        )


def _kind_bytes(kind: str) -> bytes:
    return kind.encode().ljust(8, b"\0")
