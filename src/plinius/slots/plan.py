"""The plan of a commit: which chunks are sealed, and which stay in the slot as they are.

A chunk stays in its slot only if its bytes are proved to be those that were sealed there: their
fingerprint (128 bits of XXH3, https://xxhash.com, under a secret seed) equals the one taken of the
sealed bytes. A chunk that keeps changing is sealed without a fingerprint (back-off): the next one
is taken after 8, 16, 32 ... commits, at most `MOST_WAIT`, and in one of the two slots only.
"""

import struct
from collections.abc import Hashable, Sequence
from typing import NamedTuple

from plinius import sealing
from plinius.slots.chunks import Chunk, cut
from plinius.snapshot import TensorBytes, TensorSpec

LEAST_WAIT, MOST_WAIT = 8, 64
SLOT_HEAD = struct.Struct("<Q56x32sQ24x")
"""Commit word, salt, bytes of the sealed manifest."""


_Versions = tuple[Hashable, ...] | None


class StoredChunk(NamedTuple):
    """What is known of a chunk in a slot: the commit that sealed it, and about its plaintext.

    `versions` are those of its tensors; None if they are not trusted. `fingerprint` is None if
    none was taken.
    """

    commit: int
    salt: bytes
    versions: _Versions
    fingerprint: bytes | None


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
    """What a commit does with each chunk: `dirty` ones are sealed, `unchanged` ones stay.

    Of the chunks whose numbers are in `fingerprinted`, a fingerprint is taken as they are sealed.
    """

    number: int
    salt: bytes
    dirty: list[Chunk]
    fingerprinted: set[int]
    unchanged: dict[int, StoredChunk]


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
        self._stored: list[dict[int, StoredChunk]] = [{}, {}]
        self._back_offs: dict[int, _BackOff] = {}
        self._versions: dict[int, _Versions] = {}
        self.chunks: list[Chunk] = []

    def divide(
        self, tensors: Sequence[TensorSpec], versions: Sequence[Hashable] | None = None
    ) -> None:
        """Divide tensors into chunks. If their specs are new, nothing in the slots is of use.

        `versions` are those of the first tensors; of the others nothing is trusted.
        """
        specs = [tensor.json for tensor in tensors]
        if specs != self._specs:
            self.forget()
            self._specs, self.chunks = specs, cut([tensor.nbytes for tensor in tensors])
        self._versions = {}
        if versions:
            self._versions = {chunk.number: _versions(chunk, versions) for chunk in self.chunks}

    def forget(self) -> None:
        """Rely on nothing in the slots."""
        self._specs, self._stored, self._back_offs = [], [{}, {}], {}

    def candidates(self, number: int) -> list[Chunk]:
        """The chunks whose fingerprint decides whether commit `number` seals them."""
        in_slot = self._stored[number % 2]
        return [
            chunk
            for chunk in self.chunks
            if (stored := in_slot.get(chunk.number))
            and stored.fingerprint is not None
            and not self._is_trusted(chunk, stored)
        ]

    def plan(self, number: int, found: dict[int, bytes]) -> Plan:
        """The plan of commit `number`; `found` are the fingerprints of its candidates now."""
        in_slot, salt = self._stored[number % 2], sealing.fresh(sealing.SALT_BYTES)
        dirty, fingerprinted, unchanged = [], set(), {}
        for chunk in self.chunks:
            stored = in_slot.get(chunk.number)
            fingerprint = found.get(chunk.number)
            if stored and self._is_trusted(chunk, stored):
                unchanged[chunk.number] = stored
                continue
            if stored and fingerprint is not None and stored.fingerprint == fingerprint:
                versions = self._versions.get(chunk.number)
                unchanged[chunk.number] = stored._replace(versions=versions)
                self._back_offs.pop(chunk.number, None)
                continue
            if fingerprint is not None:
                self._back_off(chunk.number, number)
            if self._back_offs.get(chunk.number, _NO_BACK_OFF).is_due(number):
                fingerprinted.add(chunk.number)
            dirty.append(chunk)
        return Plan(number, salt, dirty, fingerprinted, unchanged)

    def done(self, plan: Plan, taken: dict[int, bytes]) -> None:
        """A commit is written; `taken` are the fingerprints of what it sealed."""
        sealed = {
            chunk.number: StoredChunk(
                plan.number,
                plan.salt,
                self._versions.get(chunk.number),
                taken.get(chunk.number),
            )
            for chunk in plan.dirty
        }
        self._stored[plan.number % 2] = {**plan.unchanged, **sealed}

    def _is_trusted(self, chunk: Chunk, stored: StoredChunk) -> bool:
        versions = self._versions.get(chunk.number)
        return versions is not None and stored.versions == versions

    def _back_off(self, chunk: int, number: int) -> None:
        changes = self._back_offs.get(chunk, _NO_BACK_OFF).changes + 1
        wait = min(LEAST_WAIT * 2 ** (changes - 1), MOST_WAIT)
        until = number + wait + chunk % LEAST_WAIT  # not all chunks in the same commit
        self._back_offs[chunk] = _BackOff(changes, until)
        other = self._stored[(number + 1) % 2]
        if chunk in other:  # nor is it tested in the other slot until then
            other[chunk] = other[chunk]._replace(fingerprint=None)


def _versions(chunk: Chunk, versions: Sequence[Hashable]) -> _Versions:
    last = chunk.segments[-1].tensor
    if last >= len(versions):
        return None
    if len(chunk.segments) == 1:
        return None if versions[last] is None else (versions[last],)
    found = tuple([versions[segment.tensor] for segment in chunk.segments])
    return None if None in found else found
