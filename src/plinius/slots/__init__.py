"""The sealed slots of a run's state, without torch: layout, chunks, workers, manifest, protocol."""

from plinius.slots.layout import describe_mirror
from plinius.slots.manifest import Manifest
from plinius.slots.protocol import Slots
from plinius.slots.reader import newest_snapshot, read_snapshot

__all__ = ["Slots", "Manifest", "newest_snapshot", "read_snapshot", "describe_mirror"]
