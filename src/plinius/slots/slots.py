"""The slots: sealed copies of a run's state, two in turn, each committed by one word.

Invariants: commit N lies in slot N mod 2. A commit writes the older slot | fence 1 | its word |
fence 2, so the newest committed slot is never written to, and the two words always hold
consecutive counters. What a commit seals is under a key no other commit has; a piece of which
nothing changed since the same slot was last committed stays as it lies there, and the manifest
names the commit that sealed it. Sealing goes through private memory: AES-GCM reads its own output
back to authenticate it, so output in memory that the host can write would let the host choose
what is authenticated.
"""

import hashlib
import struct
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import NamedTuple

from plinius import sealing
from plinius.errors import MismatchError, SealError
from plinius.keys import OwnerKey
from plinius.pm.heap import Span
from plinius.pm.medium import PAGE, Medium
from plinius.pm.region import Region
from plinius.slots import manifest
from plinius.slots.lanes import Lanes
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
from plinius.slots.pieces import Piece, cut, room_for
from plinius.snapshot import Snapshot, TensorBytes

MAX_MANIFEST_BYTES = 64 << 20
_PURPOSE = "mirror"
_SLOT = struct.Struct("<Q56x32sQ24x")
_AAD = struct.Struct("<I16sQI")  # version, run id, the commit that seals, piece
_DIGEST_OF_NONE = "0" * 64


class _Held(NamedTuple):
    """A piece that lies in a slot: of which state of its tensors, sealed by which commit."""

    stamps: tuple[Hashable, ...]
    commit: int
    salt: bytes


class _Commit(NamedTuple):
    """A commit to be written: what of it is to be sealed, and what its slot holds already."""

    number: int
    salt: bytes
    todo: list[Piece]
    held: dict[int, _Held]
    manifest: bytes

    @property
    def manifest_bytes(self) -> int:
        return len(self.manifest) + sealing.TAG_BYTES

    @property
    def written(self) -> int:
        sealed = sum(piece.sealed_bytes for piece in self.todo)
        return _SLOT.size + self.manifest_bytes + sealed


