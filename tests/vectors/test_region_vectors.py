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

FOLDER = Path(__file__).parent / "formats" / "region"
CASES = json.loads((FOLDER / "cases.json").read_text(encoding="utf-8"))
KEY = OwnerKey(bytes(range(32)))
DIGEST = "8f17671161529efaf47c4ba5ab5974cc65800962c73b829c1bd801bce92b1cba"


def opened(path: Path) -> tuple[str, int, bytes]:
    """The digest and iteration of the newest state, and the bytes behind the one root."""
    with Region.open(path) as region:
        region.consistency_check()
        mirror = Slots.open(region, KEY)
        assert mirror is not None
        snapshot = newest(mirror)
        assert snapshot is not None
        root = region.heap.roots()["words"]
        return snapshot.digest(), snapshot.iteration, region.twins.read(root.offset, root.length)


def test_the_good_region_opens_to_its_known_state(tmp_path: Path) -> None:
    """Files of today's versions stay readable."""
    path = tmp_path / "r"
    path.write_bytes((FOLDER / "good.region").read_bytes())
    assert opened(path) == (DIGEST, 2, b"sixteen bytes ok")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_each_named_case_ends_as_written(case: dict[str, Any], tmp_path: Path) -> None:
    """Recovered to the good state, or refused with its sentence."""
    image = bytearray((FOLDER / "good.region").read_bytes())
    for at, new in case["changes"]:
        image[at : at + len(new) // 2] = bytes.fromhex(new)
    path = tmp_path / "r"
    path.write_bytes(image)
    if case["ends"] == "opens":
        assert opened(path) == (DIGEST, 2, b"sixteen bytes ok")
        return
    with pytest.raises(PliniusError) as refusal:
        opened(path)
    assert case["ends"] in str(refusal.value)
    assert path.read_bytes() == bytes(image)
