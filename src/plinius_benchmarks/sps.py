"""SPS, the paper's benchmark of the engine (its Fig. 6): random swaps in a persistent array.

10 MB of persistent 8-byte integers; a transaction swaps 2 to 2048 pairs at random places; one
thread. Two forms: "plain" makes one Python call a load and a store, "vectorised" swaps all pairs
of a transaction by one call (`PersistentArray.swap`), with the meaning of one after another. The
random places are drawn inside the timed part in both, as the C++ benchmark of Romulus does.

Points take turns, slice by slice, so that other load on the machine affects all of them. A point's
figure is the median of its slices. Fences, lines and bytes are counted, in a pass of its
own through a medium that counts, so that counting costs no time.
"""

import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from plinius.pm.cacheline import pwb_names
from plinius.pm.medium import WORD, Granularity
from plinius.pm.open_medium import open_medium
from plinius.pm.region import Region
from plinius.structures.persistent_array import PersistentArray
from plinius_benchmarks.counting import CountingMedium
from plinius_benchmarks.machine import describe_machine
from plinius_benchmarks.paper import FIG_6_SWAPS
from plinius_benchmarks.report import Progress, Report, Row, no_progress

ARRAY_BYTES = 10 * 1000 * 1000
ELEMENTS = ARRAY_BYTES // WORD
SIZES = FIG_6_SWAPS
DISK_SIZES = (2, 64, 2048)  # fewer: a transaction there waits for the disk four times
FORMS = ("plain", "vectorised")
SLICES = 5
SECONDS = 0.6
MEMORY = Path("/dev/shm")  # noqa: S108 - a fresh folder is made in it
_TWIN_BYTES = (ARRAY_BYTES // 65536 + 2) * 65536
_COUNTED = 4  # transactions

Transaction = Callable[[int], None]


@dataclass
class Point:
    """One combination, what it does, and swaps per microsecond of each slice."""

    swaps: int
    form: str
    pwb: str
    granularity: Granularity
    act: Transaction
    rates: list[float]
    counted: dict[str, float]

    def row(self) -> Row:
        """As JSON."""
        return {
            "swaps": self.swaps,
            "form": self.form,
            "pwb": self.pwb,
            "granularity": self.granularity.value,
            "swaps_per_us": round(statistics.median(self.rates), 4),
            "slowest_slice": round(min(self.rates), 4),
            "fastest_slice": round(max(self.rates), 4),
            **self.counted,
        }


def run_sps(
    seconds: float = SECONDS,
    folders: Sequence[Path] | None = None,
    sizes: Sequence[int] = SIZES,
    progress: Progress = no_progress,
) -> Report:
    """Measure every form, size and write-back instruction, in each folder.

    `seconds` is the time of one point; the default takes about a minute. `folders` are by default
    the memory file system and the current folder; one of a granularity met before is left out.
    Raises StorageError, RegionFullError and what else a region raises; RuntimeError if swaps lost
    an element.
    """
    points: list[Point] = []
    with _arrays(folders or (MEMORY, Path.cwd())) as places:
        for region, array, pwb in places:
            slow = region.granularity is Granularity.PAGE
            for swaps in [size for size in sizes if not slow or size in DISK_SIZES]:
                for form in FORMS:
                    act = transaction(form, region, array)
                    counted = count(form, region, array.name, swaps)
                    points.append(Point(swaps, form, pwb, region.granularity, act, [], counted))
        for turn in range(SLICES):
            for number, point in enumerate(points):
                point.rates.append(_slice(point.act, point.swaps, seconds / SLICES))
                progress(turn * len(points) + number + 1, SLICES * len(points))
        for _, array, _ in places:
            if not np.array_equal(np.sort(array[:]), np.arange(ELEMENTS)):
                raise RuntimeError("the swaps lost an element")
    return {
        "name": "sps",
        "title": "Random swaps in persistent memory (the paper's Fig. 6)",
        "machine": describe_machine(),
        "rows": [point.row() for point in points],
        "targets": [],
        "notes": ["What a transaction costs is counted, not estimated."],
    }


def transaction(form: str, region: Region, array: PersistentArray) -> Transaction:
    """One transaction of so many swaps, in one of the forms."""
    vectors = np.random.default_rng(1)
    numbers = random.Random(1)  # noqa: S311 - places to swap, nothing secret
    twins, start = region.twins, array.offset

    def vectorised(swaps: int) -> None:
        first, second = vectors.integers(0, ELEMENTS, (2, swaps))
        array.swap(first, second)

    def plain(swaps: int) -> None:
        with twins.transaction():
            for _ in range(swaps):
                first = start + WORD * int(numbers.random() * ELEMENTS)
                second = start + WORD * int(numbers.random() * ELEMENTS)
                kept = twins.read(first, WORD)
                twins.store(first, twins.read(second, WORD))
                twins.store(second, kept)

    return plain if form == "plain" else vectorised


def count(form: str, region: Region, name: str, swaps: int) -> dict[str, float]:
    """What a transaction costs the medium: fences, lines and bytes, the mean of a few."""
    counting = CountingMedium(region.medium)
    counted = Region(counting, region.name)
    act = transaction(form, counted, PersistentArray.open(counted, name))
    counting.reset()
    for _ in range(_COUNTED):
        act(swaps)
    return {what: number / _COUNTED for what, number in counting.counts().items()}


def _slice(act: Transaction, swaps: int, seconds: float) -> float:
    """Swaps per microsecond over at least `seconds` and at least one transaction."""
    act(swaps)
    done, began = 0, time.perf_counter()
    while True:
        act(swaps)
        done += swaps
        took = time.perf_counter() - began
        if took >= seconds:
            return done / took / 1e6


@contextmanager
def _arrays(folders: Sequence[Path]) -> Iterator[list[tuple[Region, PersistentArray, str]]]:
    """An array on each kind of medium and with each write-back instruction that is used there."""
    found: list[tuple[Region, PersistentArray, str]] = []
    seen: set[Granularity] = set()
    temporary: list[tempfile.TemporaryDirectory[str]] = []
    try:
        for folder in folders:
            temporary.append(tempfile.TemporaryDirectory(prefix="plinius-sps-", dir=folder))
            path = Path(temporary[-1].name) / "sps.region"
            with Region.create(path, 0, _TWIN_BYTES) as region:
                kind = region.granularity
                if kind in seen:
                    continue
                seen.add(kind)
                PersistentArray.create(region, "sps", ELEMENTS)[:] = np.arange(ELEMENTS)
            for pwb in ["msync"] if kind is Granularity.PAGE else pwb_names():
                found.append(_opened(path, pwb))
        yield found
    finally:
        for region, _, _ in found:
            region.close()
        for folder_made in temporary:
            folder_made.cleanup()


def _opened(path: Path, pwb: str) -> tuple[Region, PersistentArray, str]:
    """The region's file, mapped for one write-back instruction."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    medium = open_medium(fd, pwb=None if pwb == "msync" else pwb)
    region = Region(medium, str(path))
    return region, PersistentArray.open(region, "sps"), pwb
