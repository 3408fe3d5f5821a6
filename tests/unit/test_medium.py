"""Media on mapped files: which one each file system gets, and the write-back instructions."""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import plinius.pm.block_writer
import plinius.pm.file
from plinius.errors import PliniusError, RegionError, RegionFullError, StorageError
from plinius.pm._persist import ffi, lib
from plinius.pm.cacheline import CacheLineMedium, pwb_name
from plinius.pm.file import FileMedium
from plinius.pm.mapped import MappedMedium
from plinius.pm.medium import PAGE, Granularity, Medium, merge_ranges, round_up
from plinius.pm.open_medium import open_medium
from plinius.pm.region import Region
from plinius.structures.list_operations import list_operations
from plinius.testing import PlainMedium, SimulatedMedium

MEMORY = Path("/dev/shm")
KINDS = {"clflush": 1, "clflushopt": 2, "clwb": 3, "dc-cvap": 4}
HERE = [name for name, kind in KINDS.items() if lib.pl_pwb_supported(kind)]


@pytest.fixture(params=["disk", "memory"])
def medium(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MappedMedium]:
    """A medium of 64 KiB on each kind of file system."""
    folder = tmp_path if request.param == "disk" else MEMORY
    path = folder / f"plinius-test-{os.getpid()}"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    os.posix_fallocate(fd, 0, 16 * PAGE)
    path.unlink()
    mapped = open_medium(fd)
    yield mapped
    mapped.close()


def test_memory_file_systems_promise_only_what_they_keep() -> None:
    """tmpfs survives the end of a process, and is never called durable."""
    fd = os.open(MEMORY, os.O_RDWR | os.O_TMPFILE)
    os.ftruncate(fd, PAGE)
    found = open_medium(fd).granularity
    assert found is Granularity.PROCESS
    assert "process kill only" in found.survives
    os.close(fd)


def test_an_ordinary_disk_has_page_granularity(tmp_path: Path) -> None:
    """Without MAP_SYNC, msync makes it durable."""
    fd = os.open(tmp_path, os.O_RDWR | os.O_TMPFILE)
    os.ftruncate(fd, PAGE)
    found = open_medium(fd).granularity
    if found is Granularity.PROCESS:
        pytest.skip("the tests' temporary folder is a memory file system")
    assert found is Granularity.PAGE
    os.close(fd)


def test_all_ways_of_writing_leave_the_same_bytes(medium: MappedMedium) -> None:
    """Store, write, copy and word agree with a plain bytearray, at any alignment."""
    rng = random.Random(3)
    wanted = bytearray(medium.size)
    for _ in range(400):
        length = rng.choice([0, 1, 7, 8, 63, 64, 65, 200, 4097])
        at = rng.randrange(medium.size - length)
        data = rng.randbytes(length)
        way = rng.choice(["store", "write", "copy", "word"])
        if way == "word":
            at = at // 8 * 8
            medium.store_word(at, int.from_bytes(data[:8], "little"))
            wanted[at : at + 8] = data[:8].ljust(8, b"\0")
        elif way == "copy":
            source = rng.randrange(medium.size - length)
            if abs(source - at) < length:
                continue
            medium.copy(at, source, length)
            wanted[at : at + length] = wanted[source : source + length]
        else:
            getattr(medium, way)(at, data)
            wanted[at : at + length] = data
        medium.flush(at, length)
        medium.fence()
    assert medium.read(0, medium.size) == wanted


@pytest.mark.parametrize("offset", [-1, 16 * PAGE - 3])
def test_nothing_outside_the_file_is_touched(medium: MappedMedium, offset: int) -> None:
    """Every operation checks its range."""
    for act in (
        lambda: medium.read(offset, 4),
        lambda: medium.store(offset, b"1234"),
        lambda: medium.write(offset, b"1234"),
        lambda: medium.flush(offset, 4),
        lambda: medium.copy(0, offset, 4),
        lambda: medium.copy(offset, 0, 4),
        lambda: medium.store_word(offset, 1),
    ):
        with pytest.raises(RegionError, match="points outside itself"):
            act()


def test_growth_keeps_old_views_and_adds_zeros(medium: MappedMedium) -> None:
    """A view of the old mapping shows what is stored through the new one."""
    medium.store(0, b"kept")
    view = medium.view(0, 4)
    medium.resize(32 * PAGE)
    medium.store(0, b"new!")
    assert bytes(view) == b"new!"
    assert not any(medium.view(16 * PAGE, 16 * PAGE))


