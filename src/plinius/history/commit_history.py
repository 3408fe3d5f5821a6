"""The history of one mirror: what it keeps beside the newest commit, and when it went back.

Invariants (proofs: tests/crash/test_kept_stops.py, tests/unit/test_history.py):

1. A kept commit gets its name when its copy is whole and durable, in one transaction of the
   region; one of the same name is replaced by the same transaction.
2. An older one is dropped only when the new one has its name. So a stop at any instant leaves the
   kept commits of before, or those and the new one.
3. The next commit names all kept commits with their digests. Until then the new one is a copy of
   the newest commit, which vouches for it (kept_commits.py).
4. Going back makes a new commit of an older state: counter and digests go on, so it is no rollback
   of the mirror, and each later commit says that it happened.
"""

import dataclasses
import logging
import re
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

from plinius.errors import MismatchError, RegionFullError, SealError, StateError, StorageError
from plinius.history.kept_commits import (
    ENVIRONMENT,
    PREFIX,
    choose,
    does_not_open,
    fill_of,
    genuine,
    kept_names,
    open_kept,
)
from plinius.history.restarts import Restarts
from plinius.keys import OwnerKey
from plinius.pm.medium import PAGE, round_up
from plinius.pm.region import Region
from plinius.slots import Manifest, Slots
from plinius.slots.layout import EXTENT, read_header
from plinius.snapshot import Snapshot

MOST_KEPT = 16
"""A region has 32 extents; the mirror, the dataset, kept names and others need some of them."""
_WENT_BACK = "went_back"
_MOST_RETURNS = 100
_NAME = re.compile("[a-z][a-z0-9_-]{0,31}")

_log = logging.getLogger("plinius")


class Return(NamedTuple):
    """That the run went back: from a commit and its iteration to an older commit's."""

    from_commit: int
    from_iteration: int
    to_commit: int
    to_iteration: int


class OpenedCommit(NamedTuple):
    """A kept commit: its manifest, and what opens its tensors into memory of their sizes."""

    manifest: Manifest
    read: Callable[[Sequence[memoryview]], None]


