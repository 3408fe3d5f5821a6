"""Small regions, changes to them, and what a user can see of one, to compare it with."""

import functools
import struct
from collections.abc import Callable

import numpy as np

from plinius.pm.heap import ARENA_AT
from plinius.pm.medium import PAGE
from plinius.pm.region import Region, format_region
from plinius.structures.words import Words
from plinius.testing import PlainMedium

TWIN = 16 * 1024
SIZE = PAGE + 2 * TWIN + 4 * PAGE

Change = Callable[[Region], None]
Contents = tuple[object, ...]


@functools.cache
def fresh_image() -> bytes:
    """A region with roots at both ends of its heap, an extent, and room for three pages more."""
    medium = PlainMedium(bytes(SIZE))
    format_region(medium, TWIN)
    region = Region(medium, "r")
    with region.twins.transaction():
        for name, length in (("kept", 200), ("between", 7000), ("far", 200)):
            block = region.heap.allocate(length)
            region.twins.store(block, b"a" * length)
            region.heap.set_root(name, block, length)
    region.add_extent("old", 100, lambda m, at: m.write(at, b"o" * 100))
    return bytes(medium.bytes)


def contents(region: Region) -> Contents:
    """All that a user can see: names, the bytes behind them, the heap's blocks, the size."""
    roots = {n: region.twins.read(s.offset, s.length) for n, s in region.heap.roots().items()}
    extents = {
        n: (s.offset, bytes(region.medium.read(s.offset, s.length)))
        for n, s in region.heap.extents().items()
    }
    return roots, extents, region.heap._blocks(), region.heap.region_bytes


def check_structure(image: bytes | bytearray) -> tuple[list[int], list[int]]:
    """Check the bytes of an image; returns the offsets of the used blocks and of the roots.

    Twins are equal, blocks fill the heap, roots lie in blocks, extents do not overlap and lie
    inside. It shares no code with plinius.pm.heap, and so no mistake.
    """
    (twin,) = struct.unpack_from("<Q", image, 32)
    assert image[64:72] == b"IDLE\0\0\0\0"
    main, back = image[PAGE : PAGE + twin], image[PAGE + twin : PAGE + 2 * twin]
    assert main == back, "twins differ"
    used, at = {}, ARENA_AT
    while at < twin:
        size, state = struct.unpack_from("<Q8s", main, at)
        assert 16 <= size <= twin - at and size % 16 == 0, "blocks do not fill the heap"
        assert state in (b"USED\0\0\0\0", b"FREE\0\0\0\0")
        if state[:4] == b"USED":
            used[at + 16] = size - 16
        at += size
    tables = [
        [struct.unpack_from("<40sQQQ", main, at + 64 * i) for i in range(32)] for at in (64, 2112)
    ]
    roots, extents = ([entry for entry in table if any(entry[0])] for table in tables)
    assert all(length <= used[offset] for _, offset, length, _ in roots)
    end = PAGE + 2 * twin
    for offset, length in sorted(entry[1:3] for entry in extents):
        assert offset >= end and length > 0, "extents overlap"
        end = offset + length
    assert end <= struct.unpack_from("<Q", main, 8)[0] <= len(image)
    return sorted(used), sorted(entry[1] for entry in roots)


def owned_once(image: bytes | bytearray) -> None:
    """Check the structure, and that each byte of the heap is free or belongs to one name."""
    used, roots = check_structure(image)
    assert used == roots, "a used block without a name, or with two"


def recovered(image: bytes) -> Contents:
    """The contents after recovery from an image; its structure must be valid."""
    medium = PlainMedium(image)
    region = Region(medium, "r")
    region.consistency_check()
    owned_once(medium.bytes)
    return contents(region)


def scattered_stores(region: Region) -> None:
    with region.twins.transaction():
        block = region.heap.roots()["kept"].offset
        for at in (0, 8, 60, 70, 190):
            region.twins.store(block + at, struct.pack("<Q", at)[:8])


def scattered_words(region: Region) -> None:
    with region.twins.transaction():
        block = region.heap.roots()["kept"].offset
        words = Words(region)
        words.store([block + at for at in (0, 64, 8, 128)], np.arange(4))
        words.store([block + at for at in (136, 64)], np.arange(2))
        region.twins.store(block + 72, b"x")


def exchanged_words(region: Region) -> None:
    """Their values differ, so that half an exchange is noticed."""
    with region.twins.transaction():
        block = region.heap.roots()["kept"].offset
        words = Words(region)
        words.store([block, block + 64], np.arange(2))
        words.swap([block, block + 64], [block + 128, block])


def allocation(region: Region) -> None:
    with region.twins.transaction():
        block = region.heap.allocate(24)
        region.twins.store(block, b"n" * 24)
        region.heap.set_root("new", block, 24)


def free_and_forget(region: Region) -> None:
    with region.twins.transaction():
        offset = region.heap.roots()["kept"].offset
        region.heap.drop_root("kept")
        region.heap.free(offset)


class UndoError(Exception):
    """Leaves a transaction on purpose."""


def rolled_back(region: Region) -> None:
    try:
        with region.twins.transaction():
            block = region.heap.roots()["kept"].offset
            region.twins.store(region.heap.allocate(16), b"n" * 16)
            Words(region).store([block + 64], np.arange(1))
            raise UndoError
    except UndoError:
        pass


def nested(region: Region) -> None:
    with region.twins.transaction():
        block = region.heap.roots()["far"].offset
        region.twins.store(block, b"1" * 8)
        with region.twins.transaction():
            region.twins.store(block + 100, b"2" * 8)
        region.twins.store(block + 8, b"3" * 8)


def wide_store(region: Region) -> None:
    """One store of several lines, of which the first and the last word change."""
    with region.twins.transaction():
        block = region.heap.roots()["far"].offset
        region.twins.store(block, b"1" * 8 + b"a" * 184 + b"2" * 8)


def two_in_a_row(region: Region) -> None:
    """The second begins while the first's last state word is not durable yet."""
    near, far = (region.heap.roots()[name].offset for name in ("kept", "far"))
    for byte in (b"p", b"q"):
        with region.twins.transaction():
            region.twins.store(near, byte * 16)
            region.twins.store(far + 160, byte * 8)


def new_extent(region: Region) -> None:
    region.add_extent("new", PAGE + 1, lambda m, at: m.write(at + 4064, b"e" * 33))


def extent_that_grows_the_region(region: Region) -> None:
    region.add_extent("big", 6 * PAGE, lambda m, at: m.write(at + PAGE - 16, b"g" * 32))


def dropped_extent(region: Region) -> None:
    region.drop_extent("old")


def extent_in_a_dropped_place(region: Region) -> None:
    region.drop_extent("old")
    region.add_extent("new", 100, lambda m, at: m.write(at, b"e" * 24))


CHANGES: list[Change] = [
    scattered_stores, scattered_words, exchanged_words, allocation, free_and_forget, rolled_back,
    nested, wide_store, two_in_a_row, new_extent, extent_that_grows_the_region, dropped_extent,
    extent_in_a_dropped_place,
]  # fmt: skip


@functools.cache
def states_of(change: Change) -> list[Contents]:
    """Every state that a user may find during a change, from the first to the last.

    These are the states after each transaction (and, for the size, after the file has grown).
    """
    region = Region(PlainMedium(fresh_image()), "r")
    found = [contents(region)]
    finish = region.twins._finish

    def ended() -> None:
        finish()
        found.append(contents(region))

    region.twins._finish = ended  # type: ignore[method-assign]
    change(region)
    return found
