"""The committed vectors of the region and mirror formats: they hold whatever the code becomes."""

import json
from pathlib import Path
from typing import Any

import pytest

from crash.mirrors import newest
from plinius.errors import PliniusError
from plinius.keys import OwnerKey
from plinius.pm.region import Region
from plinius.slots import Slots
from plinius.structures.persistent_array import PersistentArray
from plinius.structures.stack_and_queue import PersistentQueue, PersistentStack

FOLDER = Path(__file__).parent / "formats" / "region"
CASES = json.loads((FOLDER / "cases.json").read_text(encoding="utf-8"))
KEY = OwnerKey(bytes(range(32)))
DIGESTS = {
    "good.region": "8f17671161529efaf47c4ba5ab5974cc65800962c73b829c1bd801bce92b1cba",
    "good-unchanged.region": "f8e5008fe244b346838a862c9fae0d014fe85f8ecef0cc474929fba1aa8a8e3e",
}


def image_of(case: dict[str, Any]) -> bytes:
    """The file of a case: a good one, cut or lengthened with zeros, and changed."""
    image = bytearray((FOLDER / case["of"]).read_bytes())
    size = case.get("size", len(image))
    image = image[:size].ljust(size, b"\0")
    for at, new in case["changes"]:
        image[at : at + len(new) // 2] = bytes.fromhex(new)
    return bytes(image)


def opened(path: Path) -> tuple[str, int] | str:
    """The digest and iteration of the newest state, or what is missing.

    The root of good.region is there too, in either twin.
    """
    with Region.open(path) as region:
        region.consistency_check()
        for root in region.heap.roots().values():
            assert region.twins.read(root.offset, root.length) == b"sixteen bytes ok"
        mirror = Slots.open(region, KEY)
        if mirror is None:
            return "no mirror"
        snapshot = newest(mirror)
        return "no commit" if snapshot is None else (snapshot.digest(), snapshot.iteration)


@pytest.mark.parametrize("name", DIGESTS)
def test_a_good_region_opens_to_its_known_state(name: str, tmp_path: Path) -> None:
    """Files of today's versions stay readable."""
    path = tmp_path / "r"
    path.write_bytes((FOLDER / name).read_bytes())
    assert opened(path) == (DIGESTS[name], 2)


def test_the_root_of_the_good_region_is_there() -> None:
    """What it holds is compared whenever a region is opened here."""
    with Region.open(FOLDER / "good.region", writable=False) as region:
        assert [*region.heap.roots()] == ["words"]


def test_a_chunk_of_an_older_commit_is_in_a_vector() -> None:
    """Commit 1 sealed the one chunk of commit 3."""
    with Region.open(FOLDER / "good-unchanged.region", writable=False) as region:
        mirror = Slots.open(region, KEY)
        assert mirror is not None
        manifest = mirror.newest()
        assert manifest is not None
        assert (manifest.commit, manifest.sealed_by) == (3, [1])


def test_the_good_structures_hold_what_the_page_says() -> None:
    """docs/formats/structures.md, Vectors."""
    with Region.open(FOLDER / "good-structures.region", writable=False) as region:
        assert PersistentArray.open(region, "numbers")[:].tolist() == [1, -2, 2**62]
        assert PersistentArray.open(region, "rates")[:].tolist() == [0.5, -1.0]
        assert PersistentStack.open(region, "texts").items() == [b"twelve bytes", b"", b"one"]
        assert PersistentQueue.open(region, "jobs").items() == [20, -30]
        assert PersistentQueue.open(region, "empty").items() == []


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_each_named_case_ends_as_written(case: dict[str, Any], tmp_path: Path) -> None:
    """Opens or recovers to the good state, or is refused with its sentence."""
    image, path = image_of(case), tmp_path / "r"
    path.write_bytes(image)
    if case["ends"] in ("opens", "no mirror", "no commit"):
        good = (DIGESTS[case["of"]], 2)
        assert opened(path) == (good if case["ends"] == "opens" else case["ends"])
        return
    with pytest.raises(PliniusError) as refusal:
        opened(path)
    assert case["ends"] in str(refusal.value)
    assert path.read_bytes() == image
