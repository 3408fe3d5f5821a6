"""What several of the unit tests stand on."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from plinius.pm.region import Region
from unit.regions import TWIN, plain


@pytest.fixture(params=["disk", "memory", "one by one"])
def region(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Region]:
    """On each kind of file, and on a medium that knows no lists."""
    if request.param == "one by one":
        yield plain()
        return
    folder = tmp_path if request.param == "disk" else Path("/dev/shm")
    path = folder / f"plinius-test-{tmp_path.name}-{random.randrange(10**9)}"
    with Region.create(path, 0, TWIN) as opened:
        yield opened
    path.unlink()
