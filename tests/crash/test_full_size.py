"""Sampled stops of commits of full size: the twins of a real region, a mirror of over 100 KB.

`make test` looks at 10,000 images, `--soak` at PLINIUS_SOAK_IMAGES (a million, if not set).
"""

import functools
import os
from collections.abc import Callable

import numpy as np
import pytest

from crash.mirrors import KEY, newest
from crash.stops import BOTH, SEED, cut_everywhere, rng_of
from plinius.pm.medium import PAGE, Granularity
from plinius.pm.region import DEFAULT_TWIN_BYTES, Region, format_region
from plinius.slots import Slots
from plinius.snapshot import Snapshot, TensorBytes
from plinius.structures.words import Words
from plinius.testing import PlainMedium, SimulatedMedium

IMAGES = 10_000
WORDS = 4096  # the array in the twins, of which each transaction changes some
each_granularity = pytest.mark.parametrize("granularity", BOTH, ids=lambda one: one.value)


@pytest.fixture
def images(request: pytest.FixtureRequest) -> int:
    """How many images each half of each granularity looks at."""
    if request.config.getoption("--soak", False):
        return int(os.environ.get("PLINIUS_SOAK_IMAGES", 10**6)) // 4
    return IMAGES // 4


@functools.lru_cache(4)
def values_of(iteration: int) -> bytes:
    return np.random.default_rng(iteration).bytes(100_000)


def state(iteration: int) -> Snapshot:
    values = values_of(iteration)
    tensors = (
        TensorBytes("weights", "uint8", (100_000,), memoryview(values)),
        TensorBytes("bias", "uint8", (1000,), memoryview(values[:1000])),
    )
    return Snapshot(iteration, tensors, {}, {}, {})


def full_region(granularity: Granularity) -> tuple[SimulatedMedium, Region]:
    medium = SimulatedMedium(PAGE + 2 * DEFAULT_TWIN_BYTES, granularity=granularity)
    format_region(medium, DEFAULT_TWIN_BYTES)
    region = Region(medium, "r")
    with region.twins.transaction():
        region.heap.set_root("array", region.heap.allocate(8 * WORDS), 8 * WORDS)
    medium.fence()
    return medium, region


def look_at(images: int, commit: Callable[[int], int]) -> None:
    """Commit 1, 2, 3 ... until so many different images were checked."""
    print(f"PLINIUS_TEST_SEED={SEED}, {images} images")
    number = looked = 0
    while looked < images:
        number += 1
        looked += commit(number)


@each_granularity
def test_a_power_cut_in_a_large_transaction_leaves_all_of_it_or_none(
    granularity: Granularity, images: int
) -> None:
    """Up to 400 scattered words in a twin heap of the usual size."""
    rng = rng_of(f"twins {granularity.value}")
    medium, region = full_region(granularity)
    at = region.heap.roots()["array"].offset

    def one_transaction(number: int) -> int:
        places = at + 8 * rng.choice(WORDS, int(rng.choice([1, 8, 64, 400])), replace=False)
        before = region.twins.read(0, region.twins.length)
        after = bytearray(before)
        np.frombuffer(after, "<i8")[places // 8] = number
        allowed = {before: "before", bytes(after): "after"}
        seen = set()

        def change(_: SimulatedMedium) -> None:
            with region.twins.transaction():
                Words(region).store(places, np.full(len(places), number))

        def check(image: bytes, ended: bool) -> None:
            opened = Region(PlainMedium(image), "r")
            assert opened.twins.equal()
            found = allowed[opened.twins.read(0, opened.twins.length)]
            assert found == "after" or not ended
            seen.add(found)

        tally = cut_everywhere(medium, change, check, samples=1, limit=1, rng=rng)
        assert seen == {"before", "after"}
        return tally.distinct

    look_at(images, one_transaction)


@each_granularity
def test_a_power_cut_in_a_large_mirror_commit_leaves_it_or_the_one_before(
    granularity: Granularity, images: int
) -> None:
    """Whichever of 100 KB of sealed bytes were durable."""
    rng = rng_of(f"mirror {granularity.value}")
    medium, region = full_region(granularity)
    mirror = Slots.create(region, KEY)
    mirror.write(state(0))

    def one_commit(number: int) -> int:
        seen = set()

        def check(image: bytes, ended: bool) -> None:
            opened = Slots.open(Region(PlainMedium(image), "r"), KEY)
            assert opened is not None
            found = newest(opened)
            assert found is not None
            assert found.iteration == number or (not ended and found.iteration == number - 1)
            true = values_of(found.iteration)
            assert found.tensors[0].data == true and found.tensors[1].data == true[:1000]
            seen.add(found.iteration)

        new = state(number)
        tally = cut_everywhere(
            medium, lambda _: mirror.write(new), check, samples=12, limit=1, rng=rng
        )
        assert seen == {number - 1, number}
        return tally.distinct

    look_at(images, one_commit)
