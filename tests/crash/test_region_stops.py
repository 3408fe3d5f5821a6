"""A stop at every store, flush and fence of the region's transactions and recovery."""

from collections.abc import Callable

import pytest

from crash.regions import (
    CHANGES,
    SIZE,
    TWIN,
    Change,
    contents,
    fresh_image,
    owned_once,
    recovered,
    scattered_stores,
    states_of,
    two_in_a_row,
    wide_store,
)
from crash.stops import BOTH, cut_everywhere, cut_image_everywhere, kill_everywhere
from plinius.errors import FormatError, RegionError
from plinius.pm.medium import Granularity
from plinius.pm.region import Region, format_region
from plinius.pm.romulus import Twins, TwinState
from plinius.structures.words import Words
from plinius.testing import PlainMedium, SimulatedMedium

End = Callable[[Twins], object]
each_end = pytest.mark.parametrize(
    "end", [lambda twins: None, Twins.recover], ids=["next", "recovery"]
)
each_change = pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
each_granularity = pytest.mark.parametrize("granularity", BOTH, ids=lambda one: one.value)


@each_granularity
@each_change
def test_a_stop_anywhere_leaves_the_state_before_or_after(
    change: Change, granularity: Granularity
) -> None:
    """Every image of every stop recovers to a state that some transaction ended with."""
    allowed = states_of(change)
    found = set()

    def check(image: bytes, ended: bool) -> None:
        state = recovered(image)
        assert state == allowed[-1] if ended else state in allowed
        found.add(allowed.index(state))

    medium = SimulatedMedium(image=fresh_image(), granularity=granularity)
    region = Region(medium, "r")
    tally = cut_everywhere(medium, lambda _: change(region), check)
    assert tally.exhaustive
    assert {allowed.index(state) for state in allowed} == found
    owned_once(bytes(medium.read(0, medium.size)))
    assert contents(region) == allowed[-1]
    wide_store(region)  # and the region can be used
    assert recovered(bytes(medium.read(0, medium.size))) == contents(region)


@each_change
def test_an_interrupt_after_any_store_leaves_one_of_the_states(change: Change) -> None:
    """Ctrl-C rolls back what was stored; at the end of a transaction, recovery does that."""
    allowed = states_of(change)
    for number in range(200):
        medium = InterruptedMedium(fresh_image(), number)
        region = Region(medium, "r")
        medium.armed = True
        try:
            change(region)
        except KeyboardInterrupt:
            if region.twins.state() is TwinState.IDLE:
                owned_once(medium.bytes)
            assert contents(region) in allowed or region.twins._failed
            assert recovered(bytes(medium.bytes)) in allowed
        else:
            assert number > 3
            return
    raise AssertionError("the change does not end")


@each_end
def test_a_transaction_that_an_interrupt_left_open_is_undone(end: End) -> None:
    """Ctrl-C just before its end: the next transaction, or recovery, rolls it back."""
    region = Region(PlainMedium(fresh_image()), "r")
    twins, at = region.twins, TWIN - 128
    before = twins.read(at, 128)
    interrupted = twins.transaction()
    interrupted.__enter__()
    twins.store(at, b"undone..")
    Words(region).store([at + 8], [7])
    assert twins._open is not None
    twins._open.depth = 0
    end(twins)
    with twins.transaction():
        twins.store(at + 64, b"kept....")
    assert twins.read(at, 128) == before[:64] + b"kept...." + before[72:]
    assert twins.state() is TwinState.IDLE
    assert twins.equal()


class InterruptedMedium(PlainMedium):
    """Somebody presses Ctrl-C after a number of stores."""

    def __init__(self, image: bytes, number: int) -> None:
        super().__init__(image)
        self.number = number
        self.armed = False

    def store(self, offset: int, data: bytes | memoryview) -> None:
        super().store(offset, data)
        self.number -= self.armed
        if self.armed and self.number < 0:
            self.armed = False
            raise KeyboardInterrupt


