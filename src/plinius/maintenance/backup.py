"""A copy of a region that is consistent, also while a run uses it.

Extents but the mirror do not change once they have their name (dataset, kept commits). Of the
mirror, the newest committed slot is not written to until one more commit is made. So the commit
words are read before and after it is copied: if the newest commit is the same then, its slot was
whole. What is copied of the other slot may be half of a next commit, as after a kill.
"""

import time
from pathlib import Path
from typing import BinaryIO, NamedTuple

from plinius.data.records import Progress
from plinius.errors import RegionBusyError, RegionError
from plinius.files import publish
from plinius.history.live_region import open_unlocked
from plinius.pm.heap import Span
from plinius.pm.medium import PAGE
from plinius.pm.region import Region
from plinius.pm.romulus import TwinState
from plinius.slots.layout import EXTENT, commit_word, read_counters, read_header

ATTEMPTS = 200
_BLOCK_BYTES = 4 << 20
_STATE_AT = 64


class Copied(NamedTuple):
    """What a backup holds: the number of its newest commit (0 without a mirror), and its bytes."""

    commit: int
    nbytes: int


def backup(path: Path, destination: Path, progress: Progress) -> Copied:
    """Copy a region to a new file, which appears complete or not at all.

    It is the region as it was at one commit; the lock of a trainer is not needed. `progress` counts
    bytes. Raises StorageError if the file exists or cannot be written, RegionBusyError if the run
    commits faster than it can be copied, and what `Region.open` raises.
    """
    last: RegionError | None = None
    with publish(destination) as file:
        copy = _Copy(file, progress)
        for attempt in range(ATTEMPTS):
            try:
                with open_unlocked(path) as region:
                    found = copy.of(region)
                if found is None:
                    found = _at_rest(path, copy)
            except RegionError as error:  # of a moment during a change, or real
                last, found = error, _at_rest(path, copy)
            if found is not None:
                return found
            time.sleep(min(0.1, 0.002 * attempt))
    raise last or RegionBusyError(
        f"The run in {path} commits faster than the region can be copied",
        "Mirror less often for a moment, or stop the run and copy the region then",
    )


def _at_rest(path: Path, copy: "_Copy") -> Copied | None:
    """The copy of a region that no process writes to, in whatever state it was left; else None."""
    try:
        with Region.open(path, writable=False) as region:
            return copy.of(region, at_rest=True)
    except RegionBusyError:
        return None


class _Copy:
    """The file that is written, in one attempt or in several."""

    def __init__(self, file: BinaryIO, progress: Progress) -> None:
        self._file, self._progress = file, progress
        self._copied: set[tuple[str, Span, bytes]] = set()
        self._done = 0

    def of(self, region: Region, *, at_rest: bool = False) -> Copied | None:
        """One attempt; None if the region changed meanwhile. `at_rest` says that it cannot."""
        structure = _structure(region, at_rest)
        if structure is None:
            return None
        extents = region.heap.extents()
        total = region.heap.region_bytes
        self._file.truncate(total)
        self._done, self._total = 0, total
        mirror = extents.pop(EXTENT, None)
        marks = _marks(region, extents)
        self._copied &= marks  # what an earlier attempt copied need not be copied again
        for name, span, head in marks - self._copied:
            self._put_span(region, span)
            self._copied.add((name, span, head))
        commit = 0
        if mirror is not None:
            run_id, _, layout = read_header(region, mirror)
            counters = read_counters(region, run_id, layout)
            commit = max(counters)
            self._put_span(region, Span(layout.slot(commit), layout.slot_bytes))
            if max(read_counters(region, run_id, layout)) != commit:
                return None
        now = region.heap.extents()
        if now.pop(EXTENT, None) != mirror or _marks(region, now) != marks:
            return None
        if mirror is not None:
            self._put_span(region, Span(mirror.offset, PAGE))
            self._put_span(region, Span(layout.slot(commit + 1), layout.slot_bytes))
            for slot, number in enumerate(counters):
                word = commit_word(run_id, number) if number else 0
                self._put(layout.slot(slot), word.to_bytes(8, "little"))
        self._put(0, structure)
        self._progress(total, total)
        return Copied(commit, total)

    def _put_span(self, region: Region, span: Span) -> None:
        for start in range(span.offset, span.end, _BLOCK_BYTES):
            block = memoryview(bytearray(min(_BLOCK_BYTES, span.end - start)))
            region.medium.read_into(start, block)
            self._put(start, block)
            self._done += len(block)
            self._progress(min(self._done, self._total), self._total)

    def _put(self, at: int, data: bytes | memoryview) -> None:
        self._file.seek(at)
        self._file.write(data)


def _marks(region: Region, extents: dict[str, Span]) -> set[tuple[str, Span, bytes]]:
    """What tells an extent that is not the mirror from another one in its place: its first page."""
    return {
        (name, span, bytes(region.medium.read(span.offset, min(PAGE, span.length))))
        for name, span in extents.items()
    }


def _structure(region: Region, at_rest: bool) -> bytes | None:
    """Header and twins of a region; None while a transaction may be under way."""
    twin = region.twins.length
    raw = bytes(region.medium.read(0, PAGE + 2 * twin))
    idle = raw[_STATE_AT : _STATE_AT + 8] == TwinState.IDLE.value
    return raw if at_rest or (idle and raw[PAGE : PAGE + twin] == raw[PAGE + twin :]) else None
