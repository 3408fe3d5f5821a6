"""On a real DAX mapping; collected anywhere, run only in the guest of `make test-dax`."""

import os
from pathlib import Path

import numpy as np
import pytest

from crash.mirrors import newest
from dax.guest import evolved, mapped_sync, snapshot
from plinius.keys import OwnerKey
from plinius.pm.cacheline import pwb_names
from plinius.pm.medium import Granularity
from plinius.pm.open_medium import open_medium
from plinius.pm.region import Region
from plinius.slots import Slots

pytestmark = pytest.mark.skipif(
    "PLINIUS_DAX" not in os.environ,
    reason="needs a DAX mount: make test-dax boots one",
)
KEY = OwnerKey(bytes(32))


def test_a_region_on_dax_is_mapped_sync_and_stays_so_when_it_grows(tmp_path: Path) -> None:
    """Granularity CACHE_LINE, and the kernel lists the mapping as MAP_SYNC."""
    path = tmp_path / "r"
    with Region.create(path, 0) as region:
        assert region.granularity is Granularity.CACHE_LINE
        assert "power cut" in region.granularity.survives
        assert mapped_sync(path)
        size = region.medium.size
        region.add_extent("grown", 1 << 20, lambda medium, at: medium.write(at, b"g" * (1 << 20)))
        assert region.medium.size > size
        assert region.granularity is Granularity.CACHE_LINE
        assert mapped_sync(path)
    with Region.open(path, writable=False) as region:
        assert region.granularity is Granularity.CACHE_LINE


def test_a_mapping_of_a_memory_file_system_is_not_sync(tmp_path: Path) -> None:
    """The kernel does not list a mapping of a memory file system as MAP_SYNC."""
    path = Path("/dev/shm/plinius-test-dax")
    with Region.create(path, 0) as region:
        assert region.granularity is Granularity.PROCESS
        assert not mapped_sync(path)
    path.unlink()


def test_what_was_fenced_is_found_by_every_way_to_read_the_file(tmp_path: Path) -> None:
    """Through the mapping, by read() and by a second mapping."""
    path = tmp_path / "f"
    path.write_bytes(bytes(1 << 16))
    medium = open_medium(os.open(path, os.O_RDWR))
    medium.write(100, b"streamed" * 900)
    medium.store(40_000, b"stored")
    medium.flush(40_000, 6)
    medium.fence()
    with path.open("rb") as file:
        wanted = file.read()
    assert wanted[100:7300] == b"streamed" * 900
    assert wanted[40_000:40_006] == b"stored"
    second = open_medium(os.open(path, os.O_RDONLY), writable=False)
    assert second.read(0, 1 << 16) == wanted == medium.read(0, 1 << 16)
    second.close()
    medium.close()


@pytest.mark.parametrize("pwb", pwb_names())
def test_mirrored_states_come_back_with_each_write_back_instruction(
    pwb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commit, close, open, commit again: the digest is that of the state that was mirrored."""
    monkeypatch.setenv("PLINIUS_PWB", pwb)
    state = snapshot(0, np.arange(1000, dtype=np.uint64))
    with Region.create(tmp_path / "r", 0) as region:
        Slots.create(region, KEY).write(state)
    for _ in range(4):
        with Region.open(tmp_path / "r") as region:
            assert region.granularity is Granularity.CACHE_LINE
            mirror = Slots.open(region, KEY)
            assert mirror is not None
            found = newest(mirror)
            assert found is not None
            assert found.digest() == state.digest()
            state = evolved(state)
            mirror.write(state)
            region.consistency_check()


@pytest.mark.parametrize("pwb", pwb_names())
def test_transactions_commit_and_roll_back_with_each_write_back_instruction(
    pwb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was committed is there after reopening, what was not is not."""
    monkeypatch.setenv("PLINIUS_PWB", pwb)
    with Region.create(tmp_path / "r", 0) as region:
        with region.twins.transaction():
            block = region.heap.allocate(3000)
            region.twins.store(block, b"k" * 3000)
            region.heap.set_root("kept", block, 3000)
        with pytest.raises(KeyError), region.twins.transaction():
            region.twins.store(block, b"x" * 3000)
            raise KeyError
    with Region.open(tmp_path / "r") as region:
        assert region.twins.read(region.heap.roots()["kept"].offset, 3000) == b"k" * 3000
        region.consistency_check()
