"""The mirror: with three lines a training loop can be resumed, bit for bit.

mirror = Mirror.open(path, key, state={"model": model, "optimizer": optimizer})
start = mirror.mirror_in()
...
    mirror.mirror_out(iteration)
"""

import logging
import threading
import weakref
from collections.abc import MutableMapping
from functools import partial
from pathlib import Path
from typing import Any, Self, SupportsIndex, cast

import torch

from plinius.errors import PliniusError, RegionError, RegionFullError, SealError, StorageError
from plinius.history.commit_history import CommitHistory, OpenedCommit, Return
from plinius.jsonvalue import Json
from plinius.keys import OwnerKey, require_key
from plinius.mirror import checks, open_mirrors
from plinius.mirror.anchoring import Anchor, Anchoring
from plinius.mirror.background import Background
from plinius.mirror.options import MirrorOptions
from plinius.mirror.own_loops import INEXACT, inexactness, require_one_process
from plinius.mirror.run_identity import (
    plain_identity,
    require_names,
    require_run_id,
    require_same_run,
)
from plinius.pm.region import Region
from plinius.slots import Manifest, Slots
from plinius.snapshot import Snapshot
from plinius.state.capture import CapturedState, RunState
from plinius.state.restore import restore

_log = logging.getLogger("plinius")


