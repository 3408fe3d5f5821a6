"""A stop at every store, flush and fence of the region's transactions and recovery."""

import struct
from collections.abc import Callable

import pytest

from crash.simulated import SimulatedMedium, every_stop
from plinius.errors import FormatError, RegionError
from plinius.pm.medium import PAGE
from plinius.pm.region import Region, format_region

TWIN = 16 * 1024
SIZE = PAGE + 2 * TWIN + 4 * PAGE

Change = Callable[[Region], None]


def fresh_image() -> bytes:
    medium = SimulatedMedium(SIZE)
    format_region(medium, TWIN)
    region = Region(medium, "r")
    with region.twins.transaction():
        block = region.heap.allocate(200)
        region.twins.store(block, b"a" * 200)
        region.heap.set_root("kept", block, 200)
    region.add_extent("old", 100, lambda m, at: m.write(at, b"o" * 100))
    return medium.images(0, 0)[1]


def contents(region: Region) -> tuple[object, ...]:
    """All that a user can see of a region: names, the bytes behind them, the heap's blocks."""
    roots = {n: region.twins.read(s.offset, s.length) for n, s in region.heap.roots().items()}
    extents = {
        n: (s.offset, bytes(region.medium.read(s.offset, s.length)))
        for n, s in region.heap.extents().items()
    }
    return roots, extents, region.heap._blocks(), region.heap.region_bytes


def scattered_stores(region: Region) -> None:
    with region.twins.transaction():
        block = region.heap.roots()["kept"].offset
        for at in (0, 8, 60, 70, 190):
            region.twins.store(block + at, struct.pack("<Q", at)[:8])


def allocation(region: Region) -> None:
    with region.twins.transaction():
        block = region.heap.allocate(64)
        region.twins.store(block, b"n" * 64)
        region.heap.set_root("new", block, 64)


def free_and_forget(region: Region) -> None:
    with region.twins.transaction():
        offset = region.heap.roots()["kept"].offset
        region.heap.drop_root("kept")
        region.heap.free(offset)


def rolled_back(region: Region) -> None:
    with pytest.raises(KeyError), region.twins.transaction():
        region.twins.store(region.heap.allocate(64), b"n" * 64)
        raise KeyError


def new_extent(region: Region) -> None:
    region.add_extent("new", PAGE + 1, lambda m, at: m.write(at, b"e" * (PAGE + 1)))


def extent_that_grows_the_region(region: Region) -> None:
    region.add_extent("big", 6 * PAGE, lambda m, at: m.write(at, b"g" * 6 * PAGE))


def dropped_extent(region: Region) -> None:
    region.drop_extent("old")


CHANGES: list[Change] = [
    scattered_stores, allocation, free_and_forget, rolled_back, new_extent,
    extent_that_grows_the_region, dropped_extent,
]  # fmt: skip


def reopened(image: bytes) -> Region:
    region = Region(SimulatedMedium(image=image), "r")
    region.consistency_check()
    assert region.twins.equal()
    return region


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_stop_anywhere_leaves_the_state_before_or_after(change: Change) -> None:
    """Whatever operation the machine stops at, recovery finds one of the two states, whole."""
    start = fresh_image()
    before = contents(reopened(start))
    done = SimulatedMedium(image=start)
    region = Region(done, "r")
    change(region)
    after = contents(region)
    grown = (*before[:3], after[3])  # a region may have grown before its extent got its name
    seen = set()
    for stop, image, ended in every_stop(start, lambda m: change(Region(m, "r"))):
        found = contents(reopened(image))
        assert found == after if ended else found in (before, after, grown), stop
        seen.add(found == after)
    assert True in seen


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_stop_during_recovery_changes_nothing_about_what_it_ends_with(change: Change) -> None:
    """Recovery can itself be cut at every operation, and then again."""
    start = fresh_image()
    unfinished = [
        image for _, image, ended in every_stop(start, lambda m: change(Region(m, "r")), 1)
        if not ended
    ]  # fmt: skip
    for image in unfinished[:: max(1, len(unfinished) // 25)]:
        wanted = contents(reopened(image))
        for _, again, _ in every_stop(image, lambda m: Region(m, "r"), samples=1):
            assert contents(reopened(again)) == wanted


def test_a_read_only_view_of_an_interrupted_region_is_the_recovered_one() -> None:
    """Opening read-only shows what recovery would, without writing."""
    start = fresh_image()
    for _, image, _ in every_stop(start, lambda m: allocation(Region(m, "r")), 1):
        medium = SimulatedMedium(image=image)
        shown = contents(Region(medium, "r", writable=False))
        assert medium.operations == []
        assert shown == contents(reopened(image))


def test_a_transaction_takes_at_most_four_fences() -> None:
    """However many stores it makes."""
    medium = SimulatedMedium(image=fresh_image())
    region = Region(medium, "r")
    before = len(medium.operations)
    scattered_stores(region)
    assert medium.operations[before:].count("fence") == 4


def test_a_stop_while_a_region_is_formatted_leaves_no_region_or_a_whole_one() -> None:
    """The magic goes last, so half a region is foreign, never followed."""
    for _, image, ended in every_stop(bytes(SIZE), lambda m: format_region(m, TWIN)):
        try:
            region = reopened(image)
        except FormatError:
            assert not ended
        else:
            assert region.heap.extents() == {}


def test_a_failed_inner_transaction_dooms_the_outer_one() -> None:
    """Catching its exception does not let half of it be committed."""
    region = Region(SimulatedMedium(image=fresh_image()), "r")
    before = contents(region)
    with pytest.raises(RuntimeError, match="inner transaction failed"), region.twins.transaction():
        with pytest.raises(KeyError), region.twins.transaction():
            region.twins.store(region.heap.allocate(64), b"x" * 64)
            raise KeyError
        region.heap.drop_root("kept")
    assert contents(region) == before


def test_a_state_word_that_is_no_state_is_refused() -> None:
    """A region whose state cannot be known is not recovered by guessing."""
    image = bytearray(fresh_image())
    image[64] ^= 1
    with pytest.raises(RegionError, match="which is no state"):
        Region(SimulatedMedium(image=bytes(image)), "r")
