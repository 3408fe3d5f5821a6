"""Persistent array, stack and queue: found again by their root's name after any stop.

A root names a header of 48 bytes in the heap:

    0   8   magic: "PLNSARR\\n", "PLNSSTK\\n" or "PLNSQUE\\n"
    8   8   kind of element: "int64", "float64" or "bytes", padded with zeros
    16  8   count of elements
    24  8   stack, queue: offset of the first chunk, or 0 if empty
    32  8   queue: bytes already popped from the first chunk
    40  8   stack, queue: offset of the last chunk, the one pushed to, or 0 if empty

An array's elements, 8 bytes each, follow its header. A stack and a queue keep theirs in chunks,
each a block of the heap:

    0   8   offset of the chunk below (stack) or behind (queue), or 0
    8   8   room: bytes for items, a multiple of 8
    16  8   bytes of them in use
    24  ..  items: payload padded to 8, with its length (8) behind it (stack) or before it (queue)

Invariants, checked on open: a chunk is a used block that no root names, comes once and is not
empty; items tile it; there are `count` of them. Afterwards every operation reads the words it
follows once and checks them. Little-endian.

Each operation is one transaction, or joins the open one. Threads of one process may share a
region: each operation sees the others' whole. A handle made in a transaction that is rolled back
must be thrown away.
"""

import operator
import struct
from typing import Self

import numpy as np
import numpy.typing as npt

from plinius.pm.heap import ARENA_AT
from plinius.pm.medium import WORD
from plinius.pm.region import Region
from plinius.structures.header import Rooted

Item = bytes | int
Index = int | slice | npt.NDArray[np.integer]
Numbers = npt.NDArray[np.int64] | npt.NDArray[np.float64]

_CHUNK = struct.Struct("<QQQ")
_WORD = struct.Struct("<Q")
_PLACES = struct.Struct("<QQQQ")  # the header's second part, stored as one
_PLACES_AT = 16
_USED_AT = 16  # in a chunk
_ROOM = 4096 - 16 - _CHUNK.size  # with the heap's own 16 bytes a chunk is a page


