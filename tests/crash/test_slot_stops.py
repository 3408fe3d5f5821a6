"""A stop at every operation of commits: with unchanged chunks, growing slots, errors before."""

from collections.abc import Callable

import pytest

import plinius.slots.chunks
from crash.mirrors import KEY, digest_in, empty_region, mirrored, newest, opened, state
from crash.regions import owned_once
from crash.stops import BOTH, cut_everywhere, kill_everywhere
from plinius.errors import StateError, StorageError
from plinius.pm.medium import PAGE, Granularity
from plinius.pm.region import Region
from plinius.slots import Slots
from plinius.slots.layout import EXTENT
from plinius.snapshot import Snapshot
from plinius.testing import PlainMedium, SimulatedMedium

each_granularity = pytest.mark.parametrize("granularity", BOTH, ids=lambda one: one.value)
LARGER = 3 * PAGE


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 256 bytes, so that a small tensor has several; smaller tensors share one."""
    monkeypatch.setattr(plinius.slots.chunks, "CHUNK_BYTES", 256)
    monkeypatch.setattr(plinius.slots.chunks, "SMALL_BYTES", 64)


def goes_on(image: bytes) -> None:
    """The run can continue from an image, and every byte of the heap has one owner."""
    medium = PlainMedium(image)
    slots, _ = opened(medium)
    slots.write(state(7))
    slots.write(state(8, larger=2 * LARGER))
    assert digest_in(bytes(medium.bytes)) == state(8, larger=2 * LARGER).digest()
    owned_once(medium.bytes)


def with_frozen(commits: int) -> tuple[PlainMedium, Slots]:
    medium = PlainMedium(empty_region())
    slots = Slots.create(Region(medium, "r"), KEY)
    for iteration in range(commits):
        slots.write(state(iteration, frozen=True))
    return medium, slots


def test_unchanged_chunks_are_not_sealed_again_and_open() -> None:
    """After two commits both slots have them; from then on only the others are written."""
    medium, slots = with_frozen(0)
    written = [slots.write(state(i, frozen=True)) for i in range(5)]
    assert written[0] > written[2] > 0
    assert written[0] - written[2] > 600
    assert {w - written[2] for w in written[2:]} <= set(range(-8, 9))  # numbers in the manifest
    assert digest_in(bytes(medium.bytes)) == state(4, frozen=True).digest()


def test_unchanged_chunks_are_sealed_again_by_another_process() -> None:
    """Only the process that sealed a chunk into a slot relies on it."""
    medium, first = with_frozen(5)
    full = first.write(state(5, frozen=True)), opened(medium)[0].write(state(6, frozen=True))
    assert full[1] - full[0] > 600


@each_granularity
@pytest.mark.parametrize("commits", [1, 2, 3, 4])
def test_a_stop_anywhere_in_a_commit_that_skips_leaves_one_of_two(
    commits: int, granularity: Granularity
) -> None:
    """The chunk that was skipped is opened under the commit that sealed it."""
    medium = SimulatedMedium(image=empty_region(), granularity=granularity)
    slots = Slots.create(Region(medium, "r"), KEY)
    for iteration in range(commits):
        slots.write(state(iteration, frozen=True))
    before = state(commits - 1, frozen=True).digest()
    after = state(commits, frozen=True).digest()
    seen = set()

    def check(image: bytes, ended: bool) -> None:
        found = digest_in(image)
        assert found == after if ended else found in (before, after)
        seen.add(found)
        goes_on(image)

    new = state(commits, frozen=True)
    cut_everywhere(medium, lambda _: slots.write(new), check, samples=3, limit=64)
    assert seen == {before, after}


@each_granularity
@pytest.mark.parametrize("commits", [0, 1, 2, 3])
def test_a_stop_anywhere_in_growing_leaves_the_old_slots_or_the_new(
    commits: int, granularity: Granularity
) -> None:
    """One transaction replaces the slots by larger ones, with the commit in them."""
    medium = SimulatedMedium(image=mirrored(commits), granularity=granularity)
    slots, _ = opened(medium)
    before = state(commits - 1).digest() if commits else None
    grown = state(commits, larger=LARGER)
    seen = set()

    def check(image: bytes, ended: bool) -> None:
        found = digest_in(image)
        assert found == grown.digest() if ended else found in (before, grown.digest())
        if found not in seen:
            goes_on(image)
        seen.add(found)

    cut_everywhere(medium, lambda _: slots.write(grown), check, samples=4, limit=256)
    assert seen == {before, grown.digest()}
    slots.write(state(commits + 1, larger=LARGER))
    assert digest_in(bytes(medium.read(0, medium.size))) == (
        state(commits + 1, larger=LARGER).digest()
    )


@each_granularity
def test_slots_that_grow_for_their_manifest_hold_nothing_yet(granularity: Granularity) -> None:
    """The chunks are the same, but the new slots have none of them; also after an error."""
    number = 0
    while True:
        medium = SimulatedMedium(image=empty_region(), granularity=granularity)
        slots = Slots.create(Region(medium, "r"), KEY)
        for iteration in range(3):
            slots.write(state(iteration, frozen=True))
        medium.watch = refuse_at(medium, number)
        try:
            slots.write(state(3, frozen=True, told=30_000))
            ended = True
        except StorageError:
            ended = False
        medium.watch = None
        for iteration in (4, 5, 6):
            slots.write(state(iteration, frozen=True, told=30_000))
            assert digest_in(bytes(medium.read(0, medium.size))) == (
                state(iteration, frozen=True, told=30_000).digest()
            )
        if ended:
            break
        number += 1
    assert number > 8


@each_granularity
def test_what_a_failed_write_touched_is_sealed_again(granularity: Granularity) -> None:
    """A tensor that is as two commits ago, after a failed write that had stored another value."""
    number = 0
    while True:
        medium = SimulatedMedium(image=empty_region(), granularity=granularity)
        slots = Slots.create(Region(medium, "r"), KEY)
        for iteration in range(3):
            slots.write(state(iteration, frozen=True))
        medium.watch = refuse_at(medium, number)
        try:
            slots.write(state(3, frozen=True, of=0x55))
            ended = True
        except StorageError:
            ended = False
        medium.watch = None
        slots.write(state(4, frozen=True))
        assert digest_in(bytes(medium.read(0, medium.size))) == state(4, frozen=True).digest()
        if ended:
            break
        number += 1
    assert number > 8


@each_granularity
@pytest.mark.parametrize("commits", [1, 2])
def test_a_kill_while_growing_then_a_restart_then_a_power_cut_loses_nothing(
    commits: int, granularity: Granularity
) -> None:
    """What the next process saw stays, whether in the old slots or in the new."""
    grown = state(commits, larger=LARGER)

    def grow(medium: SimulatedMedium) -> None:
        opened(medium)[0].write(grown)

    def then(killed: SimulatedMedium) -> None:
        _, shown = opened(killed.after_kill())
        assert shown is not None
        seen, after = shown.digest(), state(9).digest()
        ready: list[bool] = []

        def go_on(medium: SimulatedMedium) -> None:
            slots, _ = opened(medium)
            ready.append(True)
            slots.write(state(9))

        def check(image: bytes, ended: bool) -> None:
            if ready:
                assert digest_in(image) in ((after,) if ended else (seen, after))

        cut_everywhere(killed, go_on, check, limit=64, samples=1)

    assert kill_everywhere(mirrored(commits), grow, then, granularity) > 10


@each_granularity
def test_the_space_of_outgrown_slots_is_used_again(granularity: Granularity) -> None:
    """A region whose slots grow many times is at most a few times as large as the state."""
    medium = SimulatedMedium(image=mirrored(2), granularity=granularity)
    region, dirty = Region(medium, "r"), b"\xff" * 60 * PAGE  # free space is not zero
    region.add_extent("past", len(dirty), lambda m, at: m.write(at, dirty))
    region.drop_extent("past")
    slots, _ = opened(medium)
    for iteration in range(2, 30):
        slots.write(state(iteration, larger=iteration * 1000))
        assert digest_in(bytes(medium.read(0, medium.size))) == (
            state(iteration, larger=iteration * 1000).digest()
        )
    span = Region(medium, "r").extent(EXTENT)
    assert span is not None
    assert medium.size < 4 * span.length + len(dirty)


def test_the_commit_before_growing_is_gone_and_the_next_one_is_kept() -> None:
    """Going back one commit ends where the slots grew."""
    medium = PlainMedium(mirrored(3))
    slots, _ = opened(medium)
    slots.write(state(3, larger=LARGER))
    assert slots.before_newest() is None
    slots.write(state(4, larger=LARGER))
    assert slots.before_newest() is not None
    again, _ = opened(medium)
    before = again.before_newest()
    assert before is not None
    assert before.iteration == 3


def refuse_at(medium: SimulatedMedium, number: int) -> Callable[[str], None]:
    """The operation of that number fails, and so does every one after it."""
    start = len(medium.operations)

    def watch(_: str) -> None:
        if len(medium.operations) - start >= number:
            raise StorageError("The disk refused a write: Input/output error", "Check the disk")

    return watch


def failed_write(
    granularity: Granularity, commits: int, new: Snapshot, number: int
) -> tuple[SimulatedMedium, Slots, bool]:
    """A write whose operation `number` fails, and whether it ended before that operation."""
    medium = SimulatedMedium(image=mirrored(commits), granularity=granularity)
    slots, _ = opened(medium)
    medium.watch = refuse_at(medium, number)
    try:
        slots.write(new)
    except StorageError:
        return medium, slots, False
    finally:
        medium.watch = None
    return medium, slots, True


@each_granularity
@pytest.mark.parametrize(("commits", "larger"), [(0, 0), (2, 0), (2, LARGER)])
def test_after_a_failure_anywhere_the_next_write_commits(
    commits: int, larger: int, granularity: Granularity
) -> None:
    """For every operation that fails; a stop in the second write leaves one of the three states."""
    new, next_one = state(commits, larger=larger), state(commits + 1, larger=larger)
    known = {state(commits - 1).digest() if commits else None, new.digest(), next_one.digest()}
    number = 0
    while True:
        medium, slots, ended = failed_write(granularity, commits, new, number)
        if ended:
            break

        def check(image: bytes, ended: bool) -> None:
            found = digest_in(image)
            assert found == next_one.digest() if ended else found in known

        cut_everywhere(
            medium, lambda _, slots=slots: slots.write(next_one), check, samples=1, limit=16
        )
        number += 1
    assert number > 8


def test_a_discarded_commit_leaves_the_one_before_and_the_next_one_counts() -> None:
    """It is discarded after everything was sealed, in the same slots and in larger ones."""
    for larger in (0, LARGER):
        medium = SimulatedMedium(image=mirrored(3))
        slots, _ = opened(medium)
        new, stored = state(3, larger=larger), []
        medium.stored_bytes = 0

        def must_discard(medium: SimulatedMedium = medium, stored: list[int] = stored) -> bool:
            stored.append(medium.stored_bytes)
            return True

        assert slots.write(new, must_discard) == 0
        assert stored[0] > sum(tensor.nbytes for tensor in new.tensors)  # asked when all is sealed
        assert slots.commits == 3
        assert digest_in(bytes(medium.read(0, medium.size))) == state(2).digest()
        slots.write(state(4, larger=larger))
        assert digest_in(bytes(medium.read(0, medium.size))) == state(4, larger=larger).digest()


def test_the_newest_commit_is_read_before_the_first_write() -> None:
    """Commits that were not opened are not overwritten."""
    slots = Slots.open(Region(PlainMedium(mirrored(2)), "r"), KEY)
    assert slots is not None
    with pytest.raises(StateError, match="Call mirror_in before mirror_out"):
        slots.write(state(2))
    newest(slots)
    slots.write(state(2))
