"""The directory in the twin heap: a block allocator, named roots and named extents.

    0      8    magic "PLNSHEAP"
    8      8    region bytes: where the extents end
    16     8    twin bytes
    24     40   zero
    64     2048 roots,   32 entries of 64 bytes: name 40 | offset 8 | length 8 | zero 8
    2112   2048 extents, 32 entries of 64 bytes: the same
    4160   ...  heap blocks up to the end of the twin: size 8 | "USED" or "FREE", padded to 8 | body

Invariants, checked on every open: heap blocks follow each other without gaps to the end of the
twin; every root names the body of a used block; extents start at multiples of 4096, lie inside the
region and do not overlap. Numbers are little-endian. Every read is a copy that is checked before it
is used.
"""

import struct
from dataclasses import dataclass
from typing import NoReturn

from plinius.errors import RegionError, RegionFullError
from plinius.pm.medium import PAGE, round_up
from plinius.pm.romulus import Twins

MAGIC = b"PLNSHEAP"
ENTRIES = 32
NAME_BYTES = 40
_HEADER = struct.Struct("<8sQQ40x")
_ENTRY = struct.Struct("<40sQQ8x")
_BLOCK = struct.Struct("<Q8s")
_USED, _FREE = b"USED\0\0\0\0", b"FREE\0\0\0\0"
_ROOTS_AT = _HEADER.size
_EXTENTS_AT = _ROOTS_AT + ENTRIES * _ENTRY.size
ARENA_AT = _EXTENTS_AT + ENTRIES * _ENTRY.size
_ALIGN = 16
MIN_TWIN_BYTES = 16 * 1024


@dataclass(frozen=True)
class Span:
    """Where a root lies in the heap, or an extent in the region: offset and length in bytes."""

    offset: int
    length: int

    @property
    def end(self) -> int:
        """The offset of the first byte after it."""
        return self.offset + self.length


