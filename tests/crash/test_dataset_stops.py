"""A stop at every store, flush and fence of loading a dataset into a region."""

from pathlib import Path

import pytest

import plinius.data.dataset_extent
from crash.mirrors import KEY, empty_region, loaded, sealed_numbers
from crash.stops import BOTH, cut_everywhere, cut_image_everywhere, kill_everywhere
from plinius.data.dataset_extent import load_dataset
from plinius.pm.medium import Granularity
from plinius.pm.region import Region
from plinius.testing import PlainMedium, SimulatedMedium

each_granularity = pytest.mark.parametrize("granularity", BOTH, ids=lambda one: one.value)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 1000 bytes, so that a small dataset is written in several."""
    monkeypatch.setattr(plinius.data.dataset_extent, "_BLOCK_BYTES", 1000)


@each_granularity
def test_a_stop_anywhere_in_a_load_leaves_no_dataset_or_a_whole_one(
    granularity: Granularity, tmp_path: Path
) -> None:
    """The dataset gets its name when all of it is durable; a second load then completes it."""
    path = sealed_numbers(tmp_path)
    seen = set()

    def check(image: bytes, ended: bool) -> None:
        found = loaded(image)
        assert found or not ended
        seen.add(found)
        again = PlainMedium(image)
        load_dataset(Region(again, "r"), path, KEY)
        assert loaded(bytes(again.bytes))

    cut_image_everywhere(
        empty_region(), lambda m: load_dataset(Region(m, "r"), path, KEY), check, granularity
    )
    assert seen == {True, False}


@each_granularity
def test_a_kill_then_a_second_load_then_a_power_cut_leaves_none_or_a_whole_one(
    granularity: Granularity, tmp_path: Path
) -> None:
    """What the first load left in the caches is not taken for durable."""
    path = sealed_numbers(tmp_path, count=3, length=900)

    def load(medium: SimulatedMedium) -> None:
        load_dataset(Region(medium, "r"), path, KEY)

    def then(killed: SimulatedMedium) -> None:
        cut_everywhere(
            killed, load, lambda image, ended: loaded(image) or not ended or pytest.fail("lost"),
            samples=1, limit=8,
        )  # fmt: skip

    kill_everywhere(empty_region(), load, then, granularity)
