"""A file that is exchanged between two steps of a command: what was checked is what is used."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cli.world import World
from plinius.data.sealed_dataset import SealedDataset
from plinius.errors import KeyFileError, RegionBusyError, StorageError
from plinius.key_file import load_key
from plinius.keys import OwnerKey
from plinius.maintenance import rekey
from plinius.pm import region as regions
from plinius.pm.lock import FileLock
from plinius.pm.region import Region


@pytest.mark.parametrize("writable", [True, False])
def test_a_region_that_is_replaced_before_it_is_locked_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writable: bool
) -> None:
    """As rekey replaces it: whatever was mirrored into the old file would be in no file."""
    path, other = tmp_path / "run.region", tmp_path / "other.region"
    for one in (path, other):
        Region.create(one).close()

    def late(fd: int, name: Path, **options: Any) -> FileLock:
        monkeypatch.undo()
        other.replace(path)
        return FileLock(fd, name, **options)

    monkeypatch.setattr(regions, "FileLock", late)
    with pytest.raises(RegionBusyError, match="was replaced while it was opened"):
        Region.open(path, writable=writable)
    Region.open(path, writable=writable).close()


def test_a_region_that_is_removed_before_it_is_locked_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same, without another file."""
    path = tmp_path / "run.region"
    Region.create(path).close()

    def late(fd: int, name: Path, **options: Any) -> FileLock:
        path.unlink()
        return FileLock(fd, name, **options)

    monkeypatch.setattr(regions, "FileLock", late)
    with pytest.raises(RegionBusyError, match="was replaced while it was opened"):
        Region.open(path)


@pytest.mark.parametrize("plant", ["link", "hard link"])
def test_rekey_gives_mode_and_owner_to_its_own_file_only(tmp_path: Path, plant: str) -> None:
    """Who can write to the folder puts a link in the place of the new file: nothing is changed."""
    precious, work, path = tmp_path / "precious", tmp_path / "work", tmp_path / "data.sealed"
    precious.write_bytes(b"precious")
    precious.chmod(0o600)
    path.write_bytes(b"old")
    path.chmod(0o666)
    if plant == "link":
        work.symlink_to(precious)
    else:
        work.hardlink_to(precious)
    with pytest.raises(StorageError, match="Cannot replace"):
        rekey.replace(work, path)
    assert (precious.stat().st_mode & 0o777, path.read_bytes()) == (0o600, b"old")


def test_a_second_rekey_does_not_undo_the_first(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looks at the file only when it is the only one at work."""
    path, old, first = tmp_path / "data.sealed", load_key(world.key), OwnerKey.generate()
    path.write_bytes(world.data.read_bytes())
    alone = rekey.one_at_a_time

    @contextmanager
    def late(name: Path) -> Iterator[None]:
        monkeypatch.undo()
        assert rekey.rekey_dataset(path, old, first, lambda *_: None)
        with alone(name):
            yield

    monkeypatch.setattr(rekey, "one_at_a_time", late)
    with pytest.raises(KeyFileError, match="was sealed with key"):
        rekey.rekey_dataset(path, old, OwnerKey.generate(), lambda *_: None)
    assert SealedDataset.from_file(path, first).header.key_id == first.id
