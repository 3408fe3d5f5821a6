"""Giving a region's dead space back to the file system."""

import os
from pathlib import Path
from typing import NamedTuple

from plinius.errors import MismatchError
from plinius.history.kept_commits import PREFIX, kept_names
from plinius.pm.medium import PAGE, round_up
from plinius.pm.region import Region


class Compacted(NamedTuple):
    """Names of kept commits that were dropped, and storage of the file in bytes."""

    dropped: list[str]
    before: int
    after: int


def compact(path: Path, drop: list[str]) -> Compacted:
    """Drop kept commits by name, then release all storage that no extent uses.

    The file keeps its length, with holes; a file system without holes keeps the storage. A stop at
    any instant leaves a valid region. Raises MismatchError, changing nothing, for a name that is
    not kept, and what `Region.open` raises.
    """
    with Region.open(path) as region:
        kept = kept_names(region)
        for name in drop:
            if name not in kept:
                raise MismatchError(
                    f"{path} keeps no commit {name[:40]}",
                    "Choose one of those that plinius region log lists",
                )
        before = _storage(path)
        for name in drop:
            region.drop_extent(PREFIX + name)
        start = PAGE + 2 * region.twins.length
        for span in sorted(region.heap.extents().values(), key=lambda span: span.offset):
            region.medium.release(start, span.offset - start)
            start = round_up(span.end, PAGE)
        region.medium.release(start, region.heap.region_bytes - start)
        return Compacted(drop, before, _storage(path))


def _storage(path: Path) -> int:
    """Bytes of storage that a file takes."""
    return 512 * os.stat(path).st_blocks
