"""Faults of a write-back, an interrupt, and a file cut short: no reported commit is lost.

The disks that fail for real are in test_disks.py; here a failure is put where it is wanted.
"""

import errno
import itertools
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import plinius.pm.block_writer as blocks_module
import plinius.pm.file as file_module
from cli.world import CFG, PLINIUS, World, call, digest_of, memory_folder
from crash.mirrors import newest
from plinius.errors import RegionError, StorageError
from plinius.keys import OwnerKey
from plinius.pm.file import FileMedium
from plinius.pm.medium import Granularity
from plinius.pm.region import Region
from plinius.pm.romulus import TwinState
from plinius.slots import Slots, newest_snapshot
from plinius.snapshot import Snapshot, TensorBytes

KEY = OwnerKey(bytes(range(32)))
RESTORE = "Restore a whole copy of it, then run the same command again."
CUT_SHORT = f"plinius: A mapped file was cut short under this process, or its disk fails. {RESTORE}"
NOT_WRITTEN = f"plinius: The region's file was cut short under this process. {RESTORE}"
LONG = 100_000


def state(iteration: int) -> Snapshot:
    """A small run state."""
    data = memoryview(bytes([iteration + 1]) * 9000)
    return Snapshot(iteration, (TensorBytes("w", "uint8", (9000,), data),), {}, {}, {})


@pytest.fixture
def region(tmp_path: Path) -> Path:
    """A region on disk with states 0 and 1 mirrored."""
    path = tmp_path / "r"
    with Region.create(path, 0) as made:
        if made.granularity is not Granularity.PAGE:
            pytest.skip("the tests' folder is not on a disk that msync writes to")
        mirror = Slots.create(made, KEY)
        mirror.write(state(0))
        mirror.write(state(1))
    return path


