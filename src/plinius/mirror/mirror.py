"""The mirror: three lines that make a training loop survive.

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
    KeyFileError,
    PliniusError,
    RegionError,
    RegionFullError,
    SealError,
    StateError,
    StorageError,
)
from plinius.jsonvalue import Json
from plinius.keys import OwnerKey
from plinius.mirror import registry
from plinius.mirror.background import Background
from plinius.mirror.identity import require_run_id, require_same_run
from plinius.pm.region import Region
from plinius.slots import Manifest, Slots
from plinius.snapshot import Snapshot
from plinius.state.environment import environment, not_bit_exact
from plinius.state.restore import restore
from plinius.state.run_state import RunState, Taken

_log = logging.getLogger("plinius")
_INEXACT = "inexact_since"


class Mirror:
    """The sealed mirror of a run: what `mirror_out` took, `mirror_in` puts back, bit for bit.

    `state` holds the objects by name: whatever has state_dict and load_state_dict, tensors, NumPy
    arrays, generators, numbers, strings, and containers of them. What cannot be changed in place
    (numbers, strings, a tensor of another shape) is written into `state` by `mirror_in`: read it
    from there. The states of Python's, NumPy's and torch's random number generators travel with
    it; of a module also its gradients, its modes and its buffers that are not persistent.

    One call at a time: other threads wait, and a call from within one (a signal handler) is
    refused.
    """

    def __init__(
        self,
        region: Region,
        key: OwnerKey,
        state: MutableMapping[str, Any],
        *,
        overlap: bool = False,
        trust_versions: bool = False,
        only_steps_write: bool = False,
        threads: int | None = None,
        identity: dict[str, Json] | None = None,
        run_id: str | None = None,
    ) -> None:
        """See `open`, which takes a path as well."""
        if not isinstance(key, OwnerKey):
            raise KeyFileError(
                f"The key is a {type(key).__name__}, not an owner's key",
                "Load it with plinius.load_key(path)",
            )
        if only_steps_write and not overlap:
            raise ValueError("only_steps_write is a choice for overlap=True")
        self._region = region
        self._owns_region = False
        self._lock, self._closed = threading.RLock(), False
        self._identity = identity or {}
        self._inexact_since: int | None = None
        self._not_bit_exact: str | None = None
        self._failure: PliniusError | None = None
        self._committed: int | None = None
        self._sealed_bytes = 0
        self._background: Background | None = None
        self._abandoned: weakref.finalize[[], Self] | None = None
        self._state = RunState(
            state,
            trust_versions=trust_versions,
            only_steps_write=only_steps_write,
            before_step=self._wait_for_commit,
        )
        sealing = threads or (1 if overlap else torch.get_num_threads())
        slots = Slots.open(region, key, sealing)
        if run_id is not None:
            require_run_id(run_id, slots, region.name)
        if slots is None:
            slots = Slots.create(region, key, self._snapshot(0, self._state.take()), sealing)
        self._slots = slots
        self._ready = slots.commits == 0
        self._background = Background("plinius-mirror") if overlap else None

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
    ) -> Self:
        """Open the mirror in a region, or make both, as large as the state needs.

        What is unchanged since it was last sealed is not sealed again: that is proved by a
        fingerprint of the bytes. With `trust_versions`, torch's own count of writes is believed
        instead, which is faster for a large frozen part, and silently wrong for what it does not
        count: writes through `.data`, NumPy, DLPack or another process, fused kernels outside of
        the optimizers in the state.

        With `overlap`, the state is copied, and sealed beside training. With `only_steps_write` as
        well, the parameters and the state of the optimizers are not copied but read while the next
        forward and backward pass run, and the optimizers wait before they step. That is exact only
        if nothing but steps of the optimizers in the state writes to them.

        `threads` share the sealing (torch's threads, or one with overlap). `identity` says which
        run this is (a recipe's hash, a seed): it must be equal when the run goes on. `run_id` is
        the one that the region must hold (`Mirror.run_id` of the run's first process).

        An earlier mirror of this process on the same file is closed first: a notebook's cell can
        be run twice.

        Raises StateError, and what opening a region, a key and a mirror raise.
        """
        options: dict[str, Any] = {
            "overlap": overlap, "trust_versions": trust_versions,
            "only_steps_write": only_steps_write, "threads": threads, "identity": identity,
            "run_id": run_id,
        }  # fmt: skip
        if isinstance(region, Region):
            return cls(region, key, state, **options)
        path = Path(region)
        registry.close_earlier(path)
        made = Region.open_or_create(path)
        try:
            mirror = cls(made, key, state, **options)
        except BaseException:
            made.close()
            raise
        mirror._owns_region = True
        mirror._abandoned = weakref.finalize(mirror, made.close)  # if nobody closes it
        mirror._abandoned.atexit = False
        registry.remember(path, mirror)
        return mirror

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        try:
            self.close()
        except PliniusError:
            if raised[0] is None:  # or else what happened first is what is told
                raise

    @property
    def run_id(self) -> str:
        """The random name of the run, in hex: a region with another one holds another run."""
        return self._slots.run_id.hex()

    @property
    def commits(self) -> int:
        """The number of the newest commit; 0 before the first."""
        return self._slots.commits

    @property
    def committed(self) -> int | None:
        """The iteration that the newest commit seen here was given; None before."""
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
        """Why going on from mirror_in is not bit-identical; None if it is."""
        return self._not_bit_exact

    @property
    def inexact_since(self) -> int | None:
        """The iteration since which the run is not bit-identical to one that never stopped."""
        return self._inexact_since

    def threads(self) -> int | None:
        """The number of torch's threads that the mirrored run had; None before the first commit.

        Raises SealError and RegionError as mirror_in does.
        """
        with self._alone():
            self._begin()
            about = self._slots.newest()
            return cast(int | None, about.environment.get("threads")) if about else None

    def mirror_in(self, *, accept_previous: bool = False) -> int:
        """Restore the newest committed state in place; returns its iteration, or 0 without one.

        With `accept_previous`, the commit before is taken if the newest does not open (someone
        decided that). Raises MismatchError, changing nothing, if the run or its objects differ.
        Raises SealError or RegionError, which name the commit, if it does not open, and
        MismatchError if an object does not take its state back: tensors that were written to then
        hold zeros, and nothing in the region changed.
        """
        with self._alone():
            self._begin()
            self._ready = False  # until all of it is back
            try:
                about = self._slots.newest()
                iteration = self._restore(about) if about else 0
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
        before. What the storage refuses (a full disk) does not stop training: it is logged, kept
        in `failure`, and tried again by the next call. Raises StateError, naming what cannot be
        mirrored, and on a mirror with commits that were not mirrored in.
        """
        number = _whole(iteration)
        with self._alone():
            self._begin()
            self._region.require_held()
            self._require_ready()
            if self._background is None:
                self._commit(self._snapshot(number, self._state.take()), None)
                return self._sealed_bytes if self._failure is None else 0
            taken = self._state.take(apart=True)
            snapshot = self._snapshot(number, taken)
            self._background.begin(lambda: self._commit(snapshot, taken))
            return 0

    def wait(self) -> None:
        """Return when the last mirror_out has committed, or failed (see `failure`)."""
        with self._alone():
            self._begin()

    def digest(self, iteration: SupportsIndex = 0) -> str:
        """SHA-256 of the state now, under this number: equal states give equal digests."""
        with self._alone():
            self._begin()
            return self._snapshot(_whole(iteration), self._state.take()).digest()

    def close(self) -> None:
        """Wait for what is under way and let go of everything; a second call does nothing.

        Raises the PliniusError of the last mirror_out if it was never committed.
        """
        if self._closed:
            return
        with self._alone():
            self._begin()
            if self._background:
                self._background.close()
            self._state.close()
            self._slots.close()
            if self._abandoned:
                self._abandoned.detach()
            if self._owns_region:
                self._region.close()
            self._closed = True  # interrupted before, close can be called again
        if self._failure:
            raise self._failure

    def _alone(self) -> threading.RLock:
        """The lock of a call. Raises StateError if this thread is within another call.

        The stack tells that, and no flag, which an interrupt could leave behind.
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
        """Wait for what runs beside training. Raises StateError on a closed mirror."""
        if self._closed:
            raise StateError(
                "This mirror is closed, or another one was opened on its region since",
                "Use the newest one, or open it again",
            )
        self._wait_for_commit()

    def _wait_for_commit(self) -> None:
        if self._background:
            self._background.wait()

    def _restore(self, about: Manifest) -> int:
        require_same_run(self._identity, about.identity)
        changed = restore(self._state, about, lambda outs: self._slots.read(about, outs))
        reasons = [not_bit_exact(about.environment), *changed]
        self._not_bit_exact = "; ".join(filter(None, reasons)) or None
        self._inexact_since = cast(int | None, about.environment.get(_INEXACT))
        if self._not_bit_exact and self._inexact_since is None:
            self._inexact_since = about.iteration
        self._committed = about.iteration
        return about.iteration

    def _snapshot(self, iteration: int, taken: Taken) -> Snapshot:
        where = {**environment(), _INEXACT: self._inexact_since}
        return Snapshot(iteration, taken.tensors, taken.values, self._identity, where)

    def _commit(self, snapshot: Snapshot, taken: Taken | None) -> None:
        """Write a commit, whichever thread this is; `taken` is what training goes on with."""
        moved: list[str] = []

        def spoiled() -> bool:
            moved.extend(self._state.moved(taken) if taken else [])
            return bool(moved)

        try:
            written = self._slots.write(snapshot, spoiled)
        except (StorageError, RegionFullError) as error:
            self._failed(snapshot.iteration, error)
            return
        if moved:
            self._failed(snapshot.iteration, _written_meanwhile(moved))
            return
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
            f"An iteration is a whole number from 0 on, not {iteration!r}",
            "Give mirror_out the number of the iteration",
        )
    return number


def _written_meanwhile(names: list[str]) -> PliniusError:
    return StorageError(
        f"{', '.join(names[:3])} changed while the mirror sealed it beside training",
        "It is copied first from now on, and the next iteration is mirrored",
    )