class Mirror:
    """The sealed mirror of a run: `mirror_out` commits the state, `mirror_in` restores it exactly.

    `state` holds the objects by name: objects with state_dict and load_state_dict, tensors, NumPy
    arrays, generators, numbers, strings, and containers of them. What cannot be changed in place
    (numbers, strings, a tensor of another shape) is written into `state` by `mirror_in`: read it
    from there. The states of the global random number generators of Python, NumPy and torch are
    stored too; of a module also its gradients, its modes and its buffers that are not persistent.

    One call at a time: other threads wait, and a call from within one (a signal handler) is
    refused.
    """

    def __init__(
        self,
        region: Region,
        key: OwnerKey,
        state: MutableMapping[str, Any],
        options: MirrorOptions,
    ) -> None:
        """Use `open`."""
        require_key(key)
        require_names(state)
        self._region, self._owns_region = region, False
        self._lock, self._closing, self._closed = threading.RLock(), False, False
        self._identity = plain_identity(options.identity)
        self._inexact_since: int | None = None
        self._not_bit_exact: str | None = None
        self._failure: PliniusError | None = None
        self._committed: int | None = None
        self._sealed_bytes = 0
        self._background: Background | None = None
        self._abandoned: weakref.finalize[[], Self] | None = None
        self._state = RunState(
            state,
            trust_versions=options.trust_versions,
            only_steps_write=options.only_steps_write,
            before_step=self._wait_for_commit,
        )
        threads = options.threads or (1 if options.overlap else torch.get_num_threads())
        slots = Slots.open(region, key, threads)
        if options.run_id is not None:
            require_run_id(options.run_id, slots, region.name)
        self._slots = slots or Slots.create(region, key, threads)
        self._ready = self._slots.commits == 0
        self._anchoring = Anchoring(options.anchor, self._slots, region.name)
        self._history = CommitHistory(region, self._slots, key, options.keep, options.keep_every)
        self._background = Background("plinius-mirror") if options.overlap else None

    @classmethod
    def open(
        cls,
        region: str | Path | Region,
        key: OwnerKey,
        state: MutableMapping[str, Any],
        *,
        overlap: bool = False,
        trust_versions: bool = False,
        only_steps_write: bool = False,
        threads: int | None = None,
        identity: dict[str, Json] | None = None,
        run_id: str | None = None,
        anchor: Anchor | None = None,
        keep: int = 0,
        keep_every: int = 1,
    ) -> Self:
        """Open the mirror in a region; a region is made if there is no file of that name.

        The first `mirror_out` makes the mirror, as large as the state is then.

        A chunk that is unchanged since it was last sealed is not sealed again: a fingerprint of its
        bytes proves that. With `trust_versions`, torch's own count of writes is trusted instead.
        That is faster for a large frozen part, and silently wrong for writes that torch does not
        count: through `.data`, NumPy, DLPack or another process, or by fused kernels of optimizers
        that are not in the state.

        With `overlap`, the state is copied, and sealed in another thread during training. With
        `only_steps_write` as well, parameters and the state of the optimizers are not copied but
        read while the next forward and backward pass run, and the optimizers wait before they step.
        That is exact only if nothing but steps of the optimizers in the state writes to them.

        `threads` share the sealing (torch's threads, or one with overlap). `identity` says which
        run this is (a recipe's hash, a seed): it must be equal when the run is resumed. `run_id` is
        the one that the region must hold (`Mirror.run_id` of the run's first process). `anchor`
        remembers the newest commit outside the region: another one is refused (AnchorError). `keep`
        (at most 16) commits stay beside the newest, of iterations that `keep_every` divides; each
        takes the room of a slot.

        An earlier mirror of this process on the file is closed first: notebooks run cells twice.

        Raises StateError for a state that cannot be mirrored, and in one of several processes
        (torchrun), MismatchError for another run,
        KeyFileError for another key, and what `Region.open` and `Region.create` raise.
        """
        require_one_process()
        options = MirrorOptions(
            overlap, trust_versions, only_steps_write, threads, identity, run_id, anchor,
            keep, keep_every,
        )  # fmt: skip
        if isinstance(region, Region):
            return cls(region, key, state, options)
        require_key(key)  # before a region is made
        path = Path(region)
        open_mirrors.close_earlier(path)
        made = Region.open_or_create(path)
        try:
            mirror = cls(made, key, state, options)
        except BaseException:
            made.close()
            raise
        mirror._owns_region = True
        mirror._abandoned = weakref.finalize(mirror, made.close)  # if it is not closed
        mirror._abandoned.atexit = False
        open_mirrors.register(path, mirror)
        return mirror

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        try:
            self.close()
        except PliniusError:
            if raised[0] is None:  # otherwise the error that came first is raised
                raise

    @property
    def run_id(self) -> str:
        """The random name of the run, 32 hex digits. The first commit stores it in the region."""
        return self._slots.run_id.hex()

    @property
    def commits(self) -> int:
        """The number of the newest commit; 0 before the first."""
        return self._slots.commits

    @property
    def committed(self) -> int | None:
        """The iteration of the newest commit that was made or restored here; None before."""
        return self._committed

    @property
    def sealed_bytes(self) -> int:
        """Bytes that the last commit sealed and wrote."""
        return self._sealed_bytes

    @property
    def failure(self) -> PliniusError | None:
        """Why the last mirror_out did not commit; None if it did. The next one tries again."""
        return self._failure

    @property
    def not_bit_exact(self) -> str | None:
        """Why the run resumed by mirror_in is not bit-identical; None if it is."""
        return self._not_bit_exact

    @property
    def inexact_since(self) -> int | None:
        """The iteration since which the run is not bit-identical to an uninterrupted one."""
        return self._inexact_since

    @property
    def returns(self) -> list[Return]:
        """When the run went back to a kept commit, the oldest first; known after mirror_in."""
        return self._history.returns

    def threads(self) -> int | None:
        """The number of torch's threads that the mirrored run had; None before the first commit.

        Raises SealError and RegionError as mirror_in does.
        """
        with self._alone():
            self._begin()
            manifest = self._slots.newest()
            return cast(int | None, manifest.environment.get("threads")) if manifest else None

    def mirror_in(self, *, accept_previous: bool = False, back_to: int | str | None = None) -> int:
        """Restore the newest committed state in place; returns its iteration, or 0 without one.

        Warns (InexactResumeWarning) if the run does not continue bit-identically.
        With `accept_previous`, which a person must decide, the commit before is restored if the
        newest does not open. With `back_to`, an iteration or the name of a kept commit, the run
        goes back to that one, if its anchor allows it; later commits say so.

        Raises MismatchError, changing nothing, if the run or objects differ or the commit is not
        kept. Raises SealError or RegionError, which name the commit, if it does not open, and
        MismatchError if an object does not load its state: tensors and arrays that were written to
        then hold zeros, other values may be the stored ones, and nothing in the region has changed.
        """
        with self._alone():
            self._begin()
            self._ready = False  # until all of it is restored
            try:
                manifest = self._slots.newest()
                if back_to is not None:
                    iteration = self._go_back(manifest, back_to)
                else:
                    iteration = self._restore(manifest) if manifest else 0
            except (SealError, RegionError):
                before = self._slots.before_newest() if accept_previous else None
                if before is None or back_to is not None:
                    raise
                iteration = self._restore(before)
            self._ready = True
            return iteration

    def mirror_out(self, iteration: SupportsIndex) -> int:
        """Seal the state and commit it under this number; returns the sealed bytes written.

        With overlap it returns 0 at once. A stop at any instant leaves this commit or the one
        before. An error of the storage (a full disk) does not stop training: it is logged, and
        `failure` until a later call commits. Raises RegionFullError if the first commit finds no
        room; StateError for what cannot be mirrored, or if mirror_in must be called first.
        """
        number = checks.whole_iteration(iteration)
        with self._alone():
            self._begin()
            self._require_ready()
            if self._background is None:
                self._commit(self._snapshot(number, self._state.capture()), None)
                return self._sealed_bytes if self._failure is None else 0
            captured = self._state.capture(copied=True)
            snapshot = self._snapshot(number, captured)
            self._background.begin(lambda: self._commit(snapshot, captured))
            return 0

    def keep(self, name: str) -> bool:
        """Keep the newest commit under a name, such as "best", in place of the one kept before.

        False if the storage has no room: that is logged, and the one before stays. Raises
        StateError for what is no name, before the first commit, and before mirror_in.
        """
        with self._alone():
            self._begin()
            self._require_ready()
            return self._history.keep(name)

    def wait(self) -> None:
        """Wait until the last mirror_out has committed, or failed (see `failure`)."""
        with self._alone():
            self._begin()

    def digest(self, iteration: SupportsIndex = 0) -> str:
        """SHA-256 of the state now, under this number: equal states give equal digests."""
        with self._alone():
            self._begin()
            return self._snapshot(checks.whole_iteration(iteration), self._state.capture()).digest()

    def close(self) -> None:
        """Wait for the last mirror_out, then close everything; a second call does nothing.

        Raises the PliniusError of the last mirror_out if it was never committed.
        """
        if self._closed:
            return
        with self._alone():
            self._wait_for_commit()
            self._closing = True  # interrupted from here on, only close can be called again
            if self._background:
                self._background.close()
            self._state.close()
            self._slots.close()
            if self._abandoned:
                self._abandoned.detach()
            if self._owns_region:
                self._region.close()
            self._closed = True
        self._anchoring.close()
        if self._failure:
            raise self._failure

    def _alone(self) -> threading.RLock:
        """The lock of a call. Raises StateError if this thread is within another call."""
        checks.refuse_call_within(self, _CALLS)
        return self._lock

    def _require_ready(self) -> None:
        if not self._ready:
            raise checks.not_ready(self._region.name)

    def _begin(self) -> None:
        """Wait for a commit in the background.

        Raises StateError if the mirror is closed, and RegionBusyError in a forked child.
        """
        if self._closing:
            raise checks.closed_already()
        self._region.require_held()
        self._wait_for_commit()

    def _wait_for_commit(self) -> None:
        if self._background:
            self._background.wait()

    def _go_back(self, newest: Manifest | None, to: int | str) -> int:
        newest, kept = self._history.open_kept(newest, to)
        if kept:
            require_same_run(self._identity, newest.identity)
            self._anchoring.check(newest)
            self._anchoring.require_return(kept.manifest.commit)
            self._slots.read(newest, [])  # the next commit follows it, so all of it must open
        manifest = kept.manifest if kept else newest
        iteration = self._restore(manifest, kept)
        self._history.went_back(newest, manifest)  # if it is the newest too: it was asked for
        return iteration

    def _restore(self, manifest: Manifest, kept: OpenedCommit | None = None) -> int:
        require_same_run(self._identity, manifest.identity)
        if kept is None:
            self._anchoring.check(manifest)
            self._history.resume(manifest)
        read = kept.read if kept else partial(self._slots.read, manifest)
        changed = restore(self._state, manifest, read)
        found = inexactness(manifest, changed, self._state.parts, again=self._committed is not None)
        self._not_bit_exact, self._inexact_since = found
        self._committed = manifest.iteration
        return manifest.iteration

    def _snapshot(self, iteration: int, captured: CapturedState) -> Snapshot:
        where = {**captured.environment, INEXACT: self._inexact_since}
        return Snapshot(
            iteration, captured.tensors, captured.values, self._identity, where, captured.versions
        )

    def _commit(self, snapshot: Snapshot, captured: CapturedState | None) -> None:
        """Write a commit, in any thread; `captured` if training continues meanwhile."""
        changed: list[str] = []

        def must_discard() -> bool:
            changed.extend(self._state.written_since(captured) if captured else [])
            return bool(changed)

        snapshot = self._history.before_commit(self._anchoring.before_commit(snapshot))
        try:
            written = self._slots.write(snapshot, must_discard)
        except (StorageError, RegionFullError) as error:
            if self._slots.commits == 0 and isinstance(error, RegionFullError):
                raise
            self._failed(snapshot.iteration, error)
            return
        if changed:
            self._failed(snapshot.iteration, checks.changed_meanwhile(changed))
            return
        self._anchoring.after_commit()
        self._failure, self._sealed_bytes = None, written
        self._committed = snapshot.iteration
        self._history.after_commit(snapshot.iteration)

    def _failed(self, iteration: int, error: PliniusError) -> None:
        self._failure = error
        _log.warning("Iteration %d is not mirrored yet: %s", iteration, error)


_CALLS = {
    getattr(Mirror, name).__code__
    for name in ("mirror_in", "mirror_out", "wait", "digest", "close", "threads", "keep")
}
