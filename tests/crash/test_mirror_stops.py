"""A stop at every store, flush and fence of a mirror commit."""

import pytest

import plinius.mirror
from crash.simulated import SimulatedMedium, every_stop
from plinius.keys import OwnerKey
from plinius.mirror import Mirror
from plinius.pm.medium import PAGE
from plinius.pm.region import Region, format_region
from plinius.snapshot import Snapshot, TensorBytes

KEY = OwnerKey(bytes(range(32)))


def state(iteration: int) -> Snapshot:
    tensors = [
        TensorBytes(name, "float32", (size // 4,), memoryview(bytes([iteration + 1]) * size))
        for name, size in (("w", 640), ("v", 640), ("b", 4), ("e", 0))
    ]
    return Snapshot(iteration, tuple(tensors), {"average_loss": 0.5}, {}, {})


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 256 bytes, so that a small tensor has several."""
    monkeypatch.setattr(plinius.mirror, "CHUNK_BYTES", 256)


def mirrored(commits: int) -> bytes:
    medium = SimulatedMedium(PAGE + 2 * 16384)
    format_region(medium, 16384)
    mirror = Mirror.create(Region(medium, "r"), KEY, state(0))
    for iteration in range(commits):
        mirror.mirror_out(state(iteration))
    return medium.images(0, 0)[1]


def opened(medium: SimulatedMedium) -> tuple[Mirror, Snapshot | None]:
    mirror = Mirror.open(Region(medium, "r"), KEY)
    assert mirror is not None
    return mirror, mirror.mirror_in()


@pytest.mark.parametrize("commits", [0, 1, 2, 5])
def test_a_stop_anywhere_in_a_commit_leaves_the_commit_before_or_this_one(commits: int) -> None:
    """The newest committed state always opens, and is one of two."""

    def commit(medium: SimulatedMedium) -> None:
        mirror, _ = opened(medium)
        mirror.mirror_out(state(commits))

    digests = {None if commits == 0 else state(commits - 1).digest(), state(commits).digest()}
    seen = set()
    for stop, image, ended in every_stop(mirrored(commits), commit, samples=6):
        mirror, snapshot = opened(SimulatedMedium(image=image))
        found = snapshot and snapshot.digest()
        assert found in digests, stop
        assert not ended or found == state(commits).digest()
        seen.add(found)
        mirror.mirror_out(state(7))  # and the run can go on from there
        after = opened(SimulatedMedium(image=mirror._medium.images(0, 0)[0]))[1]
        assert after is not None
        assert after.digest() == state(7).digest()
    assert seen == digests


def test_a_commit_takes_two_fences() -> None:
    """One before its word and one after."""
    medium = SimulatedMedium(image=mirrored(3))
    mirror, _ = opened(medium)
    before = len(medium.operations)
    mirror.mirror_out(state(3))
    assert medium.operations[before:].count("fence") == 2


def test_a_stop_anywhere_in_making_a_mirror_leaves_none_or_an_empty_one() -> None:
    """A mirror gets its name when both of its slots are known to be empty."""
    medium = SimulatedMedium(PAGE + 2 * 16384)
    format_region(medium, 16384)
    start = medium.images(0, 0)[1]

    def make(medium: SimulatedMedium) -> None:
        Mirror.create(Region(medium, "r"), KEY, state(0))

    seen = set()
    for _, image, ended in every_stop(start, make):
        mirror = Mirror.open(Region(SimulatedMedium(image=image), "r"), KEY)
        assert mirror is None or (mirror.commits == 0 and mirror.mirror_in() is None)
        assert mirror is not None or not ended
        seen.add(mirror is None)
    assert seen == {True, False}
