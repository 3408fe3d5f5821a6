"""The mirror: three lines that make a training loop survive.

mirror = Mirror.open(path, key, state={"model": model, "optimizer": optimizer})
start = mirror.mirror_in()
...
    mirror.mirror_out(iteration)
"""

import logging
from collections.abc import MutableMapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self, cast

import torch

from plinius.environment import environment, not_bit_exact, show
from plinius.errors import (
    MismatchError,
    PliniusError,
    RegionError,
    RegionFullError,
    SealError,
    StorageError,
)
from plinius.keys import OwnerKey
from plinius.pm.region import Region
from plinius.slots import Manifest, Slots
from plinius.snapshot import Json, Snapshot
from plinius.state import State, Taken

_log = logging.getLogger("plinius")
_INEXACT = "inexact_since"


class Mirror:
    """The sealed mirror of a run: what `mirror_out` took, `mirror_in` puts back, bit for bit.

    `state` holds the objects by name: whatever has state_dict and load_state_dict, tensors, NumPy
    arrays, generators, numbers, strings, and lists and dicts of them. Numbers and strings are read
    from it by `mirror_out` and written into it by `mirror_in`. The states of Python's, NumPy's and
    torch's random number generators travel with it.
    """

    def __init__(
        self,
        region: Region,
        key: OwnerKey,
        state: MutableMapping[str, Any],
        *,
        overlap: bool = False,
        checked: bool = False,
        threads: int | None = None,
        identity: dict[str, Json] | None = None,
    ) -> None:
        """See `open`, which takes a path as well."""
        self._region = region
        self._owns_region = False
        self._state = State(state, checked=checked)
        self._identity = identity or {}
        self._inexact_since: int | None = None
        self._not_bit_exact: str | None = None
        self._failure: PliniusError | None = None
        self._committed: int | None = None
        self._sealed_bytes = 0
        self._sealing: Future[None] | None = None
        self._beside = ThreadPoolExecutor(1, "plinius-mirror") if overlap else None
        self._handles = [
            optimizer.register_step_pre_hook(lambda *_: self._wait())
            for optimizer in (self._state.optimizers if overlap else [])
        ]
        lanes = threads or (1 if overlap else torch.get_num_threads())
        slots = Slots.open(region, key, lanes)
        self._slots = slots or Slots.create(
            region, key, self._snapshot(0, self._state.take()), lanes
        )

    @classmethod
    def open(
        cls,
        region: str | Path | Region,
        key: OwnerKey,
        state: MutableMapping[str, Any],
        *,
        overlap: bool = False,
        checked: bool = False,
        threads: int | None = None,
        identity: dict[str, Json] | None = None,
    ) -> Self:
        """Open the mirror in a region, or make both, as large as the state needs.

        With `overlap`, sealing runs beside the next forward and backward pass: the next step of an
        optimizer in the state waits for it. What is unchanged since it was last sealed is not
        sealed again; `checked` tells by a digest of every tensor, not by torch's version counter.
        `threads` share the sealing (torch's threads, or one beside training). `identity` says
        which run this is (a recipe's hash, a seed): it must be equal when the run goes on.

        Raises StateError, and what opening a region, a key and a mirror raise.
        """
        options: dict[str, Any] = {
            "overlap": overlap, "checked": checked, "threads": threads, "identity": identity,
        }  # fmt: skip
        if isinstance(region, Region):
            return cls(region, key, state, **options)
        path = Path(region)
        opened = Region.open(path) if path.exists() else Region.create(path, 0)
        try:
            mirror = cls(opened, key, state, **options)
        except BaseException:
            opened.close()
            raise
        mirror._owns_region = True
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
        self._wait()
        about = self._slots.newest()
        return cast(int, about.environment["threads"]) if about else None

    def mirror_in(self, *, accept_previous: bool = False) -> int:
        """Restore the newest committed state in place; returns its iteration, or 0 without one.

        With `accept_previous`, the commit before is taken if the newest does not open (someone
        decided that). Raises MismatchError, changing nothing, if the run or the names, dtypes or
        shapes of its state differ. Raises SealError or RegionError, which name the commit, if it
        does not open: the objects' tensors then mean nothing, and nothing in the region changed.
        """
        self._wait()
        try:
            about = self._slots.newest()
            if about is None:
                return 0
            return self._restore(about)
        except (SealError, RegionError):
            before = self._slots.before_newest() if accept_previous else None
            if before is None:
                raise
            return self._restore(before)

    def mirror_out(self, iteration: int) -> int:
        """Seal the state and commit it under this number; returns the sealed bytes written.

        With overlap it returns 0 at once. A stop at any instant leaves this commit or the one
        before. What the storage refuses (a full disk) does not stop training: it is logged, kept
        in `failure`, and tried again by the next call. Raises StateError; RuntimeError on a mirror
        with commits that were not mirrored in.
        """
        self._region.require_held()
        self._wait()
        if self._beside is None:
            self._commit(self._snapshot(iteration, self._state.take()), None)
            return self._sealed_bytes if self._failure is None else 0
        taken = self._state.take(apart=True)
        self._sealing = self._beside.submit(self._commit, self._snapshot(iteration, taken), taken)
        return 0

    def wait(self) -> None:
        """Return when the last mirror_out has committed, or failed (see `failure`)."""
        self._wait()

    def digest(self, iteration: int = 0) -> str:
        """SHA-256 of the state now, under this number: equal states give equal digests."""
        return self._snapshot(iteration, self._state.take()).digest()

    def close(self) -> None:
        """Wait for what is under way and let go of everything.

        Raises the PliniusError of the last mirror_out if it was never committed.
        """
        try:
            self._wait()
        finally:
            for handle in self._handles:
                handle.remove()
            if self._beside:
                self._beside.shutdown()
            self._state.close()
            self._slots.close()
            if self._owns_region:
                self._region.close()
        if self._failure:
            raise self._failure

    def _restore(self, about: Manifest) -> int:
        require_same_run(self._identity, about.identity)
        changed = self._state.restore(about, lambda outs: self._slots.read(about, outs))
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

    def _wait(self) -> None:
        sealing, self._sealing = self._sealing, None
        if sealing:
            sealing.result()


def require_same_run(mine: dict[str, Json], stored: dict[str, Json]) -> None:
    """Raise MismatchError, with what differs, unless both describe the same run."""
    differing = [
        f"{name} is {show(mine.get(name))} but was {show(stored.get(name))}"
        for name in sorted(mine.keys() | stored.keys())
        if mine.get(name) != stored.get(name)
    ]
    if differing:
        raise MismatchError(
            f"This is not the run in the region: {'; '.join(differing)}",
            "Give what that run began with, or name another region (--region)",
        )


def _written_meanwhile(names: list[str]) -> PliniusError:
    return StorageError(
        f"{', '.join(names[:3])} changed while the mirror sealed it beside training",
        "It is copied first from now on, and the next iteration is mirrored",
    )
