"""The newest state in a region, for those who only read it."""

from pathlib import Path

from plinius.errors import MismatchError
from plinius.keys import OwnerKey, require_key
from plinius.pm.region import Region
from plinius.slots.protocol import Slots
from plinius.snapshot import Snapshot


def newest_snapshot(region: Path, key: OwnerKey) -> Snapshot:
    """The newest committed state of a region, opened read-only: nothing is written.

    Raises MismatchError if there is none, and what `Region.open`, `Slots.open` and
    `Slots.snapshot` raise.
    """
    require_key(key)
    with Region.open(region, writable=False) as opened:
        snapshot = read_snapshot(opened, key)
    if snapshot is None:
        raise MismatchError(f"{region} holds no mirrored run", "Train one first: plinius train")
    return snapshot


def read_snapshot(region: Region, key: OwnerKey) -> Snapshot | None:
    """The newest committed state of an open region, or None before the first commit."""
    require_key(key)
    slots = Slots.open(region, key)
    manifest = slots.newest() if slots else None
    if slots is None or manifest is None:
        return None
    snapshot = slots.snapshot(manifest)
    slots.close()
    return snapshot
