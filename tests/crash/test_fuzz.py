"""Whatever bytes the host puts where the region's structure is, opening refuses or is right."""

import itertools
import os
import struct
import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest

import plinius.slots.chunks
from crash.mirrors import KEY, newest, state
from crash.regions import check_structure
from crash.stops import SEED, rng_of
from plinius.cli.inspect_files import describe_mirror
from plinius.errors import PliniusError
from plinius.pm.heap import ARENA_AT, Span
from plinius.pm.medium import PAGE
from plinius.pm.region import Region, format_region
from plinius.pm.romulus import TwinState
from plinius.slots import Slots
from plinius.slots.layout import EXTENT
from plinius.testing import PlainMedium

IMAGES = 15_000
TWIN = 16 * 1024
NUMBERS = (
    0, 1, 7, 8, 15, 16, 63, 64, 4095, 4096, 4097, TWIN, PAGE + TWIN, PAGE + 2 * TWIN, 2**31, 2**32,
    2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 4096, 2**64 - 16, 2**64 - 1,
)  # fmt: skip
STATES = [one.word for one in TwinState]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the mirror's own scratch memory does not hide what a number asks for."""
    monkeypatch.setattr(plinius.slots.chunks, "CHUNK_BYTES", 256)
    monkeypatch.setattr(plinius.slots.chunks, "SMALL_BYTES", 64)


def true_image() -> bytes:
    """A region with blocks, roots, extents and a mirror with two commits."""
    medium = PlainMedium(bytes(PAGE + 2 * TWIN + 4 * PAGE))
    format_region(medium, TWIN)
    region = Region(medium, "r")
    with region.twins.transaction():
        for number in range(4):
            block = region.heap.allocate(100 + number)
            region.twins.store(block, bytes([number + 1]) * 100)
            region.heap.set_root(f"root-{number}", block, 100)
        hole = region.heap.allocate(48)
        region.heap.set_root("last", region.heap.allocate(1000), 1000)
        region.heap.free(hole)
    region.add_extent("bulk", 5000, lambda m, at: m.write(at, b"b" * 5000))
    mirror = Slots.create(region, KEY)
    mirror.write(state(0))
    mirror.write(state(1))
    return bytes(medium.bytes)


Shown = dict[str, dict[str, bytes]]


def shown(region: Region) -> Shown:
    """Every name and the bytes behind it, read to the last."""
    roots = {n: region.twins.read(s.offset, s.length) for n, s in region.heap.roots().items()}
    extents = {
        n: bytes(region.medium.read(s.offset, s.length)) for n, s in region.heap.extents().items()
    }
    return {"roots": roots, "extents": extents}


