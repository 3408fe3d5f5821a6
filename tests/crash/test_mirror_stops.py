"""A stop at every store, flush and fence of making a mirror and of its commits."""

import pytest

import plinius.slots.chunks
from crash.mirrors import (
    KEY,
    digest_in,
    empty_region,
    mirrored,
    newest,
    opened,
    state,
    with_empty_slots,
)
from crash.regions import owned_once
from crash.stops import BOTH, cut_everywhere, cut_image_everywhere, kill_everywhere
from plinius.pm.medium import PAGE, Granularity
from plinius.pm.region import Region
from plinius.slots import Slots
from plinius.slots.layout import EXTENT
from plinius.snapshot import Snapshot
from plinius.testing import PlainMedium, SimulatedMedium

each_granularity = pytest.mark.parametrize("granularity", BOTH, ids=lambda one: one.value)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 256 bytes, so that a small tensor has several; smaller tensors share one."""
    monkeypatch.setattr(plinius.slots.chunks, "CHUNK_BYTES", 256)
    monkeypatch.setattr(plinius.slots.chunks, "SMALL_BYTES", 64)


@each_granularity
@pytest.mark.parametrize("commits", [0, 1, 2, 5])
def test_a_stop_anywhere_in_a_commit_leaves_the_commit_before_or_this_one(
    commits: int, granularity: Granularity
) -> None:
    """The newest committed state always opens, and is one of two; the run can continue from it."""
    before = None if commits == 0 else state(commits - 1).digest()
    after = state(commits).digest()
    seen = set()
    medium = SimulatedMedium(image=mirrored(commits), granularity=granularity)
    mirror, _ = opened(medium)

    def check(image: bytes, ended: bool) -> None:
        found = digest_in(image)
        assert found == after if ended else found in (before, after)
        seen.add(found)
        again = PlainMedium(image)
        opened(again)[0].write(state(7))
        assert digest_in(bytes(again.bytes)) == state(7).digest()

    tally = cut_everywhere(medium, lambda _: mirror.write(state(commits)), check, samples=6)
    assert seen == {before, after}
    assert tally.all_at_fence[-2:] == [True, True]  # the commit word: all of its images


@each_granularity
def test_a_stop_anywhere_in_a_first_commit_into_slots_that_are_there(
    granularity: Granularity,
) -> None:
    """Releases before made empty slots first: such a region takes its first commit as well."""
    medium = SimulatedMedium(image=with_empty_slots(), granularity=granularity)
    mirror, found = opened(medium)
    assert found is None
    seen = set()

    def check(image: bytes, ended: bool) -> None:
        found = digest_in(image)
        assert found == state(0).digest() if ended else found in (None, state(0).digest())
        seen.add(found)

    cut_everywhere(medium, lambda _: mirror.write(state(0)), check, samples=6)
    assert seen == {None, state(0).digest()}
    assert len(medium.images(0, 0)[0]) == len(with_empty_slots())


@each_granularity
def test_a_stop_anywhere_in_a_commit_that_seals_no_tensor_leaves_one_of_two(
    granularity: Granularity,
) -> None:
    """No thread drains then, so only the first fence is before the commit word."""
    states = [Snapshot(iteration, (), {"n": iteration}, {}, {}) for iteration in range(4)]
    medium = SimulatedMedium(image=empty_region(), granularity=granularity)
    slots = Slots.create(Region(medium, "r"), KEY)
    for one in states[:3]:
        slots.write(one)
    before, after = states[2].digest(), states[3].digest()
    seen = set()

    def check(image: bytes, ended: bool) -> None:
        found = digest_in(image)
        assert found == after if ended else found in (before, after)
        seen.add(found)

    medium.operations.clear()
    cut_everywhere(medium, lambda _: slots.write(states[3]), check, samples=6)
    assert "drain" not in medium.operations
    assert seen == {before, after}


@each_granularity
def test_a_commit_of_a_grown_state_that_still_fits_is_as_safe(granularity: Granularity) -> None:
    """What an older, smaller commit left in the slot has no effect."""
    medium = SimulatedMedium(image=mirrored(3), granularity=granularity)
    mirror, _ = opened(medium)
    wanted = {state(2).digest(), state(3, larger=1000).digest()}

    def check(image: bytes, ended: bool) -> None:
        assert digest_in(image) in wanted

    cut_everywhere(medium, lambda _: mirror.write(state(3, larger=1000)), check, samples=6)


@each_granularity
def test_a_power_cut_after_going_back_one_commit_is_not_refused(granularity: Granularity) -> None:
    """Once the commit before is accepted, the one that did not open does not count any more."""
    image = bytearray(mirrored(3))
    span = Region(PlainMedium(bytes(image)), "r").extent(EXTENT)
    assert span is not None
    slot = span.offset + PAGE + (span.length - PAGE) // 2  # commit 3 lies in slot 1
    image[slot + (span.length - PAGE) // 2 - PAGE] ^= 1  # in its last chunk
    medium = SimulatedMedium(image=image, granularity=granularity)
    mirror = Slots.open(Region(medium, "r"), KEY)
    assert mirror is not None
    newest(mirror, accept_previous=True)
    before, after = state(1).digest(), state(9).digest()

    def check(image: bytes, ended: bool) -> None:
        found = digest_in(image)
        assert found == after if ended else found in (before, after)

    cut_everywhere(medium, lambda _: mirror.write(state(9)), check, samples=6)


@each_granularity
@pytest.mark.parametrize("commits", [0, 1, 4])
def test_a_kill_then_a_restart_then_a_power_cut_loses_nothing_that_was_seen(
    commits: int, granularity: Granularity
) -> None:
    """A commit word that is visible but not durable must not cost the commit before it too."""

    def commit(medium: SimulatedMedium) -> None:
        opened(medium)[0].write(state(commits))

    def then(killed: SimulatedMedium) -> None:
        _, shown = opened(killed.after_kill())
        seen = shown and shown.digest()
        after = state(9).digest()
        ready: list[bool] = []

        def go_on(medium: SimulatedMedium) -> None:
            mirror, _ = opened(medium)
            ready.append(True)
            mirror.write(state(9))

        def check(image: bytes, ended: bool) -> None:
            if ready:
                assert digest_in(image) in ((after,) if ended else (seen, after))

        cut_everywhere(killed, go_on, check, limit=64)

    assert kill_everywhere(mirrored(commits), commit, then, granularity) > 10


@each_granularity
def test_a_stop_anywhere_in_the_first_commit_leaves_no_mirror_or_all_of_it(
    granularity: Granularity,
) -> None:
    """The slots are named when the commit in them is durable, whatever was in their place."""
    medium = SimulatedMedium(image=empty_region(), granularity=granularity)
    region = Region(medium, "r")
    dirty = b"\xff" * len(mirrored(1))  # an extent before it, dropped: free space is not zero
    region.add_extent("past", len(dirty), lambda m, at: m.write(at, dirty))
    region.drop_extent("past")
    medium.fence()
    seen = set()

    def check(image: bytes, ended: bool) -> None:
        again = PlainMedium(image)
        mirror = Slots.open(Region(again, "r"), KEY)
        owned_once(again.bytes)
        assert mirror is None or mirror.commits == 1
        assert digest_in(image) == (state(0).digest() if mirror else None)
        assert mirror is not None or not ended
        seen.add(mirror is None)

    slots = Slots.create(region, KEY)
    cut_everywhere(medium, lambda _: slots.write(state(0)), check, samples=12)
    assert seen == {True, False}


@each_granularity
def test_from_nothing_to_the_second_commit_each_stop_leaves_what_was_committed(
    granularity: Granularity,
) -> None:
    """A new mirror and two commits, with no fence in between but theirs."""
    allowed = [None, state(0).digest(), state(1).digest()]

    def begin(medium: SimulatedMedium) -> None:
        mirror = Slots.create(Region(medium, "r"), KEY)
        mirror.write(state(0))
        mirror.write(state(1))

    def check(image: bytes, ended: bool) -> None:
        mirror = Slots.open(Region(PlainMedium(image), "r"), KEY)
        found = digest_in(image) if mirror else None
        assert found == allowed[2] if ended else found in allowed

    cut_image_everywhere(empty_region(), begin, check, granularity)