def test_growth_beyond_the_disk_is_refused_and_loses_nothing(medium: MappedMedium) -> None:
    """The file keeps its length and its bytes."""
    medium.store(0, b"kept")
    with pytest.raises((RegionFullError, StorageError)):
        medium.resize(1 << 60)
    assert medium.size == 16 * PAGE
    assert bytes(medium.read(0, 4)) == b"kept"


@pytest.mark.parametrize("kind", [CacheLineMedium, FileMedium, PlainMedium, SimulatedMedium])
def test_each_medium_has_every_operation(kind: type[Medium]) -> None:
    """What a class does not define itself would be Medium's empty one."""
    operations = [name for name in vars(Medium) if not name.startswith("_")]
    assert len(operations) > 15
    for name in operations:
        assert getattr(kind, name) is not getattr(Medium, name), name


@pytest.mark.parametrize("name", HERE)
def test_each_write_back_instruction_runs_on_every_alignment(name: str) -> None:
    """Flushing never changes a byte, whatever line it starts or ends in."""
    memory = bytearray(random.Random(1).randbytes(1024))
    before = bytes(memory)
    address = ffi.from_buffer("char[]", memory)
    for start in range(0, 130, 13):
        for length in (0, 1, 63, 64, 65, 500):
            lib.pl_flush(KINDS[name], address + start, length)
    lib.pl_fence()
    assert memory == before


@pytest.mark.parametrize("name", HERE)
def test_the_write_back_instruction_can_be_forced(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PLINIUS_PWB names one the CPU has."""
    monkeypatch.setenv("PLINIUS_PWB", name)
    assert pwb_name() == name


@pytest.mark.parametrize("name", ["wishful", ""])
def test_an_unknown_write_back_instruction_is_refused(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The error names those that there are, also for a region on a disk, which needs none."""
    monkeypatch.setenv("PLINIUS_PWB", name)
    refusal = f"PLINIUS_PWB={name} is not a write-back instruction of this CPU. Set it to one of"
    with pytest.raises(PliniusError, match=refusal):
        pwb_name()
    with pytest.raises(PliniusError, match=refusal):
        Region.create(tmp_path / "run.region")
    assert not [*tmp_path.iterdir()]


def test_ranges_that_touch_are_merged() -> None:
    """And those that are at most the gap apart."""
    assert merge_ranges([(8, 9), (0, 4), (4, 6)]) == [(0, 6), (8, 9)]
    assert merge_ranges([(8, 9), (0, 4), (4, 6)], gap=2) == [(0, 9)]
    assert merge_ranges([(0, 10), (2, 3)]) == [(0, 10)]


def test_lengths_are_rounded_up_to_whole_units() -> None:
    """Multiples stay what they are."""
    assert [round_up(length, PAGE) for length in (0, 1, 4096, 4097)] == [0, 4096, 4096, 8192]
    assert round_up(2**60 + 1, 16) == 2**60 + 16


def test_the_page_of_the_formats_does_not_depend_on_the_machine() -> None:
    """A region that was made on one machine opens on another."""
    assert PAGE == 4096


def test_with_larger_system_pages_msync_gets_whole_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """msync(2) refuses an address that is not a multiple of the machine's page size."""
    monkeypatch.setattr(plinius.pm.block_writer, "SYSTEM_PAGE", 1 << 16)
    path = tmp_path / "m"
    path.write_bytes(bytes(100 * PAGE))  # no multiple of the larger page
    medium = FileMedium(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    base = int(ffi.cast("uintptr_t", medium._address))
    synced: list[tuple[int, int]] = []

    class Recording:
        def pl_msync(self, at: object, length: int) -> int:
            start = int(ffi.cast("uintptr_t", at)) - base
            synced.append((start, start + length))
            return int(lib.pl_msync(at, length))

        def __getattr__(self, name: str) -> object:
            return getattr(lib, name)

    monkeypatch.setattr(plinius.pm.file, "lib", Recording())
    for page in (1, 50, 99):
        medium.store(page * PAGE, b"stored")
        medium.flush(page * PAGE, 6)
        medium.fence()
        list_operations(medium).flush_lines(0, 100 * PAGE, np.array([page * 64]))
        medium.fence()
    assert [start % (1 << 16) for start, _ in synced] == [0] * 6
    assert all(end <= medium.size for _, end in synced)
    raw = path.read_bytes()
    assert all(raw[page * PAGE :][:6] == b"stored" for page in (1, 50, 99))
    medium.close()