class Target:
    """The true image in a medium that is changed in place and made whole again."""

    def __init__(self) -> None:
        self.true = true_image()
        self.medium = PlainMedium(self.true)
        region = Region(self.medium, "r", writable=False)
        self.shown = shown(region)
        mirror = region.extent(EXTENT)
        assert mirror is not None
        self.places = self._places(mirror)
        self.areas = (
            (0, PAGE), (PAGE, ARENA_AT), (PAGE + ARENA_AT, 1600), (PAGE + TWIN, ARENA_AT),
            (mirror.offset, 128), (mirror.offset + PAGE, 128),
        )  # fmt: skip

    def _places(self, mirror: Span) -> list[int]:
        """Where the structure's numbers and words lie: what a clever host would change."""
        places = [0, 8, 32, 40, 48, 56, 64]
        for twin in (PAGE, PAGE + TWIN):
            tables = range(twin + 64, twin + 64 + 7 * 64, 64), range(twin + 2112, twin + 2304, 64)
            places += [twin, twin + 8, twin + 16, twin + 24]
            places += [entry + at for table in tables for entry in table for at in (0, 40, 48, 56)]
            at = ARENA_AT
            while at < TWIN:
                places += [twin + at, twin + at + 8]
                at += struct.unpack_from("<Q", self.true, PAGE + at)[0]
        slots = (PAGE, PAGE + (mirror.length - PAGE) // 2)
        return places + [mirror.offset + at for at in (0, 8, 16, 32, 40, 48, 56, *slots)]

    def mutated(self, rng: np.random.Generator) -> None:
        """Change one to four things of the true image."""
        image = self.medium.bytes
        draws = rng.integers(0, 2**63, 16).tolist()
        for number in range(1 + draws[0] % 4):
            kind, where, what = draws[3 * number + 1 : 3 * number + 4]
            place = self.places[where % len(self.places)]
            other = self.places[what % len(self.places)]
            start, length = self.areas[where % len(self.areas)]
            kind %= 8
            if kind == 0:  # a bit, anywhere in the structure
                image[start + what % length] ^= 1 << (what >> 40) % 8
            elif kind == 1:  # random bytes
                at = start + what % (length - 16)
                image[at : at + 16] = rng.bytes(16)
            elif kind == 2:  # a number out of the list
                struct.pack_into("<Q", image, place, NUMBERS[what % len(NUMBERS)])
            elif kind == 3:  # a number a little off
                (true,) = struct.unpack_from("<Q", image, place)
                step = (-4096, -64, -16, -1, 1, 16, 64, 4096)[what % 8]
                struct.pack_into("<Q", image, place, (true + step) % 2**64)
            elif kind == 4:  # a word from another place
                image[place : place + 8] = image[other : other + 8]
            elif kind == 5:  # an entry or a block from another place
                image[place : place + 64] = image[other : other + 64]
            elif kind == 6:  # the state word, so that the other twin counts
                struct.pack_into("<Q", image, 64, STATES[what % 3])
            else:  # both twins alike
                at = 8 * (what % (ARENA_AT // 8 + 200))
                word = NUMBERS[(what >> 40) % len(NUMBERS)]
                for twin in (PAGE, PAGE + TWIN):
                    struct.pack_into("<Q", image, twin + at, word)

    def whole_again(self) -> None:
        self.medium.bytes[:] = self.true


def opened(target: Target, *, writable: bool) -> tuple[Region, Shown] | None:
    """Open and read all there is; None if that was refused as it should be."""
    try:
        region = Region(target.medium, "r", writable=writable)
        seen = shown(region)
        if writable:
            region.consistency_check()
    except PliniusError:
        return None
    return region, seen


def examined(target: Target) -> str:
    """Open what is there in both ways and check it; returns how that ended."""
    before = bytes(target.medium.bytes)
    reading = opened(target, writable=False)
    assert target.medium.bytes == before, "opened read-only, it wrote"
    found = opened(target, writable=True)
    if found is None:
        return "refused"
    assert reading is not None and reading[1] == found[1], "two ways of opening, two contents"
    region, seen = found
    check_structure(target.medium.bytes)
    try:
        describe_mirror(region)
        mirror = Slots.open(region, KEY)
        snapshot = newest(mirror) if mirror else None
    except PliniusError:
        return "region opens, mirror is refused"
    assert snapshot is None or snapshot.digest() in (state(0).digest(), state(1).digest())
    return "correct" if seen == target.shown else "other names"


def mutations(target: Target, rng: np.random.Generator, count: int) -> Iterator[int]:
    for number in range(count):
        target.whole_again()
        target.mutated(rng)
        yield number


def test_mutated_regions_are_refused_or_correct(request: pytest.FixtureRequest) -> None:
    """15,000 of them (--soak: a million): no other exception, no read out of bounds, no hang."""
    soak = request.config.getoption("--soak", False)
    count = int(os.environ.get("PLINIUS_SOAK_IMAGES", 10**6)) if soak else IMAGES
    target, ends = Target(), dict[str, int]()
    for number in mutations(target, rng_of("fuzz"), count):
        try:
            end = examined(target)
        except BaseException as failure:
            failure.add_note(f"mutation {number}; PLINIUS_TEST_SEED={SEED} does it again")
            raise
        ends[end] = ends.get(end, 0) + 1
    print(ends)
    assert set(ends) == {
        "refused", "correct", "other names", "region opens, mirror is refused",
    }  # fmt: skip


def test_no_number_in_a_mutated_region_makes_an_allocation_larger_than_it() -> None:
    """Lengths are checked before memory is asked for (a sample, since tracing is slow)."""
    target = Target()
    tracemalloc.start()
    try:
        for _ in mutations(target, rng_of("memory"), 1000):
            tracemalloc.reset_peak()
            held = tracemalloc.get_traced_memory()[0]
            examined(target)
            assert tracemalloc.get_traced_memory()[1] - held < 4 * target.medium.size
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("at", [8, 32, 64, PAGE + 8, PAGE + 16, PAGE + 104, PAGE + ARENA_AT])
def test_each_of_the_numbers_is_refused_where_it_decides(at: int) -> None:
    """The header's, the heap's, a root's and a block's: one by one, with every number listed."""
    target = Target()
    (true,) = struct.unpack_from("<Q", target.true, at)
    for value in set(itertools.chain(NUMBERS, STATES)) - {true}:
        target.whole_again()
        struct.pack_into("<Q", target.medium.bytes, at, value)
        end = examined(target)
        assert end == "refused" or (end == "correct" and at == 64), value
