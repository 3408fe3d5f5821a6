"""What the persistent structures share: a header in the heap that a root names.

    0   8   magic of the structure: "PLNSARR\\n", "PLNSSTK\\n" or "PLNSQUE\\n"
    8   8   kind of element: "int64", "float64" or "bytes", padded with zeros
    16  8   count of elements
    24  24  three numbers of the structure, zero in an array
    48  ..  elements of an array

Numbers are little-endian. docs/formats/structures.md specifies the format.

Each operation is one transaction, or joins the open one. Threads of one process may share a region:
each operation sees the others complete. An object that was made in a transaction that was rolled
back must not be used any more.
"""

import struct
from typing import NoReturn, Self

from plinius.errors import RegionError
from plinius.pm.medium import WORD
from plinius.pm.region import Region

HEADER = struct.Struct("<8s8sQQQQ")
_CLEAR_BYTES = 1 << 20


class Structure:
    """A structure in the heap of a region, found by the name of its root."""

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
                self._refuse("the kind of its elements is unknown")
            self._check()

    @property
    def kind(self) -> str:
        """The kind of its elements: "int64", "float64" or "bytes"."""
        return str(self._kind.rstrip(b"\0").decode())

    @classmethod
    def open(cls, region: Region, name: str) -> Self:
        """Find it by name. Raises RegionError if it is not there or is damaged."""
        return cls(region, name)

    @classmethod
    def _make(cls, region: Region, name: str, kind: str, count: int, body: int) -> Self:
        """Create a structure whose header is followed by `body` zero bytes."""
        if kind not in cls.KINDS:
            raise ValueError(f"the kind of a {cls.WHAT} is {' or '.join(cls.KINDS)}")
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
        """The offsets of the heap blocks that it owns."""
        return [self._at]

    def drop(self) -> None:
        """Free its heap blocks and forget its name."""
        with self._twins.transaction():
            blocks = self.blocks()
            self._twins.store(self._at, bytes(HEADER.size))  # so other objects notice it
            self._heap.drop_root(self.name)
            for block in blocks:
                self._free(block)

    def _free(self, block: int) -> None:
        try:
            self._heap.free(block)
        except ValueError:
            self._refuse("one of its blocks does not belong to it")

    def _header(self) -> tuple[int, int, int, int]:
        """The count and the three numbers. Raises RegionError if it is no longer this structure."""
        magic, kind, *numbers = HEADER.unpack(self._twins.read(self._at, HEADER.size))
        if magic != self.MAGIC or kind != self._kind:
            self._refuse(f"it is no {self.WHAT}, or was dropped")
        if numbers[0] > self._twins.length // WORD:  # each element takes at least 8 bytes
            self._refuse("its count is larger than the heap")
        return numbers[0], numbers[1], numbers[2], numbers[3]

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
