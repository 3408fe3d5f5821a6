"""A persistent stack and queue: items in a chain of nodes, each a block of the heap.

The header (see structure_header.py) has

    24  8   offset of the first node, 0 if there is none: a queue pops from it
    32  8   queue: bytes already popped from the first node
    40  8   offset of the last node, 0 if there is none: push adds to it, and a stack pops from it

and a node is

    0   8   offset of the node before it (stack) or after it (queue), 0 for none
    8   8   room for items in bytes, a multiple of 8
    16  8   bytes of it in use
    24  ..  items: the payload padded with zeros to a multiple of 8, and its length (8 bytes), which
            comes after the payload in a stack and before it in a queue

Invariants, checked on open: each node is a used heap block that no root names, occurs once and is
not empty; items fill the bytes in use exactly; there are `count` of them. Afterwards each operation
reads the numbers that it follows once, and checks them.
"""

import operator
import struct
from typing import Self

from plinius.pm.heap import ARENA_AT
from plinius.pm.medium import WORD, round_up
from plinius.pm.region import Region
from plinius.structures.structure_header import Structure

Item = bytes | int

_NODE = struct.Struct("<QQQ")
_WORD = struct.Struct("<Q")
_NUMBERS = struct.Struct("<QQQQ")  # the header's count and three numbers, stored together
_NUMBERS_AT = 16
_USED_AT = 16  # in a node
_ROOM = 4096 - 16 - _NODE.size  # with the heap's own 16 bytes a node takes 4096


