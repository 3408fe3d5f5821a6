"""The anchor of a mirror: a place outside the region that remembers the newest commit.

Invariants (proofs: tests/trust/test_anchoring.py):

1. After commit N is durable, and N is `every` beyond the newest point that the anchor has
   acknowledged, it is advanced to N, beside training.
2. No commit is made that would be more than `every` beyond the acknowledged point.
3. The sealed manifest of a commit names the point that was acknowledged when it was made.
4. The anchor is advanced only to commits that were made here, or restored here after a check.

So what a mirror can have is: the commit that the anchor knows, or one that is at most `every`
newer and names that commit. Everything else is refused: an older one was rolled back, another one
is a fork.
"""

import dataclasses
import logging
from typing import NamedTuple, Protocol

from plinius.errors import AnchorError, PliniusError
from plinius.jsonvalue import Json
from plinius.mirror.background import Background
from plinius.slots import Manifest, Slots
from plinius.snapshot import Snapshot

_log = logging.getLogger("plinius")
_NAME = "anchor"


class Point(NamedTuple):
    """A commit: its number, and its digest (64 hex digits), which names all commits before it."""

    commit: int
    digest: str


class Anchor(Protocol):
    """What remembers the newest commit of one run. All methods raise AnchorError to stop the run.

    `every` is the exposure: so many commits may be lost to a rollback that is not noticed.
    `accept_rollback` says that a person accepts a mirror that is not the newest.
    """

    every: int
    accept_rollback: bool

    def begin(self, run_id: str) -> tuple[int, str] | None:
        """Make this trainer the only one of its run; the newest point, None if there is none."""

    def advance(self, old: tuple[int, str] | None, new: tuple[int, str]) -> None:
        """Durably replace the newest point `old` by `new`. A second call with both does nothing."""

    def rewind(self, old: tuple[int, str] | None, new: tuple[int, str] | None) -> None:
        """Durably replace a newest point that was given up, if the owner allows it."""


class Anchoring:
    """The use of an anchor by one mirror; without an anchor, all methods do nothing.

    Raises AnchorError if the region holds no mirror, and the anchor knows one.
    """

    def __init__(self, anchor: Anchor | None, slots: Slots, name: str) -> None:
        self._anchor, self._slots, self._name = anchor, slots, name
        self._unsure = False
        self._mine = False  # whether the newest commit was made here, after the last check
        self._background: Background | None = None
        if anchor is None:
            return
        newest = anchor.begin(slots.run_id.hex())
        self._acknowledged = Point(*newest) if newest else None
        self._background = Background("plinius-anchor")
        if slots.commits == 0:
            self.check(None)

    def check(self, manifest: Manifest | None) -> None:
        """Raise AnchorError unless the run may continue from this commit, or from none."""
        anchor = self._anchor
        if anchor is None:
            return
        self._mine = False
        self._wait()
        newest = self._acknowledged
        found = Point(manifest.commit, manifest.digest) if manifest else None
        why = _objection(newest, found, manifest, anchor.every)
        if why is None:
            return
        if not anchor.accept_rollback:
            raise AnchorError(
                f"The mirror in {self._name} {why}",
                "Restore the newest copy of the region; to go on from this one, knowingly, train "
                "with --accept-rollback",
            )
        anchor.rewind(newest, found)
        self._acknowledged = found
        _log.warning("ROLLBACK ACCEPTED: the mirror in %s %s", self._name, why)

    def require_return(self, commit: int) -> None:
        """Raise AnchorError unless the run may go back to an older state: a rollback, in effect."""
        anchor = self._anchor
        if anchor is None:
            return
        if not anchor.accept_rollback:
            raise AnchorError(
                f"Going back to commit {commit} of the mirror in {self._name} would be a rollback",
                "To accept it, knowingly, train with --accept-rollback",
            )
        anchor.rewind(self._acknowledged, self._acknowledged)  # refused if the owner allows none
        _log.warning("ROLLBACK ACCEPTED: the mirror in %s goes to commit %d", self._name, commit)

    def before_commit(self, snapshot: Snapshot) -> Snapshot:
        """Wait until one more commit is within the exposure; the snapshot that names the anchor."""
        anchor = self._anchor
        if anchor is None:
            return snapshot
        self._wait()
        if self._unsure:  # the last commit ended early: only now it is known whether it counts
            self._slots.newest()
        self._unsure = True
        if self._slots.commits + 1 > _number(self._acknowledged) + anchor.every:
            self._advance()
        point = self._acknowledged
        named: Json = None if point is None else [point.commit, point.digest]
        return dataclasses.replace(snapshot, environment={**snapshot.environment, _NAME: named})

    def after_commit(self) -> None:
        """Advance the anchor beside training, if it is due."""
        if self._anchor is None or self._background is None:
            return
        self._unsure, self._mine = False, True
        if self._slots.commits >= _number(self._acknowledged) + self._anchor.every:
            self._background.begin(self._advance)

    def close(self) -> None:
        """Advance the anchor to the last commit. Raises AnchorError if it refuses."""
        if self._background is None:
            return
        try:
            self._wait()
            if self._mine and not self._unsure:  # never to a commit that was refused here
                self._advance()
        finally:
            self._background.close()
            self._background = None

    def _wait(self) -> None:
        assert self._background is not None
        try:
            self._background.wait()
        except PliniusError:
            self._mine = False
            raise

    def _advance(self) -> None:
        """Advance the anchor to the newest commit."""
        assert self._anchor is not None
        assert self._slots.digest is not None
        new = Point(self._slots.commits, self._slots.digest)
        if new.commit > 0 and new != self._acknowledged:
            self._anchor.advance(self._acknowledged, new)
            self._acknowledged = new


def _number(point: Point | None) -> int:
    return point.commit if point else 0


def _objection(
    newest: Point | None, found: Point | None, manifest: Manifest | None, every: int
) -> str | None:
    """Why a run may not continue from commit `found`, where the anchor knows `newest`."""
    if found == newest:
        return None
    if found is None:
        assert newest is not None
        return f"was rolled back: it has no commit, and its anchor knows commit {newest.commit}"
    if found.commit < _number(newest):
        return (
            f"was rolled back: it is at commit {found.commit}, and its anchor knows commit "
            f"{_number(newest)}"
        )
    if newest is not None and found.commit == newest.commit:
        return f"is a fork: its commit {found.commit} is not the one that its anchor knows"
    assert manifest is not None
    named = manifest.environment.get(_NAME)
    if named != (None if newest is None else [newest.commit, newest.digest]):
        return f"is a fork: its commit {found.commit} does not follow the one its anchor knows"
    if found.commit > _number(newest) + every:
        return (
            f"is at commit {found.commit}, more than {every} beyond commit {_number(newest)}, "
            "which its anchor knows"
        )
    return None
