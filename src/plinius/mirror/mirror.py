"""The mirror: with three lines a training loop can be resumed, bit for bit.

mirror = Mirror.open(path, key, state={"model": model, "optimizer": optimizer})
start = mirror.mirror_in()
...
    mirror.mirror_out(iteration)
"""

import logging
import operator
import sys
import threading
import weakref
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any, Self, SupportsIndex, cast

import torch

from plinius.errors import (
    PliniusError,
    RegionError,
    RegionFullError,
    SealError,
    StateError,
    StorageError,
)
from plinius.jsonvalue import Json
from plinius.keys import OwnerKey, require_key
from plinius.mirror import open_mirrors
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
from plinius.state.exactness import environment
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
        remembers the newest commit outside the region: another one is refused (AnchorError).

        An earlier mirror of this process on the file is closed first: notebooks run cells twice.

        Raises StateError for a state that cannot be mirrored, and in one of several processes
        (torchrun), MismatchError for another run,
        KeyFileError for another key, and what `Region.open` and `Region.create` raise.
        """
        require_one_process()
        options = MirrorOptions(
            overlap, trust_versions, only_steps_write, threads, identity, run_id, anchor
        )
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

    def threads(self) -> int | None:
        """The number of torch's threads that the mirrored run had; None before the first commit.

        Raises SealError and RegionError as mirror_in does.
        """
        with self._alone():
            self._begin()
            manifest = self._slots.newest()
            return cast(int | None, manifest.environment.get("threads")) if manifest else None

    def mirror_in(self, *, accept_previous: bool = False) -> int:
        """Restore the newest committed state in place; returns its iteration, or 0 without one.

        Warns (InexactResumeWarning) if the run does not continue bit-identically.
        With `accept_previous`, which a person must decide, the commit before is restored if the
        newest does not open. Raises MismatchError, changing nothing, if the run or objects differ.
        Raises SealError or RegionError, which name the commit, if it does not open, and
        MismatchError if an object does not load its state: tensors and arrays that were written to
        then hold zeros, other values may be the stored ones, and nothing in the region has changed.
        """
        with self._alone():
            self._begin()
            self._ready = False  # until all of it is restored
            try:
                manifest = self._slots.newest()
                iteration = self._restore(manifest) if manifest else 0
            except (SealError, RegionError):
                before = self._slots.before_newest() if accept_previous else None
                if before is None:
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
        number = _whole(iteration)
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

    def wait(self) -> None:
        """Wait until the last mirror_out has committed, or failed (see `failure`)."""
        with self._alone():
            self._begin()

    def digest(self, iteration: SupportsIndex = 0) -> str:
        """SHA-256 of the state now, under this number: equal states give equal digests."""
        with self._alone():
            self._begin()
            return self._snapshot(_whole(iteration), self._state.capture()).digest()

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
        """The lock of a call. Raises StateError if this thread is within another call.

        It looks at the stack: a flag could stay set after an interrupt.
        """
        frame = sys._getframe(1).f_back
        while frame:
            if frame.f_code in _CALLS and frame.f_locals["self"] is self:
                raise StateError(
                    "The mirror was called from within a call of its own (a signal handler?)",
                    "Set a flag there, and call the mirror from the loop",
                )
            frame = frame.f_back
        return self._lock

    def _require_ready(self) -> None:
        if not self._ready:
            raise StateError(
                f"The mirror in {self._region.name} has commits that are not mirrored in",
                "Call mirror_in before mirror_out",
            )

    def _begin(self) -> None:
        """Wait for a commit in the background.

        Raises StateError if the mirror is closed, and RegionBusyError in a forked child.
        """
        if self._closing:
            raise StateError(
                "This mirror is closed, or another one was opened on its region since",
                "Use the newest one, or open it again",
            )
        self._region.require_held()
        self._wait_for_commit()

    def _wait_for_commit(self) -> None:
        if self._background:
            self._background.wait()

    def _restore(self, manifest: Manifest) -> int:
        require_same_run(self._identity, manifest.identity)
        self._anchoring.check(manifest)
        changed = restore(self._state, manifest, lambda outs: self._slots.read(manifest, outs))
        found = inexactness(manifest, changed, self._state.parts)
        self._not_bit_exact, self._inexact_since = found
        self._committed = manifest.iteration
        return manifest.iteration

    def _snapshot(self, iteration: int, captured: CapturedState) -> Snapshot:
        where = {**environment(), INEXACT: self._inexact_since}
        return Snapshot(
            iteration, captured.tensors, captured.values, self._identity, where, captured.versions
        )

    def _commit(self, snapshot: Snapshot, captured: CapturedState | None) -> None:
        """Write a commit, in any thread; `captured` if training continues meanwhile."""
        changed: list[str] = []

        def must_discard() -> bool:
            changed.extend(self._state.written_since(captured) if captured else [])
            return bool(changed)

        snapshot = self._anchoring.before_commit(snapshot)
        try:
            written = self._slots.write(snapshot, must_discard)
        except (StorageError, RegionFullError) as error:
            if self._slots.commits == 0 and isinstance(error, RegionFullError):
                raise
            self._failed(snapshot.iteration, error)
            return
        if changed:
            self._failed(snapshot.iteration, _changed_meanwhile(changed))
            return
        self._anchoring.after_commit()
        self._failure, self._sealed_bytes = None, written
        self._committed = snapshot.iteration

    def _failed(self, iteration: int, error: PliniusError) -> None:
        self._failure = error
        _log.warning("Iteration %d is not mirrored yet: %s", iteration, error)


_CALLS = {
    call.__code__
    for call in (Mirror.mirror_in, Mirror.mirror_out, Mirror.wait, Mirror.digest, Mirror.close,
                 Mirror.threads)
}  # fmt: skip


def _whole(iteration: SupportsIndex) -> int:
    try:
        number = operator.index(iteration)
    except TypeError:
        number = -1
    if not 0 <= number < 2**63:
        raise StateError(
            f"An iteration is a whole number from 0, not {iteration!r}",
            "Give mirror_out the number of the iteration",
        )
    return number


def _changed_meanwhile(names: list[str]) -> PliniusError:
    return StorageError(
        f"{', '.join(names[:3])} changed while the mirror sealed it during training",
        "It is copied first from now on, and the next iteration is mirrored",
    )