class _Chain(Rooted):
    """Items in a chain of chunks, pushed to the last one."""

    KINDS = ("bytes", "int64")
    _LENGTH_BEHIND = False  # where an item's length stands

    @classmethod
    def create(cls, region: Region, name: str, kind: str = "bytes") -> Self:
        """Make an empty one, of "bytes" or "int64". Raises ValueError if the name is taken,
        RegionFullError.
        """
        return cls._make(region, name, kind, 0, 0)

    @classmethod
    def open(cls, region: Region, name: str) -> Self:
        """Find it by name. Raises RegionError if it is not there or is damaged."""
        return cls(region, name)

    def push(self, item: Item) -> None:
        """Add an item. Raises RegionFullError if the heap has no room, TypeError for another kind,
        OverflowError for an integer beyond int64.
        """
        raw = self._packed(item)
        with self._twins.transaction():
            count, first, position, last = self._header()
            _, room, used = self._chunk(last) if last else (0, 0, 0)
            if room - used < len(raw):
                last, used = self._add_chunk(last, max(_ROOM, len(raw))), 0
                first = first or last
            self._twins.store(last + _CHUNK.size + used, raw)
            self._twins.store(last + _USED_AT, _WORD.pack(used + len(raw)))
            self._set(count + 1, first, position, last)

    def pop(self) -> Item:
        """Remove an item and return it. Raises IndexError if there is none."""
        with self._twins.reading():
            count, *places = self._header()
            if not count:  # before the transaction, which would roll an outer one back
                raise IndexError(f"the {self.WHAT} {self.name} is empty")
            with self._twins.transaction():
                item, first, position, last = self._take(*places)
                self._set(count - 1, first, position, last)
                return item

    def items(self) -> list[Item]:
        """Copies of all items, the one that pop() would give first."""
        with self._twins.reading():
            return [item for chunk in self._chunks() for item in self._items_of(*chunk)]

    def blocks(self) -> list[int]:
        """The offsets of the heap's blocks that it owns."""
        with self._twins.reading():
            return [self._at, *(chunk[0] for chunk in self._chunks())]

    def _take(self, first: int, position: int, last: int) -> tuple[Item, int, int, int]:
        """The item to pop, and the places after it."""
        raise NotImplementedError

    def _check(self) -> None:
        if len(self.items()) != self._header()[0]:
            self._refuse("its items are not as many as it counts")

    def _chunks(self) -> list[tuple[int, int, int]]:
        """Every chunk, from where pop() takes: its offset, where its items start and end."""
        _, first, position, last = self._header()
        own = self._heap.used()
        for root in self._heap.roots().values():
            own.pop(root.offset, None)
        chunks = []
        at = last if self._LENGTH_BEHIND else first
        while at:
            size = own.pop(at, 0)  # so a chunk that comes twice is none
            link, room, used = self._chunk(at)
            if _CHUNK.size + room > size or position >= used:
                self._refuse("a chunk of it is empty or not its own")
            chunks.append((at, position, used))
            at, position = link, 0
        ends = (chunks[0][0], chunks[-1][0]) if chunks else (0, 0)
        if ends != ((last, first) if self._LENGTH_BEHIND else (first, last)):
            self._refuse("its ends are not where it says")
        return chunks

    def _chunk(self, at: int) -> tuple[int, int, int]:
        """Link, room and bytes used of the chunk at an offset."""
        if at < ARENA_AT:
            self._refuse("a chunk of it lies outside the heap")
        link, room, used = _CHUNK.unpack(self._twins.read(at, _CHUNK.size))
        if used > room or used % WORD or room % WORD or room > self._twins.length - at:
            self._refuse("a chunk of it has an impossible length")
        return link, room, used

    def _items_of(self, at: int, start: int, end: int) -> list[Item]:
        raw = self._twins.read(at + _CHUNK.size + start, end - start)
        items, left, right = [], 0, len(raw)
        while left < right:
            length_at = right - WORD if self._LENGTH_BEHIND else left
            length = _WORD.unpack_from(raw, length_at)[0]
            size = self._size(length, right - left)
            body = right - size if self._LENGTH_BEHIND else left + WORD
            items.append(self._unpacked(raw[body : body + length]))
            left, right = (left, right - size) if self._LENGTH_BEHIND else (left + size, right)
        return items

    def _size(self, length: int, most: int) -> int:
        """Bytes of an item and its length, which must fit."""
        size = WORD - (-length // WORD) * WORD
        if size > most or (self.kind == "int64" and length != WORD):
            self._refuse("an item of it has an impossible length")
        return size

    def _packed(self, item: Item) -> bytes:
        if self.kind == "int64":
            item = operator.index(item).to_bytes(WORD, "little", signed=True)  # type: ignore[arg-type]
        elif not isinstance(item, bytes):
            raise TypeError(f"the {self.WHAT} {self.name} holds bytes")
        padded, length = item + bytes(-len(item) % WORD), _WORD.pack(len(item))
        return padded + length if self._LENGTH_BEHIND else length + padded

    def _unpacked(self, raw: bytes) -> Item:
        return int.from_bytes(raw, "little", signed=True) if self.kind == "int64" else raw

    def _add_chunk(self, last: int, room: int) -> int:
        at = self._heap.allocate(_CHUNK.size + room)
        self._twins.store(at, _CHUNK.pack(last if self._LENGTH_BEHIND else 0, room, 0))
        if last and not self._LENGTH_BEHIND:
            self._twins.store(last, _WORD.pack(at))
        return at

    def _set(self, count: int, first: int, position: int, last: int) -> None:
        self._twins.store(self._at + _PLACES_AT, _PLACES.pack(count, first, position, last))


class PersistentStack(_Chain):
    """Last in, first out."""

    MAGIC, WHAT, _LENGTH_BEHIND = b"PLNSSTK\n", "stack", True

    def _take(self, first: int, position: int, last: int) -> tuple[Item, int, int, int]:
        below, _, used = self._chunk(last)
        start = last + _CHUNK.size
        length = _WORD.unpack(self._twins.read(start + used - WORD, WORD))[0]
        used -= self._size(length, used)
        item = self._unpacked(self._twins.read(start + used, length))
        if used:
            self._twins.store(last + _USED_AT, _WORD.pack(used))
        else:
            self._free(last)
            first, last = first if below else 0, below
        return item, first, position, last


class PersistentQueue(_Chain):
    """First in, first out."""

    MAGIC, WHAT = b"PLNSQUE\n", "queue"

    def _take(self, first: int, position: int, last: int) -> tuple[Item, int, int, int]:
        behind, _, used = self._chunk(first)
        start = first + _CHUNK.size + position
        length = _WORD.unpack(self._twins.read(start, WORD))[0]
        position += self._size(length, used - position)
        item = self._unpacked(self._twins.read(start + WORD, length))
        if position == used:
            self._free(first)
            first, position, last = behind, 0, last if behind else 0
        return item, first, position, last