@each_granularity
@each_change
def test_recovery_can_be_stopped_again_and_again(change: Change, granularity: Granularity) -> None:
    """Every image of a stopped recovery is recovered and stopped in turn, until none is new."""
    start = fresh_image()
    todo: dict[bytes, object] = {}

    def remember(image: bytes, ended: bool) -> None:
        if len(todo) < 200:
            todo.setdefault(image)

    cut_image_everywhere(start, lambda m: change(Region(m, "r")), remember, granularity, limit=64)
    done: set[bytes] = set()
    images = list(todo)[:: max(1, len(todo) // 40)]
    while images and len(done) < 1500:
        image = images.pop()
        wanted = recovered(image)

        def check(again: bytes, ended: bool, wanted: object = wanted) -> None:
            assert recovered(again) == wanted
            if again not in done:
                done.add(again)
                images.append(again)

        cut_image_everywhere(image, lambda m: Region(m, "r"), check, granularity, limit=16)


@each_granularity
@each_change
def test_a_kill_then_a_restart_then_a_power_cut_loses_nothing_that_was_seen(
    change: Change, granularity: Granularity
) -> None:
    """The next process sees stores that are not durable yet; once it is open, they must be."""
    start = fresh_image()
    allowed = states_of(change)

    def then(killed: SimulatedMedium) -> None:
        seen = contents(Region(killed.after_kill(), "r"))
        assert seen in allowed
        opened: list[Region] = []

        def check(image: bytes, ended: bool) -> None:
            state = recovered(image)
            assert state == seen if opened else state in allowed

        cut_everywhere(killed, lambda m: opened.append(Region(m, "r")), check, limit=64)

    assert kill_everywhere(start, lambda m: change(Region(m, "r")), then, granularity) > 8


@each_change
def test_a_read_only_view_of_an_interrupted_region_is_the_recovered_one(change: Change) -> None:
    """Opening read-only shows what recovery would, without writing."""

    def check(image: bytes, ended: bool) -> None:
        medium = PlainMedium(image)
        shown = contents(Region(medium, "r", writable=False))
        assert medium.bytes == image
        assert shown == recovered(image)

    cut_image_everywhere(fresh_image(), lambda m: change(Region(m, "r")), check, limit=64)


def test_a_transaction_takes_four_fences() -> None:
    """However many stores it makes."""
    medium = SimulatedMedium(image=fresh_image())
    region = Region(medium, "r")
    before = len(medium.operations)
    scattered_stores(region)
    assert medium.operations[before:].count("fence") == 4


def test_a_commit_on_a_small_region_is_enumerated_whole() -> None:
    """The number of images of two transactions in a row is as counted by hand."""
    medium = SimulatedMedium(image=fresh_image())
    region = Region(medium, "r")
    tally = cut_everywhere(medium, lambda _: two_in_a_row(region), lambda *_: None, samples=0)
    # Before each fence: state word 2, main 2^3, state word 2, back 2^3; then the same again, where
    # the state word may be any of COPYING, IDLE and MUTATING, since IDLE was not fenced; last,
    # COPYING or IDLE.
    enumerated = [2, 8, 2, 8, 3, 8, 2, 8, 2]
    assert tally.all_at_fence == [True] * len(enumerated)
    assert tally.images == sum(enumerated)


@each_granularity
def test_a_stop_while_a_region_is_formatted_leaves_no_region_or_a_whole_one(
    granularity: Granularity, request: pytest.FixtureRequest
) -> None:
    """The magic goes last, so half a region is refused as no region. All images: --soak."""
    seen = set()

    def check(image: bytes, ended: bool) -> None:
        try:
            region = Region(PlainMedium(image), "r")
        except FormatError:
            assert not ended
            seen.add("none")
        else:
            owned_once(image)
            assert region.heap.extents() == {} and region.heap.region_bytes == SIZE
            seen.add("whole")

    soak = request.config.getoption("--soak", False)
    tally = cut_image_everywhere(
        bytes(SIZE), lambda m: format_region(m, TWIN), check, granularity,
        samples=100, limit=2**18 if soak else 4096,
    )  # fmt: skip
    assert seen == {"none", "whole"}
    assert tally.exhaustive or not (soak or granularity is Granularity.PAGE)


def test_a_failed_inner_transaction_rolls_back_the_outer_one() -> None:
    """If its exception is caught, half of it is not committed all the same."""
    region = Region(SimulatedMedium(image=fresh_image()), "r")
    before = contents(region)
    with pytest.raises(RuntimeError, match="inner transaction failed"), region.twins.transaction():
        with pytest.raises(KeyError), region.twins.transaction():
            region.twins.store(region.heap.allocate(64), b"x" * 64)
            raise KeyError
        region.heap.drop_root("kept")
    assert contents(region) == before


def test_a_state_word_that_is_no_state_is_refused() -> None:
    """Recovery does not guess."""
    image = bytearray(fresh_image())
    image[64] ^= 1
    with pytest.raises(RegionError, match="which is no state"):
        Region(PlainMedium(image), "r")
