"""A state in a region, for those who only read it: the newest, or a kept one."""

from pathlib import Path

from plinius.errors import MismatchError, SealError
from plinius.history.kept_commits import choose, does_not_open, genuine, open_kept
from plinius.history.live_region import read_region
from plinius.keys import OwnerKey, require_key
from plinius.pm.region import Region
from plinius.slots import Slots
from plinius.snapshot import Snapshot


def snapshot_of(path: Path, key: OwnerKey, commit: str = "newest") -> Snapshot:
    """The state of a commit: "newest", or the name or number of a kept one; nothing is written.

    The region may be in use. Raises MismatchError if there is no such commit, and what
    `read_region`, `Slots.open` and `Slots.snapshot` raise.
    """
    require_key(key)

    def read(region: Region) -> Snapshot:
        slots = Slots.open(region, key)
        newest = slots.newest() if slots else None
        if slots is None or newest is None:
            raise MismatchError(f"{path} holds no mirrored run", "Train one first: plinius train")
        found = genuine(region, newest) if commit != "newest" else {}
        chosen = choose(region, newest, found, commit)
        if chosen is None:
            return slots.snapshot(newest)
        reader, manifest = open_kept(region, key, *chosen)
        try:
            return reader.snapshot(manifest)
        except SealError:
            raise does_not_open(region, chosen[0]) from None

    return read_region(path, read)
