"""The sealed slots of a run's state, without torch: layout, chunks, workers, manifest, protocol."""

from plinius.slots.manifest import Manifest
from plinius.slots.newest_commit import newest_snapshot, read_snapshot
from plinius.slots.protocol import Slots

__all__ = ["Slots", "Manifest", "newest_snapshot", "read_snapshot"]
