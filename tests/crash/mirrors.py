"""Small regions with a mirror or a dataset, and what must be found in them."""

import functools
from pathlib import Path

import numpy as np

from crash.regions import owned_once
from plinius.data.dataset_extent import EXTENT, open_dataset
from plinius.data.records import Array, ArraySpec, Source
from plinius.data.sealed_dataset import seal_dataset
from plinius.errors import SealError
from plinius.jsonvalue import Json
from plinius.keys import OwnerKey
from plinius.pm.medium import PAGE, Medium
from plinius.pm.region import Region, format_region
from plinius.slots import Slots
from plinius.slots.layout import EXTENT as MIRROR
from plinius.slots.layout import header_bytes, layout_for
from plinius.snapshot import Snapshot, TensorBytes
from plinius.testing import PlainMedium

KEY = OwnerKey(bytes(range(32)))
TWIN = 16 * 1024


def state(
    iteration: int, *, larger: int = 0, frozen: bool = False, of: int = 0x77, told: int = 0
) -> Snapshot:
    """A small run state; `larger` adds bytes to one of its tensors, `told` to its values.

    With `frozen`, another tensor is the same for every iteration, and says what it is `of`.
    """
    tensors = [
        TensorBytes(name, "uint8", (size,), memoryview(bytes([iteration + 1]) * size))
        for name, size in (("w", 640), ("v", 640 + larger), ("b", 4), ("c", 5), ("e", 0))
    ]
    if frozen:
        unchanged = memoryview(bytes([of]) * 700)
        tensors[0] = TensorBytes("w", "uint8", (700,), unchanged)
    values: dict[str, Json] = {"average_loss": 0.5, "told": "x" * told}
    versions = [of, None, None, None, None] if frozen else None
    return Snapshot(iteration, tuple(tensors), values, {}, {}, versions)


@functools.cache
def empty_region() -> bytes:
    medium = PlainMedium(bytes(PAGE + 2 * TWIN))
    format_region(medium, TWIN)
    return bytes(medium.bytes)


@functools.cache
def mirrored(commits: int) -> bytes:
    """A region whose mirror holds states 0 to commits - 1; with 0 it has no mirror yet."""
    medium = PlainMedium(empty_region())
    slots = Slots.create(Region(medium, "r"), KEY)
    for iteration in range(commits):
        slots.write(state(iteration))
    return bytes(medium.bytes)


def newest(slots: Slots, *, accept_previous: bool = False) -> Snapshot | None:
    """The newest state; the slots continue from it."""
    manifest = slots.newest()
    if manifest is None:
        return None
    try:
        return slots.snapshot(manifest)
    except SealError:
        before = slots.before_newest() if accept_previous else None
        if before is None:
            raise
        return slots.snapshot(before)


@functools.cache
def with_empty_slots() -> bytes:
    """A region with slots and no commit, as releases left it that made slots before the first."""
    medium = PlainMedium(empty_region())
    layout = layout_for(state(0).tensors, 0, 1000)

    def write(medium: Medium, at: int) -> None:
        medium.write(at, header_bytes(bytes(range(16)), KEY.id, layout))

    Region(medium, "r").add_extent(MIRROR, layout.length, write)
    return bytes(medium.bytes)


def opened(medium: Medium, key: OwnerKey = KEY) -> tuple[Slots, Snapshot | None]:
    """The slots of a region, or those of a new run, and their newest state."""
    region = Region(medium, "r")
    slots = Slots.open(region, key) or Slots.create(region, key)
    return slots, newest(slots)


def digest_in(image: bytes) -> str | None:
    """The digest of the newest state in an image; None before the first commit."""
    _, snapshot = opened(PlainMedium(image))
    return snapshot.digest() if snapshot else None


def sealed_numbers(folder: Path, count: int = 12, length: int = 700) -> Path:
    """A sealed dataset of a few pages, whose records' bytes are their numbers."""
    source = Source(
        "numbers", count, ArraySpec(np.dtype("u1"), (length,)), ArraySpec(np.dtype("<i8"), ()),
        lambda: ((np.full(length, i, "u1"), np.array(i, "<i8")) for i in range(count)),
    )  # fmt: skip
    path = folder / "numbers.sealed"
    seal_dataset(source, KEY, path)
    return path


def loaded(image: bytes) -> bool:
    """Whether there is a dataset in an image; if so, all of it must open."""
    medium = PlainMedium(image)
    region = Region(medium, "r")
    owned_once(medium.bytes)
    if region.extent(EXTENT) is None:
        return False
    dataset = open_dataset(region, KEY)
    samples, labels = dataset.open_batch(range(dataset.header.count))
    assert same(labels, np.arange(dataset.header.count))
    assert all(same(sample, np.full(len(sample), i)) for i, sample in enumerate(samples))
    return True


def same(found: Array, wanted: Array) -> bool:
    return bool((found == wanted).all())
