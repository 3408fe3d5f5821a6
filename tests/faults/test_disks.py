"""Real disks that fail: full, without a place to write, dead, read-only. No commit is lost.

Each fault ends in one sentence and exit code 1, and once it is gone the same command resumes.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from cli.world import ITERATIONS, Result, World, call, digest_of
from faults.disks import Disk, ext4, full
from plinius.errors import RegionFullError, StorageError
from plinius.key_file import load_key
from plinius.mirror import Mirror
from plinius.pm.region import Region
from plinius.slots import newest_snapshot
from plinius.snapshot import Snapshot
from plinius.training.trainer import Run, Settings

NO_ROOM = "Free some space, or put the region elsewhere (--region).\n"
REFUSED = "Check the disk and its space; the last committed state is kept.\n"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Trainers in the test's process leave its torch as it was."""
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(strict)


@pytest.fixture(scope="module")
def digests(world: World, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The digest after each iteration of a run that nothing disturbs."""
    region, found = tmp_path_factory.mktemp("undisturbed") / "run.region", []
    with opened(world, region) as run:
        found.append(run.mirror.digest(run.iteration))
        run.train(ITERATIONS, 1, lambda _: found.append(run.mirror.digest(run.iteration)))
    return found


def opened(world: World, region: Path) -> Run:
    """The run of the small world in a region, as the Python API opens it."""
    return Run(region, load_key(world.key), Settings(world.cfg, world.data, threads=1))


def newest(world: World, region: Path) -> Snapshot:
    """What is mirrored in a region."""
    return newest_snapshot(region, load_key(world.key))


def goes_on(world: World, region: Path, digests: list[str]) -> None:
    """The same command ends as a run that nothing disturbed."""
    assert call("region", "verify", region, "--key", world.key).code == 0
    told = call(*world.train(region, "--json"))
    assert told.json["iteration"] == ITERATIONS
    assert digest_of(region, world.key) == digests[-1]


def at_commit(
    monkeypatch: pytest.MonkeyPatch, iteration: int, happens: Callable[[], object]
) -> None:
    """Something happens just before the commit of an iteration."""
    mirror_out = Mirror.mirror_out

    def watched(mirror: Mirror, number: int) -> int:
        if number == iteration:
            happens()
        return mirror_out(mirror, number)

    monkeypatch.setattr(Mirror, "mirror_out", watched)


def test_a_full_ext4_refuses_a_region_then_its_growth(world: World, digests: list[str]) -> None:
    """No room for a region leaves none; none for its dataset leaves the region as it was."""
    with ext4() as disk:
        region = disk.folder / "run.region"
        with full(disk.folder):
            told = call(*world.train(region))
            assert told == Result(
                1, "", f"plinius: The disk has no room for a region of 135,168 bytes. {NO_ROOM}"
            )
            assert {path.name for path in disk.folder.iterdir()} == {"lost+found", "filler"}
        with full(disk.folder, free=150_000):
            told = call(*world.train(region))
            assert (told.code, told.stdout) == (1, "")
            assert told.stderr.startswith("plinius: The disk has no room for a region of ")
            assert told.stderr.endswith(NO_ROOM)
            assert call("region", "verify", region).code == 0
            assert region.stat().st_size == 135_168
        goes_on(world, region, digests)


def test_growth_that_finds_no_room_costs_nothing(tmp_path: Path) -> None:
    """Extents stay, the file keeps its size; it grows in the same process once there is room."""
    with ext4() as disk:
        path = disk.folder / "r"
        with Region.create(path, 0) as region:
            with full(disk.folder, free=1 << 20):
                with pytest.raises(RegionFullError, match="The disk has no room for a region of"):
                    for number in range(32):
                        add(region, number)
                there = sorted(region.heap.extents())
                assert 1 < len(there) < 31
                assert path.stat().st_size == region.medium.size == region.heap.region_bytes
                region.consistency_check()
            add(region, len(there))
        disk.again()
        with Region.open(path) as region:
            assert len(region.heap.extents()) == len(there) + 1
            for number in range(len(there) + 1):
                span = region.extent(f"e{number:02}")
                assert span is not None
                assert bytes(region.medium.read(span.offset, span.length)) == data_of(number)


def add(region: Region, number: int) -> None:
    """One more extent of 200 kB."""
    data = data_of(number)
    region.add_extent(f"e{number:02}", len(data), lambda m, at: m.write(at, data))


def data_of(number: int) -> bytes:
    """What it holds."""
    return bytes([number + 1]) * 200_000


def test_a_write_back_without_room_loses_nothing(world: World, digests: list[str]) -> None:
    """msync fails for real: the file has its blocks, but what lies under the disk is full.

    The fault is met while the dataset is loaded: a loop device reports no error for a write of
    which the first page had its place already, as it has in the slots of a mirror.
    """
    with ext4() as disk:
        region = disk.folder / "run.region"
        Region.create(region, 1 << 20).close()
        with full(disk.backing):
            for _ in range(2):  # the kernel tells an error once; it must not be forgotten
                told = call(*world.train(region))
                assert told in [  # the second time, of what the first one left behind
                    Result(1, "", f"plinius: The disk refused a write: {reason}. {REFUSED}")
                    for reason in ("No space left on device", "Input/output error")
                ]
                info = call("region", "info", region, "--json").json
                assert info["extents"] == {}
        goes_on(world, region, digests)


@pytest.mark.parametrize(
    ("fault", "options", "reason"),
    [
        (Disk.die, "has_journal", "Input/output error"),
        (Disk.die, "^has_journal", "Input/output error"),
        (Disk.abort, "has_journal", "Read-only file system"),
    ],
    ids=["dead", "dead, no journal", "read-only"],
)
def test_a_disk_that_fails_during_a_run_keeps_every_reported_commit(
    fault: Callable[[Disk], None], options: str, reason: str,
    world: World, digests: list[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The command ends with the refusal; mounted again, the disk holds the last reported commit."""
    with ext4(blocks=40, megabytes=32, options=options) as disk:
        region = disk.folder / "run.region"
        with monkeypatch.context() as patched:
            at_commit(patched, 6, lambda: fault(disk))
            told = call(*world.train(region))
        assert (told.code, told.stdout) == (1, "")
        assert told.stderr.splitlines()[-1] + "\n" == (
            f"plinius: The disk refused a write: {reason}. {REFUSED}"
        )
        disk.again()
        assert newest(world, region).iteration == 5
        assert newest(world, region).digest() == digests[5]
        goes_on(world, region, digests)


def test_the_api_raises_the_same_refusal(world: World, digests: list[str]) -> None:
    """Run.train raises StorageError where the disk dies, and the region closes."""
    with ext4() as disk:
        region = disk.folder / "run.region"

        def tell(told: object) -> None:
            if told.iteration == 4:  # type: ignore[attr-defined]
                disk.die()

        with pytest.raises(StorageError, match="The disk refused a write: Input/output error"):
            with opened(world, region) as run:
                run.train(ITERATIONS, 1, tell)
        disk.again()
        assert newest(world, region).digest() == digests[4]
        with opened(world, region) as run:
            run.train(ITERATIONS, 1, lambda _: None)
            assert run.mirror.digest(run.iteration) == digests[-1]


def test_a_disk_made_read_only_between_runs(world: World, digests: list[str]) -> None:
    """It is refused with a sentence, can be read, and is trained in once it is writable."""
    with ext4() as disk:
        region = disk.folder / "run.region"
        assert call(*world.train(region, "--iterations", 3)).code == 0
        assert disk.remount("ro")
        assert call(*world.train(region)) == Result(
            1,
            "",
            f"plinius: Cannot use {region} as a region: Read-only file system. "
            "Name a file in a folder that you can write to (--region).\n",
        )
        assert digest_of(region, world.key) == digests[3]
        assert disk.remount("rw")
        goes_on(world, region, digests)


def test_a_disk_in_use_is_not_made_read_only(world: World, digests: list[str]) -> None:
    """The kernel refuses to remount it under a run, which continues unharmed."""
    with ext4() as disk:
        region = disk.folder / "run.region"
        with opened(world, region) as run:
            run.train(3, 1, lambda _: None)
            assert not disk.remount("ro")
            run.train(ITERATIONS, 1, lambda _: None)
        assert digest_of(region, world.key) == digests[-1]


def test_no_disk_is_left_mounted() -> None:
    """These tests clean up after themselves."""
    with ext4() as disk:
        assert str(disk.folder) in Path("/proc/mounts").read_text()
    assert str(disk.folder) not in Path("/proc/mounts").read_text()
    assert not os.path.exists(disk.folder)
