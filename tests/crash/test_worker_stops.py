"""A stop at every operation of commits whose sealing several threads share.

The threads are not ordered, so the order of operations differs from run to run; the images of a
stop are those of the order in this run.
"""

import os
import threading

import pytest

import plinius.slots.chunks
import plinius.slots.workers
from crash.mirrors import KEY, digest_in, empty_region, state
from crash.stops import BOTH, cut_everywhere
from crash.test_slot_stops import LARGER, refuse_at
from plinius.errors import StorageError
from plinius.pm import cacheline
from plinius.pm.medium import PAGE, Granularity
from plinius.pm.open_medium import open_medium
from plinius.pm.region import Region
from plinius.slots import Slots
from plinius.testing import SimulatedMedium

each_granularity = pytest.mark.parametrize("granularity", BOTH, ids=lambda one: one.value)
each_number = pytest.mark.parametrize("threads", [2, 3])


@pytest.fixture(autouse=True)
def small_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even of a small state each thread gets a share."""
    monkeypatch.setattr(plinius.slots.chunks, "CHUNK_BYTES", 256)
    monkeypatch.setattr(plinius.slots.chunks, "SMALL_BYTES", 64)
    monkeypatch.setattr(plinius.slots.workers, "_SHARE_BYTES", PAGE)


def shared(
    threads: int, commits: int, granularity: Granularity = Granularity.CACHE_LINE
) -> tuple[SimulatedMedium, Slots]:
    """Slots with a number of threads, after a number of commits."""
    medium = SimulatedMedium(image=empty_region(), granularity=granularity)
    slots = Slots.create(Region(medium, "r"), KEY, threads)
    for iteration in range(commits):
        slots.write(state(iteration))
    return medium, slots


@each_granularity
@each_number
@pytest.mark.parametrize(("commits", "larger"), [(1, 0), (2, 0), (3, 0), (2, LARGER)])
def test_a_stop_anywhere_in_a_commit_of_several_threads_leaves_one_of_two(
    commits: int, larger: int, threads: int, granularity: Granularity
) -> None:
    """What a worker wrote is durable before the commit word can be, also in larger slots."""
    medium, slots = shared(threads, commits, granularity)
    before, new = state(commits - 1).digest(), state(commits, larger=larger)
    seen = set()

    def check(image: bytes, ended: bool) -> None:
        found = digest_in(image)
        assert found == new.digest() if ended else found in (before, new.digest())
        seen.add(found)

    cut_everywhere(medium, lambda _: slots.write(new), check, samples=3, limit=64)
    assert seen == {before, new.digest()}
    slots.close()


@each_granularity
@each_number
def test_after_a_failure_in_any_thread_the_next_write_commits(
    threads: int, granularity: Granularity
) -> None:
    """What another thread of the failed write still had in its buffers changes nothing."""
    known = {state(i).digest() for i in (1, 2, 3)}
    number, ended = 0, False
    while not ended:
        medium, slots = shared(threads, 2, granularity)
        medium.watch = refuse_at(medium, number)
        try:
            slots.write(state(2))
            ended = True
        except StorageError:
            number += 1
        medium.watch = None

        def check(image: bytes, ended: bool) -> None:
            found = digest_in(image)
            assert found == state(3).digest() if ended else found in known

        cut_everywhere(
            medium, lambda _, slots=slots: slots.write(state(3)), check, samples=1, limit=16
        )
        slots.close()
    assert number > 8


@each_number
def test_each_thread_that_seals_drains_once_and_the_commit_fences_twice(threads: int) -> None:
    """However many blocks it wrote; a drain is not one of the two fences."""
    medium, slots = shared(threads, 2)
    medium.operations.clear()
    slots.write(state(2))
    assert medium.operations.count("drain") == threads
    assert medium.operations.count("fence") == 2
    slots.close()


class Calls:
    """The native library, with a record of which thread wrote or fenced."""

    def __init__(self) -> None:
        self.made: dict[int, list[str]] = {}
        self._true = cacheline.lib

    def __getattr__(self, name: str) -> object:
        if name in ("pl_copy", "pl_flush", "pl_fence"):
            self.made.setdefault(threading.get_ident(), []).append(name)
        return getattr(self._true, name)


@each_number
def test_in_mapped_memory_each_worker_that_wrote_ends_with_the_fence_instruction(
    threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that commits does not do it for them, and what was written is complete."""
    fd = os.open("/dev/shm", os.O_RDWR | os.O_TMPFILE)
    os.write(fd, empty_region())
    medium = open_medium(fd)
    assert medium.granularity is not Granularity.PAGE
    slots = Slots.create(Region(medium, "r"), KEY, threads)
    calls = Calls()
    with monkeypatch.context() as patched:
        patched.setattr(cacheline, "lib", calls)
        for iteration in (0, 1, 2):
            slots.write(state(iteration))
    assert digest_in(bytes(medium.read(0, medium.size))) == state(2).digest()
    slots.close()
    medium.close()
    del calls.made[threading.get_ident()]  # it fences in any case
    assert calls.made
    assert all("pl_copy" in names and names[-1] == "pl_fence" for names in calls.made.values())