class Failing:
    """What writes to the disk, of which call number `fail_at` fails as a disk's error makes it."""

    def __init__(self, number: int, fail_at: int) -> None:
        self.lib = file_module.lib  # type: ignore[attr-defined]
        self.calls, self.number, self.fail_at = 0, number, fail_at
        self._fdatasync, self._write_all = os.fdatasync, blocks_module.write_all

    def __getattr__(self, name: str) -> object:
        return getattr(self.lib, name)

    def _fails(self) -> bool:
        self.calls += 1
        return self.calls == self.fail_at

    def pl_msync(self, at: Any, length: int) -> int:
        """Succeed but once. What the failed one should have written is not written later."""
        return self.number if self._fails() else self.lib.pl_msync(at, length)

    def fdatasync(self, fd: int) -> None:
        """The same for what went past the page cache."""
        if self._fails():
            raise OSError(self.number, os.strerror(self.number))
        self._fdatasync(fd)

    def write_all(self, fd: int, data: memoryview, offset: int) -> None:
        """A block that fails half-way."""
        if self._fails():
            self._write_all(fd, data[: len(data) // 8192 * 4096], offset)
            raise OSError(self.number, os.strerror(self.number))
        self._write_all(fd, data, offset)


@contextmanager
def failing(monkeypatch: pytest.MonkeyPatch, number: int, fail_at: int) -> Iterator[Failing]:
    """One write or write-back fails meanwhile."""
    with monkeypatch.context() as patched:
        lib = Failing(number, fail_at)
        patched.setattr(file_module, "lib", lib)
        patched.setattr(os, "fdatasync", lib.fdatasync)
        patched.setattr(blocks_module, "write_all", lib.write_all)
        yield lib


def refused(act: Callable[[], object]) -> str | None:
    """What StorageError says, or None if nothing was refused."""
    try:
        act()
    except StorageError as refusal:
        return str(refusal)
    return None


def commit(region: Path, iteration: int) -> None:
    """Open the mirror of a region and commit a state to it."""
    with Region.open(region) as opened:
        mirror = Slots.open(opened, KEY)
        assert mirror is not None
        newest(mirror)
        mirror.write(state(iteration))


def add(region: Region, data: bytes) -> None:
    """One more extent."""
    region.add_extent("more", len(data), lambda m, at: m.write(at, data))


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_each_write_back_of_a_commit_may_fail(
    number: int, region: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever fails, StorageError is raised, and the last reported commit or this one is left."""
    whole = region.read_bytes()
    for fail_at in itertools.count(1):
        region.write_bytes(whole)
        with failing(monkeypatch, number, fail_at):
            refusal = refused(lambda: commit(region, 2))
        if refusal is None:
            break
        assert refusal == (
            f"The disk refused a write: {os.strerror(number)}. "
            "Check the disk and its space; the last committed state is kept."
        )
        left = newest_snapshot(region, KEY)
        assert left.digest() in (state(1).digest(), state(2).digest())
        commit(region, 3)
        assert newest_snapshot(region, KEY).digest() == state(3).digest()
    assert fail_at > 2
    assert newest_snapshot(region, KEY).digest() == state(2).digest()


def test_each_write_back_of_growth_may_fail(region: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever fails, the next opening finds the extent whole or not at all."""
    whole, data, seen = region.read_bytes(), b"x" * 300_000, set()
    for fail_at in itertools.count(1):
        region.write_bytes(whole)
        with failing(monkeypatch, errno.EIO, fail_at), Region.open(region) as opened:
            refusal = refused(lambda: add(opened, data))
        if refusal is None:
            break
        assert refusal.startswith("The disk refused a write: Input/output error.")
        with Region.open(region) as opened:
            opened.consistency_check()
            assert opened.twins.state() is TwinState.IDLE and opened.twins.equal()
            span = opened.extent("more")
            seen.add(span is None)
            assert span is None or bytes(opened.medium.read(span.offset, span.length)) == data
            if span is None:
                add(opened, data)
        assert newest_snapshot(region, KEY).digest() == state(1).digest()
    assert seen == {True, False}


class Stopped(BaseException):
    """Stands for KeyboardInterrupt, which the tests' own runner would take for itself."""


OPERATIONS = ("write", "store_word", "flush", "drain", "fence")


def stopped_at(monkeypatch: pytest.MonkeyPatch, stop: int, *, after: bool) -> list[str]:
    """Have the medium's operation number `stop` interrupted, before it or after it."""
    seen: list[str] = []

    def watch(name: str, operation: Callable[..., None]) -> Callable[..., None]:
        def watched(*arguments: object) -> None:
            seen.append(name)
            stops = len(seen) == stop
            if stops and not after:
                raise Stopped
            operation(*arguments)
            if stops:
                raise Stopped

        return watched

    for name in OPERATIONS:
        monkeypatch.setattr(FileMedium, name, watch(name, getattr(FileMedium, name)))
    put = blocks_module.RingWriter.put
    monkeypatch.setattr(blocks_module.RingWriter, "put", watch("put", put))
    return seen


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_commit_interrupted_anywhere_does_not_harm_the_next_one(
    after: bool, region: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in a commit, caught, then another commit of the same mirror, which is cut short too:
    what opens is never older than what was last committed, and never refused.
    """
    whole = region.read_bytes()
    first, second = 1, 1
    while True:
        region.write_bytes(whole)
        shown, ended = interrupted_twice(region, monkeypatch, first, second, after)
        left = newest_snapshot(region, KEY).iteration
        assert left >= shown, f"interrupted at {first}, then at {second}"
        if ended == "first":
            break
        first, second = (first + 1, 1) if ended == "second" else (first, second + 1)
    assert first > 5


def interrupted_twice(
    region: Path, monkeypatch: pytest.MonkeyPatch, first: int, second: int, after: bool
) -> tuple[int, str]:
    """The iteration that showed after the first interrupt, and which commit was not interrupted."""
    with Region.open(region) as opened:
        mirror = Slots.open(opened, KEY)
        assert mirror is not None
        newest(mirror)
        shown = 1
        for which, stop in (("first", first), ("second", second)):
            with monkeypatch.context() as patched:
                stopped_at(patched, stop, after=after)
                try:
                    mirror.write(state(2 if which == "first" else 3))
                except Stopped:
                    shown = max(shown, iteration_in(region))
                else:
                    return iteration_in(region), which
    return shown, "neither"


def iteration_in(region: Path) -> int:
    """What another process would open now."""
    copy = region.with_suffix(".copy")
    shutil.copy(region, copy)
    return newest_snapshot(copy, KEY).iteration


@pytest.mark.parametrize(
    ("place", "pages"), [("disk", 33), ("memory", 2)], ids=["disk, extents", "memory, twins"]
)
def test_a_file_cut_short_under_a_run(place: str, pages: int, world: World, tmp_path: Path) -> None:
    """The trainer ends with a refusal; the file is refused, and a whole copy of it resumes."""
    with memory_folder() as memory:
        folder = tmp_path if place == "disk" else memory
        if folder is None:
            pytest.skip("there is no memory file system to write to")
        region, copy = folder / "run.region", tmp_path / "copy"
        (tmp_path / "long.cfg").write_text(CFG.replace("max_batches=24", f"max_batches={LONG}"))
        long = replace(world, cfg=tmp_path / "long.cfg")
        told = call(*long.train(region, "--iterations", 3))
        assert told.code == 0, told.stderr
        shutil.copy(region, copy)
        code, said = cut_short(long, region, pages * 4096, tmp_path / "metrics")
        assert "Traceback" not in said
        assert code == 1
        assert said.splitlines()[-1] in (CUT_SHORT, NOT_WRITTEN)
        refused = call(*long.train(region, "--iterations", 5))
        assert refused.code == 1
        assert "cut short" in refused.stderr
        with pytest.raises(RegionError, match="cut short"):
            Region.open(region)
        shutil.copy(copy, region)
        assert call(*long.train(region, "--iterations", 5)).code == 0
        undisturbed = tmp_path / "undisturbed.region"
        assert call(*long.train(undisturbed, "--iterations", 5)).code == 0
        assert digest_of(region, world.key) == digest_of(undisturbed, world.key)


def cut_short(world: World, region: Path, size: int, metrics: Path) -> tuple[int, str]:
    """Cut a region's file short under a trainer; the trainer's exit code and stderr."""
    command = [str(PLINIUS), *map(str, world.train(region, "--metrics", metrics))]
    trainer = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        while trainer.poll() is None and not (metrics.exists() and metrics.stat().st_size):
            time.sleep(0.01)
        assert trainer.poll() is None, "it ended by itself"
        os.truncate(region, size)
        said = trainer.communicate(timeout=60)[1]
    finally:
        trainer.kill()
        trainer.wait()
    return trainer.returncode, said


def test_a_region_closed_or_refused_is_unlocked_at_once(region: Path) -> None:
    """Though a view of its mapping lives on: the next opening finds no lock."""
    opened = Region.open(region)
    view = opened.medium.read(0, 8)
    opened.close()
    whole = region.read_bytes()
    region.write_bytes(whole[:8192])
    with pytest.raises(RegionError, match="cut short") as kept:
        Region.open(region)
    region.write_bytes(whole)
    Region.open(region).close()
    assert (bytes(view), bool(kept.value)) == (b"PLNSRGN\n", True)
