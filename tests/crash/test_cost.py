"""The numbers in docs/persistence.md are what the code does."""

import contextlib
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from crash.mirrors import KEY, sealed_numbers
from crash.regions import fresh_image
from crash.test_full_size import state
from plinius.data.dataset_extent import load_dataset
from plinius.pm.medium import PAGE
from plinius.pm.region import Region, format_region
from plinius.slots import Slots
from plinius.structures.words import Words
from plinius.testing import SimulatedMedium

TWIN = 16 * 1024
PAGE_DOC = Path(__file__).parents[2] / "docs" / "persistence.md"
ROW = re.compile(r"^\| (.+?) \| (\d+) \| (\d+) \| (\d+) \|$", re.MULTILINE)


class Counted:
    """A region with room to spare, and what an operation on it costs."""

    def __init__(self, spare: int = 64 * PAGE) -> None:
        self.medium = SimulatedMedium(PAGE + 2 * TWIN + spare)
        format_region(self.medium, TWIN)
        self.region = Region(self.medium, "r")
        with self.region.twins.transaction():
            self.block = self.region.heap.allocate(8000)
            self.region.heap.set_root("array", self.block, 8000)
        self.line = -(-self.block // 64) * 64

    def of(self, act: Callable[[], object]) -> tuple[int, int, int]:
        medium = self.medium
        medium.operations.clear()
        medium.flushed_units = medium.stored_bytes = 0
        act()
        return medium.operations.count("fence"), medium.flushed_units, medium.stored_bytes

    def words(self, count: int, apart: int, *, undo: bool = False) -> tuple[int, int, int]:
        def change() -> None:
            with contextlib.suppress(KeyError), self.region.twins.transaction():
                places = self.line + apart * np.arange(count)
                Words(self.region).store(places, np.arange(count))
                if undo:
                    raise KeyError

        return self.of(change)


def costs(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Each operation of the table, done once and counted."""
    one, tight = Counted(), Counted(0)
    found = {
        "transaction, nothing stored": one.words(0, 8),
        "transaction, 1 word": one.words(1, 8),
        "transaction, 64 words on 64 lines": one.words(64, 64),
        "transaction, 64 words on 8 lines": one.words(64, 8),
        "transaction of 1 word, rolled back": one.words(1, 8, undo=True),
        "opening a region that is IDLE": one.of(lambda: Region(one.medium, "r")),
    }
    cut = Counted()
    cut.medium = SimulatedMedium(image=fresh_image())
    cut.medium.store(64, b"COPYING\0")
    found["recovery of twins of 16 KiB"] = cut.of(lambda: Region(cut.medium, "r"))
    cut.medium = SimulatedMedium(cut.medium.size)
    found["making a region of twins of 16 KiB"] = cut.of(lambda: format_region(cut.medium, TWIN))
    for what, where in (("where there is room", one), ("the region grown for it", tight)):
        found[f"a new extent of one page, {what}"] = where.of(
            lambda region=where.region: region.add_extent(  # type: ignore[misc]
                "one", PAGE, lambda medium, at: medium.write(at, bytes(PAGE))
            )
        )
    found["dropping an extent"] = one.of(lambda: one.region.drop_extent("one"))
    path = sealed_numbers(folder, count=3, length=700)
    found[f"loading a dataset of {path.stat().st_size:,} bytes, where there is room"] = one.of(
        lambda: load_dataset(one.region, path, KEY)
    )
    mirror = Slots.create(one.region, KEY)
    found["the first commit of a mirror, of 101,000 bytes in 2 tensors"] = one.of(
        lambda: mirror.write(state(0))
    )
    again = Slots.open(one.region, KEY)
    assert again is not None
    found["opening a mirror and its newest manifest"] = one.of(again.newest)
    found["a later commit of 101,000 bytes in 2 tensors"] = one.of(lambda: mirror.write(state(1)))
    longer = replace(state(2), values={"told": "x" * 100_000})
    found["the same, with larger slots for it"] = one.of(lambda: mirror.write(longer))
    return found


def test_the_documented_costs_are_those_counted(tmp_path: Path) -> None:
    """Every row of the table, and no row that is not counted."""
    rows = ROW.findall(PAGE_DOC.read_text(encoding="utf-8"))
    documented = {what: tuple(map(int, numbers)) for what, *numbers in rows}
    assert documented == costs(tmp_path)


def test_no_transaction_takes_more_than_four_fences() -> None:
    """Whatever it stores."""
    one = Counted()
    assert {one.words(count, 8)[0] for count in (0, 1, 2, 17, 500)} == {4}


def test_a_transaction_writes_back_only_its_own_words() -> None:
    """The log of a list of words is empty when a transaction ends."""
    one = Counted()
    words = Words(one.region)

    def store(at: int) -> None:
        with one.region.twins.transaction():
            words.store([at], [1])

    first = one.of(lambda: store(one.line))
    assert one.of(lambda: store(one.line + 128)) == first