class Slots:
    """The slots of one run in a region, for the owner's key they were made with."""

    def __init__(self, region: Region, key: OwnerKey, span: Span, threads: int = 1) -> None:
        self._region = region
        self._medium = region.medium
        self._key = key
        self._run_id, key_id, self._layout = read_header(region, span)
        key.require(key_id, f"The mirror in {region.name}")
        self._counter = max(read_counters(region, self._run_id, self._layout))
        # The digest of the newest commit, once it was opened or written here; 0 is before all.
        self._digests = {0: _DIGEST_OF_NONE}
        self._settled = False
        self._lanes = Lanes(region.medium, threads)
        self._specs: list[tuple[object, ...]] = []
        self._pieces: list[Piece] = []
        self._held: list[dict[int, _Held]] = [{}, {}]

    @classmethod
    def open(cls, region: Region, key: OwnerKey, threads: int = 1) -> "Slots | None":
        """The slots of a region, or None if it has none yet; `threads` share the sealing.

        Raises KeyFileError, FormatError, RegionError.
        """
        span = region.extent(EXTENT)
        return cls(region, key, span, threads) if span is not None else None

    @classmethod
    def create(cls, region: Region, key: OwnerKey, like: Snapshot, threads: int = 1) -> "Slots":
        """Make slots that hold states of the layout of `like`. Raises RegionFullError."""
        plain = manifest.to_bytes(like, _DIGEST_OF_NONE, [], {})
        layout = layout_for(like, 0, len(plain))
        header = header_bytes(sealing.fresh(16), key.id, layout)

        def write(medium: Medium, at: int) -> None:
            medium.write(at, header)
            for slot in (0, 1):
                medium.write(layout._replace(offset=at).slot(slot), bytes(_SLOT.size))

        slots = cls(region, key, region.add_extent(EXTENT, layout.length, write), threads)
        slots._settled = True
        return slots

    @property
    def commits(self) -> int:
        """The counter of the newest commit; 0 before the first."""
        return self._counter

    @property
    def run_id(self) -> bytes:
        """The random name of the run (16 bytes)."""
        return bytes(self._run_id)

    def write(self, snapshot: Snapshot, spoiled: Callable[[], bool] = lambda: False) -> int:
        """Seal a state into the older slot and commit it; returns the sealed bytes written.

        Two fences, and larger slots first if the state has outgrown them. A stop at any instant
        leaves this commit or the one before. `spoiled` is asked when all is sealed: if so, nothing
        is committed and 0 returned. Raises RegionFullError and StorageError; the next write
        starts afresh.
        """
        self._region.require_held()
        if not self._settled:  # interrupted, the last write may have left a commit, or none
            self._counter = self._settle()
        if self._counter not in self._digests:
            raise RuntimeError("the newest commit is read before the first write")
        self._lay_out(snapshot)
        commit = self._planned(snapshot, self._held[(self._counter + 1) % 2])
        self._settled = False
        try:
            if self._fits(commit):
                self._write_here(commit, snapshot, spoiled)
            else:
                commit = self._planned(snapshot, {})
                self._write_larger(commit, snapshot, spoiled)
        except _SpoiledError:
            return 0
        self._settled = True
        self._counter = commit.number
        self._held[commit.number % 2] = commit.held
        return commit.written

    def newest(self) -> Manifest | None:
        """The manifest of the newest commit, or None before the first.

        Raises SealError or RegionError naming the commit; nothing is changed.
        """
        self._counter = self._settle()
        if self._counter == 0:
            return None
        return self._open_manifest(self._counter)

    def before_newest(self) -> Manifest | None:
        """The manifest of the commit before the newest, or None if there is none any more.

        Raises as `newest` does.
        """
        before = self._counter - 1
        return self._open_manifest(before) if before > self._layout.base else None

    def read(self, about: Manifest, outs: Sequence[memoryview]) -> None:
        """Open every tensor of a commit into memory of its size; the run goes on from there.

        If that is the commit before the newest, the newest is none any more. Raises SealError
        naming the commit: `outs` then mean nothing, and nothing else is changed.
        """
        todo = cut([spec.nbytes for spec in about.tensors])
        sealers = {by: self._key.sealer(_PURPOSE, salt) for by, salt in about.salts.items()}

        def sealer_of(piece: Piece) -> sealing.Sealer:
            return sealers[about.sealed_by[piece.number - 1]]

        def aad(piece: Piece) -> bytes:
            return self._aad(about.sealed_by[piece.number - 1], piece.number)

        try:
            self._lanes.open(todo, outs, sealer_of, aad, self._layout.pieces(about.commit))
        except SealError:
            raise self._refused(about.commit) from None
        if about.commit < self._counter:
            self._forget_newest()
        self._digests = {about.commit: about.digest}

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
        self._lanes.close()

    def _lay_out(self, snapshot: Snapshot) -> None:
        """Cut the tensors into pieces; what lies in the slots is of use in the same layout only."""
        specs: list[tuple[object, ...]] = [
            (t.name, t.dtype, t.shape, t.order) for t in snapshot.tensors
        ]
        if specs != self._specs:
            self._specs, self._held = specs, [{}, {}]
            self._pieces = cut([tensor.nbytes for tensor in snapshot.tensors])

    def _planned(self, snapshot: Snapshot, old: dict[int, _Held]) -> _Commit:
        """The next commit; what `old` says to lie in its slot unchanged is not sealed again."""
        number, salt = self._counter + 1, sealing.fresh(sealing.SALT_BYTES)
        todo, held = [], {}
        for piece in self._pieces:
            stamps = tuple(snapshot.tensors[part.tensor].stamp for part in piece.parts)
            lies = old.get(piece.number)
            if lies and None not in stamps and lies.stamps == stamps:
                held[piece.number] = lies
            else:
                todo.append(piece)
                held[piece.number] = _Held(stamps, number, salt)
        sealed_by = [held[piece.number].commit for piece in self._pieces]
        salts = {lies.commit: lies.salt for lies in held.values() if lies.commit != number}
        plain = manifest.to_bytes(snapshot, self._digests[self._counter], sealed_by, salts)
        return _Commit(number, salt, todo, held, plain)

    def _fits(self, commit: _Commit) -> bool:
        layout = self._layout
        used = PAGE + layout.manifest_room + room_for(self._pieces)
        return commit.manifest_bytes <= layout.manifest_room and used <= layout.slot_bytes

    def _write_here(self, commit: _Commit, snapshot: Snapshot, spoiled: Callable[[], bool]) -> None:
        self._held[commit.number % 2] = {}  # interrupted, none of it is relied on
        self._fill(self._layout, commit, snapshot, spoiled)
        self._medium.fence()
        self._put_word(self._layout, commit.number)
        self._medium.fence()

    def _write_larger(
        self, commit: _Commit, snapshot: Snapshot, spoiled: Callable[[], bool]
    ) -> None:
        """Commit in larger slots, which take the place of these in one transaction."""
        layout = layout_for(snapshot, self._counter, commit.manifest_bytes, self._layout)

        def write(medium: Medium, at: int) -> None:
            there = layout._replace(offset=at)
            medium.write(at, header_bytes(self._run_id, self._key.id, layout))
            for number in (self._counter, commit.number):
                self._put_word(there, number)
            self._fill(there, commit, snapshot, spoiled)

        self._held = [{}, {}]
        span = self._region.replace_extent(EXTENT, layout.length, write)
        self._layout = layout._replace(offset=span.offset)

    def _fill(
        self, layout: Layout, commit: _Commit, snapshot: Snapshot, spoiled: Callable[[], bool]
    ) -> None:
        """Seal and write all of a commit but its word."""
        number = commit.number
        sealer = self._key.sealer(_PURPOSE, commit.salt)
        sealed = sealer.seal(0, commit.manifest, self._aad(number, 0))
        self._digests = {
            self._counter: self._digests[self._counter],
            number: _digest(commit.salt, sealed),
        }
        # The word of the older commit stays as it is until the new one relayouts it.
        self._medium.write(layout.slot(number) + 8, _SLOT.pack(0, commit.salt, len(sealed))[8:])
        self._medium.write(layout.manifest(number), sealed)
        self._lanes.seal(
            commit.todo,
            [tensor.data for tensor in snapshot.tensors],
            sealer,
            lambda piece: self._aad(number, piece.number),
            layout.pieces(number),
        )
        if spoiled():
            self._medium.fence()  # the writers' memory is free again
            raise _SpoiledError

    def _settle(self) -> int:
        """The newest commit's counter, after making the words that show it last.

        A killed process leaves its stores in the caches, and a failed msync leaves pages that the
        kernel takes for clean, so both words are stored again before they are flushed. They must
        last before the next commit writes over the slot of the one before.
        """
        self._region.require_held()
        if self._region.writable:
            self._region.recover()  # larger slots may have been half-way to their name
        span = self._region.extent(EXTENT)
        assert span is not None
        self._run_id, _, self._layout = read_header(self._region, span)
        counters = read_counters(self._region, self._run_id, self._layout)
        if self._region.writable:
            for slot, counter in enumerate(counters):
                self._put_word(self._layout, counter, slot)
            self._medium.fence()
        self._settled = True
        return max(counters)

    def _forget_newest(self) -> None:
        """Give the refused slot the word it had before, so that it is no commit any more."""
        self._counter -= 1
        if self._region.writable:
            self._put_word(self._layout, self._counter - 1)
            self._medium.fence()

    def _put_word(self, layout: Layout, counter: int, slot: int | None = None) -> None:
        """Store and flush a commit's word in its slot (or in `slot`); 0 says there is none."""
        at = layout.slot(counter if slot is None else slot)
        self._medium.store_word(at, commit_word(self._run_id, counter) if counter else 0)
        self._medium.flush(at, 8)

    def _open_manifest(self, commit: int) -> Manifest:
        header = bytes(self._medium.read(self._layout.slot(commit), _SLOT.size))
        _, salt, length = _SLOT.unpack(header)
        most = min(self._layout.manifest_room, MAX_MANIFEST_BYTES)
        if any(header[8:64] + header[104:]) or not sealing.TAG_BYTES <= length <= most:
            raise self._refused(commit)
        sealed = bytes(self._medium.read(self._layout.manifest(commit), length))
        try:
            plain = self._key.sealer(_PURPOSE, salt).open(0, sealed, self._aad(commit, 0))
        except SealError:
            raise self._refused(commit) from None
        return manifest.from_bytes(plain, commit, salt, _digest(salt, sealed))

    def _aad(self, commit: int, piece: int) -> bytes:
        return _AAD.pack(VERSION, self._run_id, commit, piece)

    def _refused(self, commit: int) -> SealError:
        return SealError(
            f"Commit {commit} in the mirror of {self._region.name} does not open with this key",
            "It was altered or the disk is failing: restore a copy of the region; to go on from "
            "the commit before, knowingly, train with --accept-previous",
        )


class _SpoiledError(Exception):
    """What was sealed is no state of the run: nothing is to be committed."""


def newest_snapshot(region: Path, key: OwnerKey) -> Snapshot:
    """The newest committed state of a region, opened read-only: nothing is written.

    Raises MismatchError if there is none, and what opening a region and its slots raise.
    """
    with Region.open(region, writable=False) as opened:
        snapshot = read_snapshot(opened, key)
    if snapshot is None:
        raise MismatchError(f"{region} holds no mirrored run", "Train one first: plinius train")
    return snapshot


def read_snapshot(region: Region, key: OwnerKey) -> Snapshot | None:
    """The newest committed state of a region, or None before the first commit."""
    slots = Slots.open(region, key)
    about = slots.newest() if slots else None
    if slots is None or about is None:
        return None
    snapshot = slots.snapshot(about)
    slots.close()
    return snapshot


def _digest(salt: bytes, sealed_manifest: bytes) -> str:
    return hashlib.sha256(salt + sealed_manifest).hexdigest()