class CommitHistory:
    """Keeps the last `keep` commits of the iterations that `every` divides, and named ones."""

    def __init__(self, region: Region, slots: Slots, key: OwnerKey, keep: int, every: int) -> None:
        self._region, self._slots, self._key = region, slots, key
        self._keep, self._every = keep, every
        self._iteration = 0
        self._named: dict[str, tuple[int, str]] = {}
        self._returns: list[Return] = []
        self._restarts = Restarts()
        self._must_recover = False

    @property
    def returns(self) -> list[Return]:
        """How often the run went back, the oldest first (at most the last 100)."""
        return list(self._returns)

    def resume(self, newest: Manifest) -> None:
        """Take over the history of the commit that the run continues from."""
        self._iteration = newest.iteration
        self._returns = returns_of(newest)
        self._restarts = Restarts.of(newest)
        self._restarts.restarted(newest)
        self._named = {
            name: (kept.commit, digest)
            for name, (kept, digest) in genuine(self._region, newest).items()
        }

    def open_kept(
        self, newest: Manifest | None, to: int | str
    ) -> tuple[Manifest, OpenedCommit | None]:
        """The newest commit, and the kept one of an iteration, name or number; None if it is it.

        Of several kept commits of one iteration it is the newest. Raises MismatchError if there is
        none, SealError, FormatError.
        """
        region = self._region
        if newest is None:
            raise MismatchError(
                f"{region.name} has no commit to go back to", "Train there first: plinius train"
            )
        self.resume(newest)
        found = genuine(region, newest)
        if isinstance(to, int):
            at = [kept.commit for kept, _ in found.values() if kept.iteration == to]
            at += [newest.commit] if newest.iteration == to else []
            if not at:
                raise MismatchError(
                    f"{region.name} keeps no commit of iteration {to}",
                    "Choose one of those that plinius region log lists with the key",
                )
            to = str(max(at))
        chosen = choose(region, newest, found, to)
        if chosen is None:
            return newest, None
        reader, manifest = open_kept(region, self._key, *chosen)

        def read(outs: Sequence[memoryview]) -> None:
            try:
                reader.read(manifest, outs)
            except SealError:
                raise does_not_open(region, chosen[0]) from None

        return newest, OpenedCommit(manifest, read)

    def went_back(self, newest: Manifest, to: Manifest) -> None:
        """The run continues with the state of an older commit: the next commits say so."""
        entry = Return(newest.commit, newest.iteration, to.commit, to.iteration)
        self._returns = [*self._returns, entry][-_MOST_RETURNS:]
        self._iteration = to.iteration
        _log.warning("WENT BACK from commit %d (iteration %d) to commit %d (iteration %d)", *entry)

    def before_commit(self, snapshot: Snapshot) -> Snapshot:
        """The snapshot with its past: the restarts, the kept commits, when the run went back."""
        added = self._restarts.environment(self._slots)
        if self._named:
            added[ENVIRONMENT] = {name: [*entry] for name, entry in self._named.items()}
        if self._returns:
            added[_WENT_BACK] = [[*entry] for entry in self._returns]
        return dataclasses.replace(snapshot, environment={**snapshot.environment, **added})

    def after_commit(self, iteration: int) -> None:
        """Keep the commit that was just made, if it is one to keep."""
        self._iteration = iteration
        if self._keep and iteration % self._every == 0:
            self._keep_as(str(self._slots.commits), self._prune)

    def keep(self, name: str) -> bool:
        """Keep the newest commit under a name; one kept under it before is replaced.

        False if the storage has no room: that is logged, and the one before stays. Raises
        StateError for what is no name, or before the first commit.
        """
        if not isinstance(name, str) or not _NAME.fullmatch(name) or name == "newest":
            raise StateError(
                f"{str(name)[:40]!r} is no name for a commit",
                "Give a word of 1 to 32 small letters, digits, - and _, such as best",
            )
        if self._slots.commits == 0:
            raise StateError("There is no commit to keep yet", "Call mirror_out before keep")
        return self._keep_as(name)

    def _keep_as(self, name: str, then: Callable[[], None] = lambda: None) -> bool:
        commit, digest = self._slots.commits, self._slots.digest
        assert digest is not None
        if self._named.get(name) == (commit, digest):
            return True
        try:
            if self._must_recover:
                self._region.recover()
            self._must_recover = True  # unless all of it is done
            self._copy(name, commit)
            self._named[name] = (commit, digest)
            then()
            self._must_recover = False
        except (StorageError, RegionFullError) as error:
            _log.warning("Commit %d is not kept as %s: %s", commit, name, error)
            return False
        return True

    def _copy(self, name: str, commit: int) -> None:
        region, extent = self._region, PREFIX + name
        span = region.extent(EXTENT)
        assert span is not None
        run_id, key_id, layout = read_header(region, span)
        fill = fill_of((run_id, key_id), layout, commit, self._iteration, int(time.time()))
        length = PAGE + layout.slot_bytes
        if region.extent(extent):
            region.replace_extent(extent, length, fill)
        else:
            region.add_extent(extent, length, fill)

    def _prune(self) -> None:
        """Drop the oldest numbered ones, and those that are not of this run's line."""
        numbers = sorted((commit, name) for name, (commit, _) in self._named.items())
        for _, name in [one for one in numbers if one[1].isdigit()][: -self._keep]:
            del self._named[name]
        for name, span in kept_names(self._region).items():
            if name.isdigit() and name not in self._named:
                self._region.drop_extent(PREFIX + name)
                self._region.medium.release(span.offset, round_up(span.length, PAGE))


def returns_of(manifest: Manifest) -> list[Return]:
    """The returns that a manifest lists; it is authenticated, and what is no return is left out."""
    listed = manifest.environment.get(_WENT_BACK)
    return [
        Return(*cast(list[int], entry))
        for entry in (listed if isinstance(listed, list) else [])
        if isinstance(entry, list) and len(entry) == 4 and all(type(n) is int for n in entry)
    ]
