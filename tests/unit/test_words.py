"""List operations of the twins: many words stored, read and exchanged in one call."""

import threading
from contextlib import nullcontext

import numpy as np
import pytest

from plinius.errors import RegionError
from plinius.pm.region import Region
from plinius.structures.words import Words
from unit.regions import TWIN, plain


def test_many_words_in_one_call_equal_single_words_in_order(region: Region) -> None:
    """Stores and exchanges of lists, with plain stores; repeated offsets; committed or not."""
    rng = np.random.default_rng(5)
    twins, words, start, count = region.twins, Words(region), 8192, 500
    wanted = words.read(np.arange(count) * 8 + start)
    for turn in range(40):
        before = wanted.copy()
        with pytest.raises(KeyError) if turn % 4 == 0 else nullcontext():
            with twins.transaction():
                for _ in range(3):
                    places, others = rng.integers(0, count, (2, rng.integers(0, 60)))
                    values = rng.integers(-(2**63), 2**63, len(places))
                    words.store(places * 8 + start, values)
                    for place, value in zip(places, values, strict=True):
                        wanted[place] = value
                    words.swap(places * 8 + start, others * 8 + start)
                    for one, other in zip(places, others, strict=True):
                        wanted[[one, other]] = wanted[[other, one]]
                    twins.store(start + 8, b"plain...")
                    wanted[1] = int.from_bytes(b"plain...", "little")
                if turn % 4 == 0:
                    raise KeyError
        if turn % 4 == 0:
            wanted = before
        assert np.array_equal(words.read(np.arange(count) * 8 + start), wanted)
        assert twins.equal()


@pytest.mark.parametrize(
    ("offsets", "error"),
    [
        ([8192, TWIN], RegionError), ([-8], RegionError), ([-(2**63)], RegionError),
        ([2**63 - 8], RegionError), ([8192, 8196], ValueError), ([[8192]], ValueError),
    ],
)  # fmt: skip
def test_a_list_with_an_offset_outside_the_twin_is_refused_as_a_whole(
    region: Region, offsets: list[int], error: type[Exception]
) -> None:
    """Before anything is read or stored."""
    twins, words = region.twins, Words(region)
    before = twins.read(0, TWIN)
    values = np.ones(np.shape(offsets), np.int64)
    with pytest.raises(error):
        words.read(offsets)
    for act in (
        lambda: words.store(offsets, values),
        lambda: words.swap(offsets, offsets),
    ):
        with pytest.raises(error), twins.transaction():
            act()
    assert twins.read(0, TWIN) == before
    region.consistency_check()


def test_words_that_do_not_fit_are_refused(region: Region) -> None:
    """Floats, another number of values, and stores outside a transaction or in another's."""
    twins, words = region.twins, Words(region)
    with twins.transaction():
        with pytest.raises(TypeError, match="int64 or uint64"):
            words.store([8192], [1.5])
        with pytest.raises(ValueError, match="one value for every offset"):
            words.store([8192], [1, 2])
        words.store([8192], np.array([2**64 - 1], np.uint64))
        caught: list[BaseException] = []

        def intrude() -> None:
            try:
                words.store([8192], [1])
            except RuntimeError as error:
                caught.append(error)

        thread = threading.Thread(target=intrude)
        thread.start()
        thread.join()
        assert caught
    assert words.read([8192]) == [-1]
    with pytest.raises(RuntimeError, match="only inside a transaction"):
        words.store([8192], [1])


def test_the_log_of_words_is_never_larger_than_the_twin() -> None:
    """However often one transaction stores to the same offsets."""
    region = plain(16 * 1024)
    words = Words(region)
    offsets = np.arange(8192, 16384, 8)
    with region.twins.transaction():
        for turn in range(50):
            words.store(offsets, offsets + turn)
            assert sum(map(len, words._lines)) <= region.twins.length // 8
    assert region.twins.equal()