class _Chain(Structure):
    """Items in a chain of nodes; push adds to the last node."""

    KINDS = ("bytes", "int64")
    _LENGTH_LAST = False  # whether an item's length comes after its payload

    @classmethod
    def create(cls, region: Region, name: str, kind: str = "bytes") -> Self:
        """Make an empty one; `kind` is "bytes" or "int64".

        Raises ValueError if the name is taken or the kind is another one, RegionFullError.
        """
        return cls._make(region, name, kind, 0, 0)

    def push(self, item: Item) -> None:
        """Add an item.

        Raises RegionFullError if the heap has no room, TypeError for an item of another kind,
        OverflowError for an integer beyond int64, RegionError if it is damaged or was dropped.
        """
        raw = self._encode(item)
        with self._twins.transaction():
            count, first, position, last = self._header()
            _, room, used = self._node(last) if last else (0, 0, 0)
            if room - used < len(raw):
                last, used = self._add_node(last, max(_ROOM, len(raw))), 0
                first = first or last
            self._twins.store(last + _NODE.size + used, raw)
            self._twins.store(last + _USED_AT, _WORD.pack(used + len(raw)))
            self._set(count + 1, first, position, last)

    def pop(self) -> Item:
        """Remove an item and return it.

        Raises IndexError if there is none, RegionError if it is damaged or was dropped.
        """
        with self._twins.reading():
            count, *numbers = self._header()
            if not count:  # not inside a transaction, or an outer one would have to roll back
                raise IndexError(f"the {self.WHAT} {self.name} is empty")
            with self._twins.transaction():
                item, first, position, last = self._pop(*numbers)
                self._set(count - 1, first, position, last)
                return item

    def items(self) -> list[Item]:
        """Copies of all items, in the order in which pop() would return them."""
        with self._twins.reading():
            return [item for node in self._nodes() for item in self._items_of(*node)]

    def blocks(self) -> list[int]:
        """The offsets of the heap blocks that it owns."""
        with self._twins.reading():
            return [self._at, *(node[0] for node in self._nodes())]

    def _pop(self, first: int, position: int, last: int) -> tuple[Item, int, int, int]:
        """Remove an item; returns it, and the header's three numbers after it."""
        raise NotImplementedError

    def _check(self) -> None:
        if len(self.items()) != self._header()[0]:
            self._refuse("its count is not the number of its items")

    def _nodes(self) -> list[tuple[int, int, int]]:
        """Every node, in the order of pop(): its offset, and where its items start and end."""
        _, first, position, last = self._header()
        if self._LENGTH_LAST and position:
            self._refuse("its header has another number where a stack has zero")
        if position % WORD or (position and not first):
            self._refuse("it has an impossible number of popped bytes")
        own = self._heap.used()
        for root in self._heap.roots().values():
            own.pop(root.offset, None)
        nodes = []
        at = last if self._LENGTH_LAST else first
        while at:
            size = own.pop(at, 0)  # so a node that occurs twice is refused
            link, room, used = self._node(at)
            if _NODE.size + room > size or position >= used:
                self._refuse("one of its nodes is empty or does not belong to it")
            nodes.append((at, position, used))
            at, position = link, 0
        ends = (nodes[0][0], nodes[-1][0]) if nodes else (0, 0)
        if ends != ((last, first) if self._LENGTH_LAST else (first, last)):
            self._refuse("its first or last node is not where its header says")
        return nodes

    def _node(self, at: int) -> tuple[int, int, int]:
        """Link, room and bytes in use of the node at an offset."""
        if at < ARENA_AT:
            self._refuse("one of its nodes lies outside the heap")
        link, room, used = _NODE.unpack(self._twins.read(at, _NODE.size))
        if used > room or used % WORD or room % WORD or room > self._twins.length - at:
            self._refuse("one of its nodes has an impossible length")
        return link, room, used

    def _items_of(self, at: int, start: int, end: int) -> list[Item]:
        raw = self._twins.read(at + _NODE.size + start, end - start)
        items, left, right = [], 0, len(raw)
        while left < right:
            length_at = right - WORD if self._LENGTH_LAST else left
            length = _WORD.unpack_from(raw, length_at)[0]
            size = self._size(length, right - left)
            body = right - size if self._LENGTH_LAST else left + WORD
            items.append(self._decode(raw[body : body + length]))
            left, right = (left, right - size) if self._LENGTH_LAST else (left + size, right)
        return items

    def _size(self, length: int, most: int) -> int:
        """Bytes of an item with its length; they must fit into `most`."""
        size = WORD + round_up(length, WORD)
        if size > most or (self.kind == "int64" and length != WORD):
            self._refuse("one of its items has an impossible length")
        return size

    def _encode(self, item: Item) -> bytes:
        if self.kind == "int64":
            item = operator.index(item).to_bytes(WORD, "little", signed=True)  # type: ignore[arg-type]
        elif not isinstance(item, bytes):
            raise TypeError(f"the items of {self.WHAT} {self.name} are bytes")
        padded, length = item.ljust(round_up(len(item), WORD), b"\0"), _WORD.pack(len(item))
        return padded + length if self._LENGTH_LAST else length + padded

    def _decode(self, raw: bytes) -> Item:
        return int.from_bytes(raw, "little", signed=True) if self.kind == "int64" else raw

    def _add_node(self, last: int, room: int) -> int:
        at = self._heap.allocate(_NODE.size + room)
        self._twins.store(at, _NODE.pack(last if self._LENGTH_LAST else 0, room, 0))
        if last and not self._LENGTH_LAST:
            self._twins.store(last, _WORD.pack(at))
        return at

    def _set(self, count: int, first: int, position: int, last: int) -> None:
        self._twins.store(self._at + _NUMBERS_AT, _NUMBERS.pack(count, first, position, last))


class PersistentStack(_Chain):
    """Items of "bytes" or "int64", last in, first out."""

    MAGIC, WHAT, _LENGTH_LAST = b"PLNSSTK\n", "stack", True

    def _pop(self, first: int, position: int, last: int) -> tuple[Item, int, int, int]:
        before, _, used = self._node(last)
        start = last + _NODE.size
        length = _WORD.unpack(self._twins.read(start + used - WORD, WORD))[0]
        used -= self._size(length, used)
        item = self._decode(self._twins.read(start + used, length))
        if used:
            self._twins.store(last + _USED_AT, _WORD.pack(used))
        else:
            self._free(last)
            first, last = first if before else 0, before
        return item, first, position, last


class PersistentQueue(_Chain):
    """Items of "bytes" or "int64", first in, first out."""

    MAGIC, WHAT = b"PLNSQUE\n", "queue"

    def _pop(self, first: int, position: int, last: int) -> tuple[Item, int, int, int]:
        after, _, used = self._node(first)
        start = first + _NODE.size + position
        length = _WORD.unpack(self._twins.read(start, WORD))[0]
        position += self._size(length, used - position)
        item = self._decode(self._twins.read(start + WORD, length))
        if position == used:
            self._free(first)
            first, position, last = after, 0, last if after else 0
        return item, first, position, last
