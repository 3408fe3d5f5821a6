"""The slots: sealed copies of a run's state, two in turn, each committed by one word.

Invariants: commit N lies in slot N mod 2. A commit writes the older slot | fence 1 | its word |
fence 2, so the newest committed slot is never written to, and the two words always hold
consecutive counters. What a commit seals is under a key no other commit has; a chunk whose bytes
are those that were sealed when the same slot was last committed stays as it lies there, and the
manifest names the commit that sealed it. Sealing goes through private memory: AES-GCM reads its
own output back to authenticate it, so output in memory that the host can write would let the host
choose what is authenticated.

What this process knows is in `_Known`, and is read from the region once. Whatever ends a write
early, an interrupt too, leaves `_settled` False: the next call waits for what is under way, stores
the words once more, of the commit that was all there but for its word, or else of the one before,
and goes on from there.
"""

import dataclasses
import hashlib
import json
import struct
from collections.abc import Callable, Sequence
from typing import NamedTuple

from plinius import sealing
from plinius.errors import RegionError, SealError, StateError
from plinius.keys import OwnerKey
from plinius.pm.heap import Span
from plinius.pm.medium import PAGE, Medium
from plinius.pm.region import Region
from plinius.slots import manifest
from plinius.slots.chunks import Chunk, cut, room_for
from plinius.slots.layout import (
    EXTENT,
    VERSION,
    Layout,
    commit_word,
    header_bytes,
    layout_for,
    read_counters,
    read_header,
)
from plinius.slots.manifest import Manifest
from plinius.slots.plan import SLOT_HEAD, Commit, Planner
from plinius.slots.workers import Workers
from plinius.snapshot import Snapshot, TensorBytes

_PURPOSE = "mirror"
_AAD = struct.Struct("<I16sQI")  # version, run id, the commit that seals, chunk
_DIGEST_OF_NONE = "0" * 64

Spoiled = Callable[[], bool]


class _Known(NamedTuple):
    """What this process knows of the slots: where they lie, and which commit is the newest.

    `digest` is that commit's, None until it was opened here. `previous` is the digest of the
    commit before, None where that is not known. `open` says whether the run goes on from it.
    """

    span: Span
    layout: Layout
    counter: int
    digest: str | None
    previous: str | None
    open: bool


