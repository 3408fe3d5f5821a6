"""The persistence model itself: what it keeps, and what it lets a cut take."""

import numpy as np
import pytest

from crash.simulated import SECTOR, SimulatedMedium
from crash.stops import BOTH
from plinius.pm.medium import LINE, PAGE, Granularity

each_granularity = pytest.mark.parametrize("granularity", BOTH, ids=lambda one: one.value)


def words(image: bytes, *places: int) -> tuple[int, ...]:
    return tuple(int.from_bytes(image[at : at + 8], "little") for at in places)


def after_a_cut(medium: SimulatedMedium, *places: int) -> set[tuple[int, ...]]:
    every = medium.every_image(1000)
    assert every is not None
    return {words(image, *places) for image in every}


@each_granularity
def test_what_was_flushed_and_fenced_is_kept_and_nothing_else(granularity: Granularity) -> None:
    """Of three stores, the one flushed before the fence is certain."""
    medium = SimulatedMedium(4 * PAGE, granularity=granularity)
    for at in (0, PAGE, 2 * PAGE):
        medium.store_word(at, 1)
    medium.flush(0, 8)
    assert len(after_a_cut(medium, 0, PAGE, 2 * PAGE)) == 8  # a flush alone decides nothing
    medium.fence()
    medium.flush(PAGE, 8)  # after the fence: not yet
    assert after_a_cut(medium, 0, PAGE, 2 * PAGE) == {
        (1, 0, 0), (1, 0, 1), (1, 1, 0), (1, 1, 1),
    }  # fmt: skip


def test_a_line_is_kept_as_it_was_when_flushed_and_a_page_as_it_was_when_fenced() -> None:
    """Between the two a store may come; the processor's write-back does not wait for it."""
    for granularity, allowed in zip(BOTH, ({(1,), (2,)}, {(2,)}), strict=True):
        medium = SimulatedMedium(PAGE, granularity=granularity)
        medium.store_word(0, 1)
        medium.flush(0, 8)
        medium.store_word(0, 2)
        medium.fence()
        assert after_a_cut(medium, 0) == allowed


def test_a_store_is_torn_by_words_or_by_sectors() -> None:
    """Any subset of the words of a line; of a page, any subset of its sectors, each whole."""
    medium = SimulatedMedium(PAGE)
    medium.store(0, b"\1" + bytes(7) + b"\1" + bytes(7))
    assert after_a_cut(medium, 0, 8) == {(0, 0), (0, 1), (1, 0), (1, 1)}
    medium = SimulatedMedium(PAGE, granularity=Granularity.PAGE)
    medium.store(0, (b"\1" + bytes(7)) * (SECTOR // 8 + 1))
    assert after_a_cut(medium, 0, 8, SECTOR) == {(0, 0, 0), (0, 0, 1), (1, 1, 0), (1, 1, 1)}


@each_granularity
def test_every_value_a_word_has_had_since_it_last_lasted_may_be_found(
    granularity: Granularity,
) -> None:
    """And sampling reaches all that enumeration lists, and nothing else."""
    medium = SimulatedMedium(PAGE, granularity=granularity)
    for value in (1, 2, 3):
        medium.store_word(0, value)
        medium.store_word(2 * SECTOR, value)
    every = after_a_cut(medium, 0, 2 * SECTOR)
    assert every == {(a, b) for a in range(4) for b in range(4)}
    rng = np.random.default_rng(1)
    sampled = {words(medium.sampled_image(rng), 0, 2 * SECTOR) for _ in range(500)}
    assert sampled == every


def test_a_flush_reaches_its_lines_and_no_further() -> None:
    """Neighbours stay uncertain."""
    medium = SimulatedMedium(PAGE)
    for at in (0, LINE, 2 * LINE):
        medium.store_word(at, 1)
    medium.flush(LINE + 8, 8)
    medium.fence()
    assert {found[1] for found in after_a_cut(medium, 0, LINE, 2 * LINE)} == {1}
    assert len(after_a_cut(medium, 0, 2 * LINE)) == 4


@each_granularity
def test_after_a_kill_all_shows_and_no_flush_is_remembered(granularity: Granularity) -> None:
    """The next process's fence is not for the stores of the one before."""
    medium = SimulatedMedium(PAGE, granularity=granularity)
    medium.store_word(0, 1)
    medium.flush(0, 8)
    after = medium.killed()
    after.fence()
    assert words(bytes(after.read(0, 8)), 0) == (1,)
    assert after_a_cut(after, 0) == {(0,), (1,)}
    after.flush(0, 8)
    after.fence()
    assert after_a_cut(after, 0) == {(1,)}
    assert after_a_cut(medium, 0) == {(0,), (1,)}


@each_granularity
def test_too_many_images_are_not_enumerated(granularity: Granularity) -> None:
    """Then there is only sampling, and whoever asked is told so."""
    medium = SimulatedMedium(16 * PAGE, granularity=granularity)
    medium.write(0, b"\1" * medium.size)
    assert medium.every_image(4096) is None
    medium.fence()
    assert len(list(medium.every_image(4096) or ())) == 1
