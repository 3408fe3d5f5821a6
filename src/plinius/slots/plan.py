"""The plan of a commit: which chunks are sealed, and which stay in the slot as they are.

A chunk stays in its slot only if its bytes are proved to be those that were sealed there: their
fingerprint (128 bits of XXH3, https://xxhash.com, under a secret seed) equals the one taken of the
sealed bytes. A chunk that keeps changing is sealed without a fingerprint (back-off): the next one
is taken after 8, 16, 32 ... commits, at most `MOST_WAIT`, and in one of the two slots only.
"""

import operator
import struct
from collections.abc import Hashable, Sequence
from itertools import compress, count, repeat
from typing import NamedTuple

from plinius import sealing
from plinius.slots.chunks import Chunk, cut
from plinius.snapshot import TensorBytes, TensorSpec

LEAST_WAIT, MOST_WAIT = 8, 64
SLOT_HEAD = struct.Struct("<Q56x32sQ24x")
"""Commit word, salt, bytes of the sealed manifest."""


class _Contents(NamedTuple):
    """What is known of the chunks in a slot: lists with one entry for each chunk, in their order.

    `sealed_by` are the commits that sealed them, and `salts` the salts of those. A fingerprint is
    None if none was taken. `versions` are those of the tensors when the slot was written; None if
    they are not trusted.
    """

    sealed_by: list[int]
    salts: dict[int, bytes]
    fingerprints: list[bytes | None]
    versions: Sequence[Hashable] | None


class _BackOff(NamedTuple):
    """How often in turn a chunk was found changed; `until` is the next commit to test it at."""

    changes: int
    until: int

    def is_due(self, number: int) -> bool:
        """Whether commit `number` takes a fingerprint: of one slot, or of both at the start."""
        past = number - self.until
        return self.changes == 0 or (past >= 0 and past % 2 == 0)


_NO_BACK_OFF = _BackOff(0, 0)


class Plan(NamedTuple):
    """What a commit does: the `dirty` chunks are sealed, the others stay in the slot.

    Of the chunks whose numbers are in `fingerprinted`, a fingerprint is taken as they are sealed.
    `sealed_by` has, for each chunk in turn, the commit that sealed it, and `salts` the salts of
    those commits but this one.
    """

    number: int
    salt: bytes
    dirty: list[Chunk]
    fingerprinted: set[int]
    sealed_by: list[int]
    salts: dict[int, bytes]


class Commit(NamedTuple):
    """A commit to be written: its plan, the tensors, and the manifest before it is sealed."""

    plan: Plan
    tensors: tuple[TensorBytes, ...]
    manifest: bytes

    @property
    def manifest_bytes(self) -> int:
        """Bytes of the sealed manifest."""
        return len(self.manifest) + sealing.TAG_BYTES

    @property
    def written(self) -> int:
        """Bytes that are sealed and written for it."""
        sealed = sum(chunk.sealed_bytes for chunk in self.plan.dirty)
        return SLOT_HEAD.size + self.manifest_bytes + sealed


class Planner:
    """Plans commits, by what is known of the chunks in the two slots."""

    def __init__(self) -> None:
        self._specs: list[bytes] = []
        self._slots: list[_Contents | None] = [None, None]
        self._back_offs: dict[int, _BackOff] = {}
        self._chunks_of: list[list[Chunk]] = []
        self._number = 0
        self._versions: Sequence[Hashable] | None = None
        self._untrusted: list[Chunk] = []
        self.chunks: list[Chunk] = []

    def begin(
        self,
        number: int,
        tensors: Sequence[TensorSpec],
        versions: Sequence[Hashable] | None = None,
    ) -> list[Chunk]:
        """Divide the tensors of commit `number` into chunks. If their specs are new, all are dirty.

        `versions` are those of the first tensors; of the others nothing is trusted. Returns the
        chunks of which a fingerprint now decides whether they are dirty.
        """
        specs = [tensor.json for tensor in tensors]
        if specs != self._specs:
            self.forget()
            self._specs, self.chunks = specs, cut([tensor.nbytes for tensor in tensors])
            self._chunks_of = [[] for _ in specs]
            for chunk in self.chunks:
                for segment in chunk.segments:
                    self._chunks_of[segment.tensor].append(chunk)
        self._number, self._versions = number, versions
        slot = self._slots[number % 2]
        self._untrusted = self._changed(slot.versions if slot else None)
        known = slot.fingerprints if slot else []
        return [chunk for chunk in self._untrusted if known and known[chunk.number - 1] is not None]

    def forget(self) -> None:
        """Rely on nothing in the slots."""
        self._specs, self._slots, self._back_offs = [], [None, None], {}

    def plan(self, found: dict[int, bytes]) -> Plan:
        """The plan of the commit that began; `found` are the fingerprints that decide."""
        number, slot, dirty, fingerprinted = self._number, self._slots[self._number % 2], [], set()
        for chunk in self._untrusted:
            fingerprint = found.get(chunk.number)
            if fingerprint is not None:
                assert slot is not None
                if slot.fingerprints[chunk.number - 1] == fingerprint:
                    self._back_offs.pop(chunk.number, None)
                    continue
                self._back_off(chunk.number)
            if self._back_offs.get(chunk.number, _NO_BACK_OFF).is_due(number):
                fingerprinted.add(chunk.number)
            dirty.append(chunk)
        sealed_by = slot.sealed_by.copy() if slot else [number] * len(self.chunks)
        for chunk in dirty:
            sealed_by[chunk.number - 1] = number
        salts = {by: slot.salts[by] for by in {*sealed_by} - {number}} if slot else {}
        salt = sealing.fresh(sealing.SALT_BYTES)
        return Plan(number, salt, dirty, fingerprinted, sealed_by, salts)

    def done(self, plan: Plan, taken: dict[int, bytes]) -> None:
        """A commit is written; `taken` are the fingerprints of what it sealed."""
        slot = self._slots[plan.number % 2]
        nothing: list[bytes | None] = [None] * len(self.chunks)
        fingerprints = slot.fingerprints.copy() if slot else nothing
        for chunk in plan.dirty:
            fingerprints[chunk.number - 1] = taken.get(chunk.number)
        salts = {**plan.salts, plan.number: plan.salt}
        self._slots[plan.number % 2] = _Contents(
            plan.sealed_by, salts, fingerprints, self._versions
        )

    def _changed(self, before: Sequence[Hashable] | None) -> list[Chunk]:
        """The chunks that hold a tensor whose version is unknown or not the one before."""
        now = self._versions
        if before is None or now is None:
            return self.chunks
        assert len(before) == len(now), "tensors of other specs are in other slots"
        unknown = compress(count(), map(operator.is_, now, repeat(None)))
        written = compress(count(), map(operator.ne, now, before))
        indices = {*unknown, *written, *range(len(now), len(self._chunks_of))}
        changed = {chunk.number for index in indices for chunk in self._chunks_of[index]}
        return [self.chunks[number - 1] for number in sorted(changed)]

    def _back_off(self, chunk: int) -> None:
        changes = self._back_offs.get(chunk, _NO_BACK_OFF).changes + 1
        wait = min(LEAST_WAIT * 2 ** (changes - 1), MOST_WAIT)
        until = self._number + wait + chunk % LEAST_WAIT  # not all chunks in the same commit
        self._back_offs[chunk] = _BackOff(changes, until)
        other = self._slots[(self._number + 1) % 2]
        if other:  # nor is it tested in the other slot until then
            other.fingerprints[chunk - 1] = None