class Slots:
    """The slots of one run in a region, for the owner's key they were made with."""

    def __init__(self, region: Region, key: OwnerKey, span: Span, threads: int = 1) -> None:
        self._region = region
        self._medium = region.medium
        self._key = key
        self._run_id, key_id, layout = read_header(region, span)
        key.require(key_id, f"The mirror in {region.name}")
        counter = max(read_counters(region, self._run_id, layout))
        none = _DIGEST_OF_NONE if counter == 0 else None
        self._known = _Known(span, layout, counter, none, None, counter == 0)
        self._next: _Known | None = None  # a commit all there but for its word, or its name
        self._settled = False
        self._planner = Planner()
        self._workers = Workers(region.medium, threads)

    @classmethod
    def open(cls, region: Region, key: OwnerKey, threads: int = 1) -> "Slots | None":
        """The slots of a region, or None if it has none yet; `threads` share the sealing.

        Raises KeyFileError, FormatError, RegionError.
        """
        span = region.extent(EXTENT)
        return cls(region, key, span, threads) if span is not None else None

    @classmethod
    def create(cls, region: Region, key: OwnerKey, like: Snapshot, threads: int = 1) -> "Slots":
        """Make slots that hold states of the layout of `like`.

        Raises RegionFullError; StateError if the state has too many tensors.
        """
        tensors, values = manifest.with_values(like)
        plain = manifest.to_bytes(like, tensors, values, _DIGEST_OF_NONE, [], {})
        layout = layout_for(tensors, 0, len(plain))
        header = header_bytes(sealing.fresh(16), key.id, layout)

        def write(medium: Medium, at: int) -> None:
            medium.write(at, header)
            for slot in (0, 1):
                medium.write(layout._replace(offset=at).slot(slot), bytes(SLOT_HEAD.size))

        slots = cls(region, key, region.add_extent(EXTENT, layout.length, write), threads)
        slots._settled = True
        return slots

    @property
    def commits(self) -> int:
        """The counter of the newest commit; 0 before the first."""
        return self._known.counter

    @property
    def run_id(self) -> bytes:
        """The random name of the run (16 bytes)."""
        return bytes(self._run_id)

    def write(self, snapshot: Snapshot, spoiled: Spoiled = lambda: False) -> int:
        """Seal a state into the older slot and commit it; returns the sealed bytes written.

        Two fences, and larger slots first if the state has outgrown them. A stop at any instant
        leaves this commit or the one before. `spoiled` is asked when all is sealed: if so, nothing
        is committed and 0 returned. Raises RegionFullError, StorageError, and StateError before
        the newest commit was opened; the next write starts afresh.
        """
        self._region.require_held()
        self._settle()
        if not self._known.open:
            raise StateError(
                f"The mirror in {self._region.name} has commits that this process did not open",
                "Call mirror_in before mirror_out",
            )
        self._settled = False
        commit = self._planned(snapshot)
        try:
            if self._fits(commit):
                self._write_here(commit, spoiled)
            else:
                self._planner.forget()
                commit = self._planned(snapshot)
                self._write_larger(commit, spoiled)
        except _SpoiledError:
            return 0
        self._settled = True
        return commit.written

    def newest(self) -> Manifest | None:
        """The manifest of the newest commit, or None before the first.

        Raises SealError or RegionError naming the commit; nothing is changed.
        """
        self._settle()
        known = self._known
        if known.counter == 0:
            return None
        found = self._open_manifest(known.counter, known.digest)
        self._known = known._replace(digest=found.digest, previous=found.previous)
        return found

    def before_newest(self) -> Manifest | None:
        """The manifest of the commit before the newest, or None if there is none any more.

        Raises as `newest` does.
        """
        known = self._known
        before = known.counter - 1
        return self._open_manifest(before, known.previous) if before > known.layout.base else None

    def read(self, about: Manifest, outs: Sequence[memoryview]) -> None:
        """Open every tensor of a commit into memory of its size; the run goes on from there.

        If that is the commit before the newest, the newest is none any more. Raises SealError
        naming the commit: `outs` are zeros then, and nothing else is changed.
        """
        self._settle()
        known = self._known._replace(open=False)
        self._known, self._settled = known, False
        kept = about.kept_values
        spare = [memoryview(bytearray(kept.nbytes))] if kept else []
        try:
            self._read_chunks(about, [*outs, *spare], cut(about.sizes))
        except BaseException:
            self._workers.quiesce()
            for out in outs:
                out[:] = bytes(len(out))
            raise
        older = about.commit < known.counter
        if older:
            known = known._replace(counter=about.commit, previous=about.previous)
        self._known = known._replace(digest=about.digest, open=True)
        if older:
            self._settle()
        self._settled = True

    def snapshot(self, about: Manifest) -> Snapshot:
        """Open a whole commit into fresh memory; as `read`."""
        outs = [memoryview(bytearray(spec.nbytes)) for spec in about.tensors]
        self.read(about, outs)
        tensors = tuple(
            TensorBytes(spec.name, spec.dtype, spec.shape, data, order=spec.order)
            for spec, data in zip(about.tensors, outs, strict=True)
        )
        return Snapshot(about.iteration, tensors, about.values, about.identity, about.environment)

    def close(self) -> None:
        """End its threads."""
        self._workers.close()

    def _planned(self, snapshot: Snapshot) -> Commit:
        """The next commit; what lies unchanged in its slot is not sealed again."""
        tensors, values = manifest.with_values(snapshot)
        planner, number = self._planner, self._known.counter + 1
        planner.lay_out(tensors)
        data = [tensor.data for tensor in tensors]
        found = self._workers.fingerprints(planner.candidates(number), data)
        plan = planner.plan(number, found)
        kept = plan.kept
        sealed_by = [kept[c.number].commit if c.number in kept else number for c in planner.all]
        salts = {lies.commit: lies.salt for lies in kept.values()}
        assert self._known.digest is not None
        plain = manifest.to_bytes(snapshot, tensors, values, self._known.digest, sealed_by, salts)
        return Commit(plan, tensors, plain)

    def _fits(self, commit: Commit) -> bool:
        layout = self._known.layout
        used = PAGE + layout.manifest_room + room_for(self._planner.all)
        return commit.manifest_bytes <= layout.manifest_room and used <= layout.slot_bytes

    def _write_here(self, commit: Commit, spoiled: Spoiled) -> None:
        known, number = self._known, commit.plan.number
        self._planner.begin(number)  # interrupted, none of it is relied on
        digest, taken = self._fill(known.layout, commit, spoiled)
        self._medium.fence()
        self._next = known._replace(counter=number, digest=digest, previous=known.digest)
        self._put_word(known.layout, number, number)
        self._medium.fence()
        self._adopt()
        self._planner.done(commit.plan, taken)

    def _write_larger(self, commit: Commit, spoiled: Spoiled) -> None:
        """Commit in larger slots, which take the place of these in one transaction."""
        known, number = self._known, commit.plan.number
        layout = layout_for(commit.tensors, known.counter, commit.manifest_bytes, known.layout)
        taken: dict[int, bytes] = {}

        def write(medium: Medium, at: int) -> None:
            there = layout._replace(offset=at)
            medium.write(at, header_bytes(self._run_id, self._key.id, layout))
            for counter in (known.counter, number):
                self._put_word(there, counter, counter)
            digest, found = self._fill(there, commit, spoiled)
            taken.update(found)
            span = Span(at, layout.length)
            self._next = _Known(span, there, number, digest, None, open=True)

        self._region.replace_extent(EXTENT, layout.length, write)
        self._adopt()
        self._planner.done(commit.plan, taken)

    def _fill(
        self, layout: Layout, commit: Commit, spoiled: Spoiled
    ) -> tuple[str, dict[int, bytes]]:
        """Seal and write all of a commit but its word; its digest, and the fingerprints taken."""
        plan = commit.plan
        sealer = self._key.sealer(_PURPOSE, plan.salt)
        sealed = sealer.seal(0, commit.manifest, self._aad(plan.number, 0))
        # The word of the older commit stays as it is until the new one relayouts it.
        header = SLOT_HEAD.pack(0, plan.salt, len(sealed))[8:]
        self._medium.write(layout.slot(plan.number) + 8, header)
        self._medium.write(layout.manifest(plan.number), sealed)
        taken = self._workers.seal(
            plan.todo,
            [tensor.data for tensor in commit.tensors],
            plan.look,
            sealer,
            lambda chunk: self._aad(plan.number, chunk.number),
            layout.chunks(plan.number),
        )
        if spoiled():
            self._medium.fence()  # the writers' memory is free again
            raise _SpoiledError
        return _digest(plan.salt, sealed), taken

    def _settle(self) -> None:
        """After anything that may have ended early: make the words of the known commit durable.

        A killed process leaves its stores in the caches, and a failed msync leaves pages that the
        kernel takes for clean, so both words are stored again before they are flushed. They must
        be durable before the next commit writes over the slot of the one before.
        """
        self._region.require_held()
        if self._settled:
            return
        self._planner.forget()
        self._workers.quiesce()
        if self._region.writable:
            self._region.recover()  # larger slots may have been half-way to their name
            self._adopt()
            layout, counter = self._known.layout, self._known.counter
            self._put_word(layout, counter, counter)
            self._put_word(layout, counter + 1, max(0, counter - 1))  # in the other slot
            self._medium.fence()
        self._settled = True

    def _adopt(self) -> None:
        """Go on from the next commit if it is there. Raises RegionError if the slots moved."""
        span, following = self._region.extent(EXTENT), self._next
        if following is not None and span == following.span:
            self._known = following
        elif span != self._known.span:
            raise RegionError(
                f"The mirror in {self._region.name} was moved under this process",
                "The region was altered: restore a copy of it, or start a new one",
            )
        self._next = None

    def _put_word(self, layout: Layout, slot: int, counter: int) -> None:
        """Store and flush a commit's word in slot `slot` mod 2; 0 says that there is none."""
        at = layout.slot(slot)
        self._medium.store_word(at, commit_word(self._run_id, counter) if counter else 0)
        self._medium.flush(at, 8)

    def _open_manifest(self, commit: int, digest: str | None) -> Manifest:
        """The manifest of a commit; `digest` is the commit's, if that is known."""
        layout = self._known.layout
        header = bytes(self._medium.read(layout.slot(commit), SLOT_HEAD.size))
        _, salt, length = SLOT_HEAD.unpack(header)
        most = min(layout.manifest_room, manifest.MAX_BYTES + sealing.TAG_BYTES)
        if any(header[8:64] + header[104:]) or not sealing.TAG_BYTES <= length <= most:
            raise self._refused(commit)
        sealed = bytes(self._medium.read(layout.manifest(commit), length))
        found = _digest(salt, sealed)
        if digest is not None and digest != found:
            raise self._refused(commit)
        try:
            plain = self._key.sealer(_PURPOSE, salt).open(0, sealed, self._aad(commit, 0))
        except SealError:
            raise self._refused(commit) from None
        about = manifest.from_bytes(plain, commit, salt, found)
        return about if about.kept_values is None else self._with_values(about)

    def _with_values(self, about: Manifest) -> Manifest:
        """A manifest with the values that are kept in its last tensor."""
        assert about.kept_values is not None
        last = len(about.tensors)
        values = memoryview(bytearray(about.kept_values.nbytes))
        outs = [memoryview(b"")] * last + [values]
        chunks = [chunk for chunk in cut(about.sizes) if chunk.parts[0].tensor == last]
        self._read_chunks(about, outs, chunks)
        return dataclasses.replace(about, values=json.loads(bytes(values)))

    def _read_chunks(
        self, about: Manifest, outs: Sequence[memoryview], chunks: list[Chunk]
    ) -> None:
        sealers = {by: self._key.sealer(_PURPOSE, salt) for by, salt in about.salts.items()}

        def sealer_of(chunk: Chunk) -> sealing.Sealer:
            return sealers[about.sealed_by[chunk.number - 1]]

        def aad(chunk: Chunk) -> bytes:
            return self._aad(about.sealed_by[chunk.number - 1], chunk.number)

        at = self._known.layout.chunks(about.commit)
        try:
            self._workers.open(chunks, outs, sealer_of, aad, at)
        except SealError:
            raise self._refused(about.commit) from None

    def _aad(self, commit: int, chunk: int) -> bytes:
        return _AAD.pack(VERSION, self._run_id, commit, chunk)

    def _refused(self, commit: int) -> SealError:
        return SealError(
            f"Commit {commit} in the mirror of {self._region.name} does not open with this key",
            "It was altered or the disk is failing: restore a copy of the region; to go on from "
            "the commit before, knowingly, train with --accept-previous",
        )


class _SpoiledError(Exception):
    """What was sealed is no state of the run: nothing is to be committed."""


def _digest(salt: bytes, sealed_manifest: bytes) -> str:
    return hashlib.sha256(salt + sealed_manifest).hexdigest()