class Heap:
    """The directory of a region. Each change is a transaction, or joins the open one."""

    def __init__(self, twins: Twins, extents_at: int) -> None:
        self._twins = twins
        self._extents_at = extents_at
        self.check()

    @staticmethod
    def formatted(twin_bytes: int, region_bytes: int) -> bytes:
        """The first bytes of an empty heap; the rest of it is zero."""
        block = _BLOCK.pack(twin_bytes - ARENA_AT, _FREE)
        return _HEADER.pack(MAGIC, region_bytes, twin_bytes).ljust(ARENA_AT, b"\0") + block

    @property
    def region_bytes(self) -> int:
        """Where the region's extents end, in bytes from its start."""
        header = self._twins.read(0, _HEADER.size)
        magic, region_bytes, twin_bytes = _HEADER.unpack(header)
        if (
            magic != MAGIC
            or any(header[24:])
            or twin_bytes != self._twins.length
            or region_bytes % PAGE
            or region_bytes < self._extents_at
        ):
            _damaged("its heap's header")
        return int(region_bytes)

    def grow_to(self, region_bytes: int) -> None:
        """Record that the region has become larger. Raises ValueError for an unsuitable size."""
        if region_bytes % PAGE or region_bytes < self.region_bytes:
            raise ValueError("a region never shrinks, and its size is a multiple of 4096")
        with self._twins.transaction():
            self._twins.store(8, struct.pack("<Q", region_bytes))

    def roots(self) -> dict[str, Span]:
        """The named heap blocks: where their bodies lie in the heap, by name."""
        used = self.used()
        found = self._table(_ROOTS_AT, "roots")
        for span in found.values():
            if span.offset not in used or span.length > used[span.offset]:
                _damaged("a root that names no block")
        return found

    def used(self) -> dict[int, int]:
        """The used heap blocks: the length of each body in bytes, by the body's offset."""
        return {offset: size for offset, size, state in self._blocks() if state == _USED}

    def set_root(self, name: str, offset: int, length: int) -> None:
        """Name the heap block whose body is at `offset`, or point an existing name at it.

        Raises ValueError if there is no such block, if `length` is larger than its body, or if the
        name is not 1 to 40 ASCII characters; RegionFullError if there are 32 roots already.
        """
        if length > self.used().get(offset, -1):
            raise ValueError("a root names the body of an allocated block")
        self._put(_ROOTS_AT, "roots", name, Span(offset, length))

    def drop_root(self, name: str) -> None:
        """Forget a name; its block stays allocated. Raises ValueError if there is no such name."""
        self._put(_ROOTS_AT, "roots", name, None)

    def extents(self) -> dict[str, Span]:
        """The named bulk areas: where they lie in the region, by name."""
        found = self._table(_EXTENTS_AT, "extents")
        spans = sorted(found.values(), key=lambda span: span.offset)
        end = self._extents_at
        for span in spans:
            if span.offset % PAGE or span.offset < end or span.length == 0:
                _damaged("an extent that overlaps another or is not aligned")
            end = span.end
        if end > self.region_bytes:
            _damaged("an extent outside the region")
        return found

    def set_extent(self, name: str, span: Span | None) -> None:
        """Name a bulk area, or forget the name with None.

        Raises ValueError for a name that is not 1 to 40 ASCII characters or is not there to be
        forgotten, RegionFullError if there are 32 extents already, RegionError if the area
        overlaps another or lies outside the region.
        """
        with self._twins.transaction():
            self._put(_EXTENTS_AT, "extents", name, span)
            self.extents()  # a name that breaks an invariant is rolled back

    def free_area(self, length: int) -> int | None:
        """The offset of the first free area of `length` bytes in the region, or None."""
        start = self._extents_at
        for span in sorted(self.extents().values(), key=lambda span: span.offset):
            if span.offset - start >= length:
                return start
            start = round_up(span.end, PAGE)
        return start if self.region_bytes - start >= length else None

    def allocate(self, length: int) -> int:
        """Allocate a heap block; returns the offset of its body, a multiple of 16.

        The first free block that is large enough is taken. Its bytes are not cleared. Raises
        RegionFullError if there is none, ValueError if `length` is less than 1.
        """
        if length < 1:
            raise ValueError("a block has at least one byte")
        need = _BLOCK.size + round_up(length, _ALIGN)
        with self._twins.transaction():
            for body, size, state in self._blocks():
                at, block_bytes = body - _BLOCK.size, size + _BLOCK.size
                if state == _FREE and block_bytes >= need:
                    rest = block_bytes - need
                    if rest >= _BLOCK.size + _ALIGN:
                        self._twins.store(at + need, _BLOCK.pack(rest, _FREE))
                        block_bytes = need
                    self._twins.store(at, _BLOCK.pack(block_bytes, _USED))
                    return body
        raise RegionFullError(
            f"The region's heap has no room for {length:,} bytes more",
            "Make a region with a larger heap",
        )

    def free(self, offset: int) -> None:
        """Free the heap block whose body is at `offset`, and merge it with free neighbours.

        Raises ValueError if there is no such used block, or a root names it.
        """
        blocks = self._blocks()
        at = next((i for i, b in enumerate(blocks) if b[0] == offset and b[2] == _USED), None)
        if at is None:
            raise ValueError("only an allocated block can be freed")
        if any(span.offset == offset for span in self.roots().values()):
            raise ValueError("a root names this block")
        first = at - 1 if at > 0 and blocks[at - 1][2] == _FREE else at
        last = at + 1 if at + 1 < len(blocks) and blocks[at + 1][2] == _FREE else at
        start = blocks[first][0] - _BLOCK.size
        end = blocks[last][0] + blocks[last][1]
        with self._twins.transaction():
            self._twins.store(start, _BLOCK.pack(end - start, _FREE))

    def check(self) -> None:
        """Raise RegionError unless every invariant holds."""
        self.roots()
        self.extents()

    def _blocks(self) -> list[tuple[int, int, bytes]]:
        """Every heap block: offset and length of its body, and its state."""
        found, at, end = [], ARENA_AT, self._twins.length
        while at < end:
            if end - at < _BLOCK.size:
                _damaged("a block that is cut short")
            size, state = _BLOCK.unpack(self._twins.read(at, _BLOCK.size))
            if size <= _BLOCK.size or size % _ALIGN or size > end - at:
                _damaged("a block of impossible size")
            if state not in (_USED, _FREE):
                _damaged("a block that is neither used nor free")
            found.append((at + _BLOCK.size, size - _BLOCK.size, state))
            at += size
        return found

    def _table(self, table: int, what: str) -> dict[str, Span]:
        raw = self._twins.read(table, ENTRIES * _ENTRY.size)
        found: dict[str, Span] = {}
        for at in range(0, len(raw), _ENTRY.size):
            entry = raw[at : at + _ENTRY.size]
            if entry == bytes(_ENTRY.size):
                continue
            name, offset, length = _ENTRY.unpack(entry)
            text = name.rstrip(b"\0")
            # It must be the same bytes when written again, so a name has only one spelling.
            same = entry == _pack(text, Span(offset, length))
            if not text or not text.isascii() or b"\0" in text or not same:
                _damaged(f"an entry of its {what} that cannot be read")
            if text.decode() in found:
                _damaged(f"a name twice among its {what}")
            found[text.decode()] = Span(offset, length)
        return found

    def _put(self, table: int, what: str, name: str, span: Span | None) -> None:
        if not (name.isascii() and 0 < len(name) <= NAME_BYTES and "\0" not in name):
            raise ValueError("a name has 1 to 40 ASCII characters")
        raw = name.encode()
        names = [
            self._twins.read(table + i * _ENTRY.size, NAME_BYTES).rstrip(b"\0")
            for i in range(ENTRIES)
        ]
        if raw in names:
            slot = names.index(raw)
        elif span is None:
            raise ValueError(f"no such name: {name}")
        elif b"" in names:
            slot = names.index(b"")
        else:
            raise RegionFullError(f"The region holds {ENTRIES} {what} already", "Drop one first")
        entry = _pack(raw, span) if span is not None else bytes(_ENTRY.size)
        with self._twins.transaction():
            self._twins.store(table + slot * _ENTRY.size, entry)


def _pack(name: bytes, span: Span) -> bytes:
    return _ENTRY.pack(name, span.offset, span.length)


def _damaged(what: str) -> NoReturn:
    raise RegionError(
        f"The region's directory is damaged or altered: {what}",
        "Restore a copy of the region, or start a new one",
    )
