"""The persistence model itself: what is durable in it, and what a power cut may lose."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from crash.stops import BOTH
from plinius.pm.medium import LINE, PAGE, Granularity
from plinius.testing import SimulatedMedium
from plinius.testing.simulated_medium import SECTOR

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
    """A store in between may be durable at CACHE_LINE, and is durable at PAGE."""
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
def test_any_value_that_a_word_had_since_it_was_durable_may_be_found(
    granularity: Granularity,
) -> None:
    """And sampling finds all images that enumeration lists, and no others."""
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
    """Its neighbours may be lost."""
    medium = SimulatedMedium(PAGE)
    for at in (0, LINE, 2 * LINE):
        medium.store_word(at, 1)
    medium.flush(LINE + 8, 8)
    medium.fence()
    assert {found[1] for found in after_a_cut(medium, 0, LINE, 2 * LINE)} == {1}
    assert len(after_a_cut(medium, 0, 2 * LINE)) == 4


def elsewhere(*acts: Callable[[], object]) -> None:
    """Do these in another thread, one after the other."""
    with ThreadPoolExecutor(1) as pool:
        for act in acts:
            pool.submit(act).result()


def write_and_flush(medium: SimulatedMedium, word: int) -> None:
    medium.store_word(0, word)
    medium.flush(0, 8)


@each_granularity
def test_a_fence_does_not_cover_what_another_thread_flushed_except_on_a_disk(
    granularity: Granularity,
) -> None:
    """A fence instruction covers its own processor's stores; msync covers the file."""
    medium = SimulatedMedium(PAGE, granularity=granularity)
    elsewhere(lambda: write_and_flush(medium, 1))
    medium.fence()
    on_disk = granularity is Granularity.PAGE
    assert after_a_cut(medium, 0) == ({(1,)} if on_disk else {(0,), (1,)})


def test_what_a_thread_flushed_is_kept_once_that_thread_has_drained() -> None:
    """Without any fence; what it stored later or did not flush may be lost."""
    medium = SimulatedMedium(PAGE)
    medium.write(2 * LINE, b"\1" + bytes(7))  # of this thread, and never fenced
    elsewhere(
        lambda: write_and_flush(medium, 1),
        lambda: medium.store_word(LINE, 1),
        medium.drain,
        lambda: medium.store_word(0, 2),
    )
    assert after_a_cut(medium, 0, LINE, 2 * LINE) == {
        (a, b, c) for a in (1, 2) for b in (0, 1) for c in (0, 1)
    }
    medium.fence()
    assert after_a_cut(medium, 0, LINE, 2 * LINE) == {(a, b, 1) for a in (1, 2) for b in (0, 1)}


def test_a_drain_is_no_fence_on_a_disk() -> None:
    """There only msync makes anything durable."""
    medium = SimulatedMedium(PAGE, granularity=Granularity.PAGE)
    elsewhere(lambda: write_and_flush(medium, 1), medium.drain)
    write_and_flush(medium, 2)
    medium.drain()
    assert after_a_cut(medium, 0) == {(0,), (1,), (2,)}
    medium.fence()
    assert after_a_cut(medium, 0) == {(2,)}


def test_a_thread_does_not_flush_for_another() -> None:
    """The other thread's streaming stores may still be in its processor's buffers."""
    medium = SimulatedMedium(PAGE)
    elsewhere(lambda: medium.store_word(0, 1))
    medium.flush(0, 8)
    medium.fence()
    assert after_a_cut(medium, 0) == {(0,), (1,)}


def test_where_a_later_store_is_durable_an_earlier_one_is_not_found() -> None:
    """Also one of another thread: a word never goes back to an older value."""
    medium = SimulatedMedium(PAGE)
    elsewhere(lambda: medium.store_word(0, 1))
    write_and_flush(medium, 2)
    medium.fence()
    assert after_a_cut(medium, 0) == {(2,)}


def test_a_flush_is_remembered_over_the_fences_of_other_threads() -> None:
    """It covers the stores that its thread made before it, and none after it."""
    medium = SimulatedMedium(PAGE)
    with ThreadPoolExecutor(1) as other:
        other.submit(write_and_flush, medium, 1).result()
        for word in (LINE, 2 * LINE, 3 * LINE):
            medium.write(word, b"\1" + bytes(7))
        other.submit(medium.store_word, 0, 2).result()
        medium.fence()
        assert after_a_cut(medium, 0) == {(0,), (1,), (2,)}
        other.submit(medium.drain).result()
    assert after_a_cut(medium, 0) == {(1,), (2,)}


@each_granularity
def test_after_a_kill_every_store_is_visible_and_no_flush_is_remembered(
    granularity: Granularity,
) -> None:
    """A fence of the next process does not cover the flushes of the one before."""
    medium = SimulatedMedium(PAGE, granularity=granularity)
    medium.store_word(0, 1)
    medium.flush(0, 8)
    after = medium.after_kill()
    after.fence()
    assert words(bytes(after.read(0, 8)), 0) == (1,)
    assert after_a_cut(after, 0) == {(0,), (1,)}
    after.flush(0, 8)
    after.fence()
    assert after_a_cut(after, 0) == {(1,)}
    assert after_a_cut(medium, 0) == {(0,), (1,)}


@each_granularity
def test_too_many_images_are_not_enumerated(granularity: Granularity) -> None:
    """None is returned instead, and the images can be sampled."""
    medium = SimulatedMedium(16 * PAGE, granularity=granularity)
    medium.write(0, b"\1" * medium.size)
    assert medium.every_image(4096) is None
    medium.fence()
    assert len(list(medium.every_image(4096) or ())) == 1
