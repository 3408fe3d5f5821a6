"""The region on real files: making, opening, locking, growing, refusing."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plinius.errors import FormatError, RegionError, RegionFullError, StorageError
from plinius.pm.heap import ENTRIES, Heap
from plinius.pm.medium import PAGE
from plinius.pm.region import Region, format_region
from plinius.testing import SimulatedMedium


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "r"


def filled(region: Region, name: str, data: bytes) -> None:
    region.add_extent(name, len(data), lambda medium, at: medium.write(at, data))


def content(region: Region, name: str) -> bytes:
    span = region.extent(name)
    assert span is not None
    return bytes(region.medium.read(span.offset, span.length))


def test_what_was_committed_is_there_after_reopening(path: Path) -> None:
    """Roots, blocks and extents."""
    with Region.create(path, PAGE) as region:
        with region.twins.transaction():
            block = region.heap.allocate(5)
            region.twins.store(block, b"hello")
            region.heap.set_root("greeting", block, 5)
        filled(region, "bulk", b"b" * 10000)
    with Region.open(path) as region:
        root = region.heap.roots()["greeting"]
        assert region.twins.read(root.offset, root.length) == b"hello"
        assert content(region, "bulk") == b"b" * 10000
        region.consistency_check()


def test_a_region_works_wherever_it_is_copied(path: Path, tmp_path: Path) -> None:
    """There are only offsets: a copy may be mapped anywhere, next to the first."""
    with Region.create(path, 0) as region:
        filled(region, "bulk", b"b" * 5000)
    shutil.copy(path, tmp_path / "copy")
    with Region.open(path) as one, Region.open(tmp_path / "copy") as two:
        assert content(one, "bulk") == content(two, "bulk")


def test_a_region_grows_when_an_extent_needs_room(path: Path) -> None:
    """What it contains stays."""
    with Region.create(path, 0) as region:
        for name in "abc":
            filled(region, name, name.encode() * 3 * PAGE)
    with Region.open(path) as region:
        assert [content(region, name)[:1] for name in "abc"] == [b"a", b"b", b"c"]


def test_the_space_of_a_dropped_extent_is_used_again(path: Path) -> None:
    """Before the region grows."""
    with Region.create(path, 0) as region:
        filled(region, "a", b"a" * 4 * PAGE)
        filled(region, "b", b"b" * PAGE)
        before = region.medium.size
        region.drop_extent("a")
        filled(region, "c", b"c" * 4 * PAGE)
        assert region.medium.size == before
        assert content(region, "b") == b"b" * PAGE


def test_making_a_region_over_a_file_is_refused(path: Path) -> None:
    """And the file is not changed."""
    path.write_bytes(b"precious")
    with pytest.raises(RegionError, match=f"{path} exists already"):
        Region.create(path, 0)
    assert path.read_bytes() == b"precious"
    assert os.listdir(path.parent) == ["r"]


def test_what_a_killed_creation_left_is_taken_over(path: Path) -> None:
    """The unfinished file has another name, so nothing is mistaken for a region."""
    path.with_name("r.creating").write_bytes(b"half a region")
    Region.create(path, 0).close()
    Region.open(path).close()
    assert os.listdir(path.parent) == ["r"]


def test_a_creation_killed_after_the_link_does_not_lose_the_region(path: Path) -> None:
    """The temporary name may still be there."""
    with Region.create(path, 0) as region:
        filled(region, "bulk", b"b" * 100)
    os.link(path, path.with_name("r.creating"))
    with pytest.raises(RegionError, match="exists already"):
        Region.create(path, 0)
    with Region.open(path) as region:
        assert content(region, "bulk") == b"b" * 100


def test_a_file_that_is_no_region_is_refused(path: Path) -> None:
    """Short or long, and nothing is written to it."""
    for data in (b"", b"short", b"x" * 3 * PAGE):
        path.write_bytes(data)
        with pytest.raises(FormatError, match=f"{path} is not a Plinius region"):
            Region.open(path)
        assert path.read_bytes() == data


def test_a_missing_region_is_refused(path: Path) -> None:
    """The error names the next step."""
    with pytest.raises(StorageError, match=f"There is no region {path}.*plinius train"):
        Region.open(path)


def test_the_directory_has_a_limited_number_of_names(path: Path) -> None:
    """One more is refused, the others stay."""
    with Region.create(path, 0) as region:
        for index in range(ENTRIES):
            filled(region, f"e{index}", b"x")
        with pytest.raises(RegionFullError, match=f"holds {ENTRIES} extents already"):
            filled(region, "one more", b"x")
        assert len(region.heap.extents()) == ENTRIES


def test_a_full_heap_is_refused_and_rolled_back(path: Path) -> None:
    """What was stored in the same transaction is undone."""
    with Region.create(path, 0) as region:
        before = region.heap._blocks()
        with pytest.raises(RegionFullError, match="no room for 1,048,576 bytes more"):
            with region.twins.transaction():
                region.heap.allocate(100)
                region.heap.allocate(1 << 20)
        assert region.heap._blocks() == before
        region.consistency_check()


def test_stores_need_a_transaction(path: Path) -> None:
    """Outside of one they could not be rolled back."""
    with Region.create(path, 0) as region, pytest.raises(RuntimeError):
        region.twins.store(5000, b"x")


def test_an_extent_is_not_made_inside_a_transaction(path: Path) -> None:
    """An extent dropped in it could be overwritten before the drop is durable."""
    with Region.create(path, 0) as region:
        filled(region, "old", b"o" * 100)
        with pytest.raises(RuntimeError, match="outside of transactions"):
            with region.twins.transaction():
                region.drop_extent("old")
                filled(region, "new", b"n" * 100)
        assert content(region, "old") == b"o" * 100


def test_a_region_is_opened_or_created_in_one_call(path: Path) -> None:
    """Created if it is not there; what is there is opened, or refused and not replaced."""
    with Region.open_or_create(path) as region:
        filled(region, "bulk", b"b")
    with Region.open_or_create(path) as region:
        assert content(region, "bulk") == b"b"
    path.write_bytes(b"precious")
    with pytest.raises(FormatError):
        Region.open_or_create(path)
    assert path.read_bytes() == b"precious"


@pytest.mark.parametrize("name", ["", "a" * 41, "\xe9", "a\0b"])
def test_names_are_one_to_forty_ascii_characters(path: Path, name: str) -> None:
    """Of roots and extents; nothing is changed."""
    with Region.create(path) as region:
        with pytest.raises(ValueError, match="1 to 40 ASCII"):
            filled(region, name, b"x")
        assert not region.heap.extents()
        filled(region, "a" * 40, b"x")


class Model:
    """A heap, and what it should contain."""

    def __init__(self) -> None:
        medium = SimulatedMedium(PAGE + 2 * 16384)
        format_region(medium, 16384)
        self.region = Region(medium, "r")
        self.blocks: dict[int, bytes] = {}

    @property
    def heap(self) -> Heap:
        return self.region.heap


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 900)), max_size=40), st.randoms())
def test_the_allocator_never_gives_a_byte_twice_and_loses_none(steps: Any, rng: Any) -> None:
    """After any sequence of allocations and frees, blocks keep their bytes and fill the heap."""
    model = Model()
    start = model.heap._blocks()
    for give, length in steps:
        with model.region.twins.transaction():
            if give or not model.blocks:
                try:
                    at = model.heap.allocate(length)
                except RegionFullError:
                    break
                data = rng.randbytes(length)
                model.region.twins.store(at, data)
                model.blocks[at] = data
            else:
                at = rng.choice(sorted(model.blocks))
                del model.blocks[at]
                model.heap.free(at)
        for at, data in model.blocks.items():
            assert model.region.twins.read(at, len(data)) == data
    model.region.heap.check()
    for at in model.blocks:
        model.heap.free(at)
    assert model.heap._blocks() == start
