"""The commit protocol: sealed copies of a run's state in two slots, each committed by one word.

Invariants (proofs: tests/crash/test_mirror_stops.py, test_slot_stops.py, test_worker_stops.py):

1. Commit N is in slot N mod 2. The newest committed slot is never written to.
2. A commit writes the other slot | fence | its commit word | fence. Each thread that wrote blocks
   drains before the first fence. So a stop at any instant leaves commit N - 1 or commit N.
3. The two commit words always hold 0 and 0, or counters one apart, the greater above the base.
4. The first commit makes the slots, and a commit that does not fit makes larger ones. All of it is
   written into a new extent, which one transaction then names. So a stop leaves what was there
   before (the old slots, or no mirror), or the new slots with commit N.
5. What a commit seals is under a key that no other commit has: its salt is random.
6. A dirty chunk is sealed; an unchanged one stays in its slot under the commit that sealed it,
   which the manifest names. After a write that ended early the planner relies on no chunk.
7. Slots are sealed from, and opened into, private memory (slots/workers.py).
8. Where the slots are, the counter and the digests are read from the region once and authenticated.
   From then on `Pinned` is what counts, not what the host shows.
9. A write that ended early, also by an interrupt, leaves `_interrupted` set, as opening does. The
   next call waits for all threads, then stores and fences the words of the pinned commit again (of
   `_next` if the region holds it already). A killed process leaves stores in the caches, a failed
   msync leaves pages that the kernel takes for clean, and the next commit overwrites a slot.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

from plinius import sealing
from plinius.errors import FormatError, RegionError, SealError, StateError
from plinius.jsonvalue import from_json
from plinius.keys import OwnerKey
from plinius.pm.heap import Span
from plinius.pm.medium import Medium
from plinius.pm.region import Region
from plinius.slots.chunks import Chunk, cut
from plinius.slots.layout import (
    EXTENT,
    Layout,
    associated_data,
    commit_digest,
    commit_word,
    header_bytes,
    layout_for,
    read_counters,
    read_header,
)
from plinius.slots.manifest import (
    MAX_MANIFEST_BYTES,
    Manifest,
    decode_manifest,
    encode_manifest,
    with_values,
)
from plinius.slots.plan import SLOT_HEAD, Commit, Planner
from plinius.slots.workers import Workers
from plinius.snapshot import Snapshot, TensorBytes

_PURPOSE = "mirror"
_DIGEST_OF_NONE = "0" * 64

MustDiscard = Callable[[], bool]
"""Whether what was sealed is no state of the run, and must not be committed."""


class Pinned(NamedTuple):
    """What this process has authenticated and relies on: where the slots are, the newest commit.

    `span` is None before the first commit. `digest` is the newest commit's, None until it was
    opened here. `previous` is the digest of the commit before, None if that is not pinned. `open`
    says whether the run continues from the newest commit, so that the next one may be written.
    """

    span: Span | None
    layout: Layout
    counter: int
    digest: str | None
    previous: str | None
    open: bool


class Slots:
    """The slots of one run in a region, sealed with one owner's key."""

    def __init__(
        self, region: Region, key: OwnerKey, run_id: bytes, pinned: Pinned, threads: int = 1
    ) -> None:
        self._region = region
        self._medium = region.medium
        self._key = key
        self._run_id = run_id
        self._pinned = pinned
        self._next: Pinned | None = None  # written, except for its word or the extent's name
        self._interrupted = pinned.span is not None  # the process before may have been killed
        self._planner = Planner()
        self._workers = Workers(region.medium, threads)

    @classmethod
    def open(cls, region: Region, key: OwnerKey, threads: int = 1) -> "Slots | None":
        """The slots of a region, or None if it has none yet; `threads` share the sealing.

        Raises KeyFileError, FormatError, RegionError.
        """
        span = region.extent(EXTENT)
        if span is None:
            return None
        run_id, key_id, layout = read_header(region, span)
        key.require(key_id, f"The mirror in {region.name}")
        counter = max(read_counters(region, run_id, layout))
        digest = _DIGEST_OF_NONE if counter == 0 else None
        pinned = Pinned(span, layout, counter, digest, None, open=counter == 0)
        return cls(region, key, run_id, pinned, threads)

    @classmethod
    def create(cls, region: Region, key: OwnerKey, threads: int = 1) -> "Slots":
        """The slots of a new run. The first commit makes them, as large as its state needs."""
        pinned = Pinned(None, Layout(0, 0, 0, 0), 0, _DIGEST_OF_NONE, None, open=True)
        return cls(region, key, sealing.fresh(16), pinned, threads)

    @property
    def commits(self) -> int:
        """The counter of the newest commit; 0 before the first."""
        return self._pinned.counter

    @property
    def digest(self) -> str | None:
        """The digest of the newest commit, in hex; None until it was opened here."""
        return self._pinned.digest

    @property
    def run_id(self) -> bytes:
        """The random name of the run (16 bytes)."""
        return bytes(self._run_id)

    def write(self, snapshot: Snapshot, must_discard: MustDiscard = lambda: False) -> int:
        """Seal a state into the older slot and commit it; returns the sealed bytes written.

        Slots are made first if there are none, or if these are too small. `must_discard` is called
        when all is sealed: if it says True, nothing is committed and 0 is returned. Raises
        RegionFullError, StorageError, StateError if the newest commit was not opened; then this
        commit does not count, and the next write seals everything again.
        """
        self._finish_interrupted()
        if not self._pinned.open:
            raise StateError(
                f"The mirror in {self._region.name} has commits that this process did not open",
                "Call mirror_in before mirror_out",
            )
        self._interrupted = True
        commit = self._planned(snapshot)
        try:
            if self._fits(commit):
                self._write_here(commit, must_discard)
            else:
                if self._pinned.span is not None:
                    self._planner.forget()  # nothing lies in the new slots
                    commit = self._planned(snapshot)
                self._write_anew(commit, must_discard)
        except _DiscardedError:
            return 0
        self._interrupted = False
        return commit.written

    def newest(self) -> Manifest | None:
        """The manifest of the newest commit, or None before the first.

        Raises SealError, FormatError or RegionError, which name the commit, and changes nothing.
        """
        self._finish_interrupted()
        pinned = self._pinned
        if pinned.counter == 0:
            return None
        found = self._open_manifest(pinned.counter, pinned.digest)
        self._pinned = pinned._replace(digest=found.digest, previous=found.previous)
        return found

    def before_newest(self) -> Manifest | None:
        """The manifest of the commit before, None if there is none; raises as `newest` does."""
        pinned = self._pinned
        before = pinned.counter - 1
        return self._open_manifest(before, pinned.previous) if before > pinned.layout.base else None

    def read(self, manifest: Manifest, outs: Sequence[memoryview]) -> None:
        """Open a commit into `outs`, memory of the size of each tensor; the run continues from it.

        If it is the commit before the newest, the newest no longer counts. Raises SealError, which
        names the commit: `outs` are zeros then, and nothing else has changed.
        """
        self._finish_interrupted()
        pinned = self._pinned._replace(open=False)
        self._pinned, self._interrupted = pinned, True
        values = [memoryview(bytearray(size)) for size in manifest.sizes[len(outs) :]]
        try:
            self._read_chunks(manifest, [*outs, *values], cut(manifest.sizes))
        except BaseException:
            self._workers.quiesce()
            for out in outs:
                out[:] = bytes(len(out))
            raise
        older = manifest.commit < pinned.counter
        if older:
            pinned = pinned._replace(counter=manifest.commit, previous=manifest.previous)
        self._pinned = pinned._replace(digest=manifest.digest, open=True)
        if older:
            self._finish_interrupted()
        self._interrupted = False

    def snapshot(self, manifest: Manifest) -> Snapshot:
        """Open a whole commit into new memory. Raises as `read` does."""
        outs = [memoryview(bytearray(spec.nbytes)) for spec in manifest.tensors]
        self.read(manifest, outs)
        tensors = tuple(
            TensorBytes(spec.name, spec.dtype, spec.shape, data, order=spec.order)
            for spec, data in zip(manifest.tensors, outs, strict=True)
        )
        return Snapshot(
            manifest.iteration, tensors, manifest.values, manifest.identity, manifest.environment
        )

    def close(self) -> None:
        """End its threads."""
        self._workers.close()

    def _planned(self, snapshot: Snapshot) -> Commit:
        """Plan the next commit."""
        tensors, values = with_values(snapshot)
        planner, number = self._planner, self._pinned.counter + 1
        candidates = planner.begin(number, tensors, snapshot.versions)
        plan = planner.plan(self._workers.fingerprints(candidates, tensors))
        assert self._pinned.digest is not None
        plain = encode_manifest(
            snapshot, tensors, values, self._pinned.digest, plan.sealed_by, plan.salts
        )
        return Commit(plan, tensors, plain)

    def _fits(self, commit: Commit) -> bool:
        layout, chunks = self._pinned.layout, self._planner.chunks
        return commit.manifest_bytes <= layout.manifest_room and layout.holds(chunks)

    def _write_here(self, commit: Commit, must_discard: MustDiscard) -> None:
        pinned, number = self._pinned, commit.plan.number
        digest, taken = self._fill(pinned.layout, commit, must_discard)
        self._medium.fence()
        self._next = pinned._replace(counter=number, digest=digest, previous=pinned.digest)
        self._put_word(pinned.layout, number, number)
        self._medium.fence()
        self._adopt_next()
        self._planner.done(commit.plan, taken)

    def _write_anew(self, commit: Commit, must_discard: MustDiscard) -> None:
        """Commit in new slots: the first ones, or larger ones that replace these."""
        pinned, number = self._pinned, commit.plan.number
        old = pinned.layout if pinned.span else None
        layout = layout_for(commit.tensors, pinned.counter, commit.manifest_bytes, old)
        taken: dict[int, bytes] = {}

        def write(medium: Medium, at: int) -> None:
            there = layout._replace(offset=at)
            medium.write(at, header_bytes(self._run_id, self._key.id, layout))
            for counter in (pinned.counter, number):
                self._put_word(there, counter, counter)
            digest, found = self._fill(there, commit, must_discard)
            taken.update(found)
            span = Span(at, layout.length)
            self._next = Pinned(span, there, number, digest, None, open=True)

        if pinned.span is None:
            self._region.add_extent(EXTENT, layout.length, write)
        else:
            self._region.replace_extent(EXTENT, layout.length, write)
        self._adopt_next()
        self._planner.done(commit.plan, taken)

    def _fill(
        self, layout: Layout, commit: Commit, must_discard: MustDiscard
    ) -> tuple[str, dict[int, bytes]]:
        """Seal and write a commit except its word; returns its digest, and fingerprints taken."""
        plan = commit.plan
        sealer = self._key.sealer(_PURPOSE, plan.salt)
        sealed = sealer.seal(0, commit.manifest, self._aad(plan.number, 0))
        # The word of the older commit stays until the new one takes its place.
        header = SLOT_HEAD.pack(0, plan.salt, len(sealed))[8:]
        self._medium.write(layout.slot(plan.number) + 8, header)
        self._medium.write(layout.manifest(plan.number), sealed)
        taken = self._workers.seal(
            plan.dirty,
            commit.tensors,
            plan.fingerprinted,
            sealer,
            lambda chunk: self._aad(plan.number, chunk.number),
            layout.chunks(plan.number),
        )
        if must_discard():
            self._medium.fence()  # until then the device reads from the writers' memory
            raise _DiscardedError
        return commit_digest(plan.salt, sealed), taken

    def _finish_interrupted(self) -> None:
        """If a write may have ended early, make the words of the pinned commit durable (9)."""
        self._region.require_held()
        if not self._interrupted:
            return
        self._planner.forget()
        self._workers.quiesce()
        if self._region.writable:
            self._region.recover()  # the transaction that names new slots may have been under way
            self._adopt_next()
            if self._pinned.span is not None:
                layout, counter = self._pinned.layout, self._pinned.counter
                self._put_word(layout, counter, counter)
                self._put_word(layout, counter + 1, max(0, counter - 1))  # in the other slot
                self._medium.fence()
        self._interrupted = False

    def _adopt_next(self) -> None:
        """Pin `_next` if the region holds it. Raises RegionError if the slots were moved."""
        span, following = self._region.extent(EXTENT), self._next
        if following is not None and span == following.span:
            self._pinned = following
        elif span != self._pinned.span:
            raise RegionError(
                f"The mirror in {self._region.name} was moved under this process",
                "The region was altered: restore a copy of it, or start a new one",
            )
        self._next = None

    def _put_word(self, layout: Layout, slot: int, counter: int) -> None:
        """Store and flush a commit's word in slot `slot` mod 2; counter 0 is no commit."""
        at = layout.slot(slot)
        self._medium.store_word(at, commit_word(self._run_id, counter) if counter else 0)
        self._medium.flush(at, 8)

    def _open_manifest(self, commit: int, digest: str | None) -> Manifest:
        """The manifest of a commit; `digest` is the one it must have, if that is known."""
        layout = self._pinned.layout
        header = bytes(self._medium.read(layout.slot(commit), SLOT_HEAD.size))
        _, salt, length = SLOT_HEAD.unpack(header)
        most = min(layout.manifest_room, MAX_MANIFEST_BYTES + sealing.TAG_BYTES)
        if any(header[8:64] + header[104:]) or not sealing.TAG_BYTES <= length <= most:
            raise self._refused(commit)
        sealed = bytes(self._medium.read(layout.manifest(commit), length))
        found = commit_digest(salt, sealed)
        if digest is not None and digest != found:
            raise self._refused(commit)
        try:
            plain = self._key.sealer(_PURPOSE, salt).open(0, sealed, self._aad(commit, 0))
            manifest = decode_manifest(plain, commit, salt, found, layout)
            return self._with_values(manifest) if manifest.values_tensor else manifest
        except SealError:
            raise self._refused(commit) from None
        except ValueError as error:
            raise FormatError(
                f"Commit {commit} in the mirror of {self._region.name} is sealed with this key, "
                f"but this program cannot read it: {error}",
                "Use the release of plinius that made it",
            ) from error

    def _with_values(self, manifest: Manifest) -> Manifest:
        """A manifest with the values that are stored in its last tensor."""
        last = len(manifest.tensors)
        values = memoryview(bytearray(manifest.sizes[last]))
        outs = [memoryview(b"")] * last + [values]
        chunks = [chunk for chunk in cut(manifest.sizes) if chunk.segments[0].tensor == last]
        self._read_chunks(manifest, outs, chunks)
        return dataclasses.replace(manifest, values=from_json(bytes(values)))

    def _read_chunks(
        self, manifest: Manifest, outs: Sequence[memoryview], chunks: list[Chunk]
    ) -> None:
        sealers = {by: self._key.sealer(_PURPOSE, salt) for by, salt in manifest.salts.items()}

        def sealer_of(chunk: Chunk) -> sealing.Sealer:
            return sealers[manifest.sealed_by[chunk.number - 1]]

        def aad(chunk: Chunk) -> bytes:
            return self._aad(manifest.sealed_by[chunk.number - 1], chunk.number)

        at = self._pinned.layout.chunks(manifest.commit)
        try:
            self._workers.open(chunks, outs, sealer_of, aad, at)
        except SealError:
            raise self._refused(manifest.commit) from None

    def _aad(self, commit: int, chunk: int) -> bytes:
        return associated_data(self._run_id, commit, chunk)

    def _refused(self, commit: int) -> SealError:
        return SealError(
            f"Commit {commit} in the mirror of {self._region.name} does not open with this key",
            "It was altered or the disk is failing: restore a copy of the region; to go on from "
            "the commit before, knowingly, train with --accept-previous",
        )


class _DiscardedError(Exception):
    """`must_discard` said that what was sealed must not be committed."""
