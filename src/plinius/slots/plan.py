"""The plan of a commit: which chunks are sealed, and which lie in the slot as they are.

A chunk stays as it lies in its slot only if the bytes are proved to be those that were sealed
there: their fingerprint (128 bits of XXH3, under a secret seed) equals the one taken of the sealed
bytes. A chunk that keeps changing is sealed without a look: its next fingerprint is taken after 8,
16, 32 ... commits, at most `MOST_WAIT`, and in one of the slots.
"""

import struct
from collections.abc import Hashable, Sequence
from typing import NamedTuple

from plinius import sealing
from plinius.slots.chunks import Chunk, cut
from plinius.snapshot import TensorBytes

LEAST_WAIT, MOST_WAIT = 8, 64
SLOT_HEAD = struct.Struct("<Q56x32sQ24x")
"""Commit word, salt, bytes of the sealed manifest."""


_Versions = tuple[Hashable, ...] | None


class Held(NamedTuple):
    """A chunk that lies in a slot: sealed by which commit, and what is known of its plaintext.

    `versions` are those of its tensors, None where none are trusted. `fingerprint` is None where
    none was taken.
    """

    commit: int
    salt: bytes
    versions: _Versions
    fingerprint: bytes | None


class _Habit(NamedTuple):
    """How often in turn a chunk was found changed, and from which commit on to look again."""

    changes: int
    look_from: int

    def look(self, number: int) -> bool:
        """Whether commit `number` takes a fingerprint: one slot does, unless nothing is known."""
        ahead = number - self.look_from
        return self.changes == 0 or (ahead >= 0 and ahead % 2 == 0)


_NEW = _Habit(0, 0)


class Plan(NamedTuple):
    """A commit to be written: `todo` is to be sealed, `kept` lies in the slot already.

    Of the chunks in `look`, a fingerprint is taken as they are sealed.
    """

    number: int
    salt: bytes
    todo: list[Chunk]
    look: set[int]
    kept: dict[int, Held]


class Commit(NamedTuple):
    """A commit to be written."""

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
        sealed = sum(chunk.sealed_bytes for chunk in self.plan.todo)
        return SLOT_HEAD.size + self.manifest_bytes + sealed


class Planner:
    """The chunks of a state, and what lies of them in the two slots."""

    def __init__(self) -> None:
        self._specs: list[tuple[object, ...]] = []
        self._held: list[dict[int, Held]] = [{}, {}]
        self._habits: dict[int, _Habit] = {}
        self._versions: dict[int, _Versions] = {}
        self.all: list[Chunk] = []

    def lay_out(self, tensors: Sequence[TensorBytes]) -> None:
        """Cut tensors into chunks; what lies in the slots is of use in the same layout only."""
        specs: list[tuple[object, ...]] = [(t.name, t.dtype, t.shape, t.order) for t in tensors]
        if specs != self._specs:
            self.forget()
            self._specs, self.all = specs, cut([tensor.nbytes for tensor in tensors])
        self._versions = {}
        if any(tensor.version is not None for tensor in tensors):
            self._versions = {chunk.number: _versions(chunk, tensors) for chunk in self.all}

    def forget(self) -> None:
        """Rely on nothing that lies in the slots."""
        self._specs, self._held, self._habits = [], [{}, {}], {}

    def candidates(self, number: int) -> list[Chunk]:
        """The chunks whose fingerprint decides whether commit `number` seals them."""
        held = self._held[number % 2]
        return [
            chunk
            for chunk in self.all
            if (lies := held.get(chunk.number))
            and lies.fingerprint is not None
            and not self._trusted(chunk, lies)
        ]

    def plan(self, number: int, found: dict[int, bytes]) -> Plan:
        """The plan of commit `number`, given the fingerprints of its candidates."""
        held, salt = self._held[number % 2], sealing.fresh(sealing.SALT_BYTES)
        todo, look, kept = [], set(), {}
        for chunk in self.all:
            lies = held.get(chunk.number)
            fingerprint = found.get(chunk.number)
            if lies and self._trusted(chunk, lies):
                kept[chunk.number] = lies
                continue
            if lies and fingerprint is not None and lies.fingerprint == fingerprint:
                kept[chunk.number] = lies._replace(versions=self._versions.get(chunk.number))
                self._habits.pop(chunk.number, None)
                continue
            if fingerprint is not None:
                self._changed(chunk.number, number)
            if self._habits.get(chunk.number, _NEW).look(number):
                look.add(chunk.number)
            todo.append(chunk)
        return Plan(number, salt, todo, look, kept)

    def begin(self, number: int) -> None:
        """A commit is about to be written: until it is there, nothing in its slot is relied on."""
        self._held[number % 2] = {}

    def done(self, plan: Plan, taken: dict[int, bytes]) -> None:
        """A commit is there; `taken` are the fingerprints of what was sealed."""
        sealed = {
            chunk.number: Held(
                plan.number,
                plan.salt,
                self._versions.get(chunk.number),
                taken.get(chunk.number),
            )
            for chunk in plan.todo
        }
        self._held[plan.number % 2] = {**plan.kept, **sealed}

    def _trusted(self, chunk: Chunk, lies: Held) -> bool:
        versions = self._versions.get(chunk.number)
        return versions is not None and lies.versions == versions

    def _changed(self, chunk: int, number: int) -> None:
        changes = self._habits.get(chunk, _NEW).changes + 1
        wait = (
            min(LEAST_WAIT * 2 ** (changes - 1), MOST_WAIT) + chunk % LEAST_WAIT
        )  # not all at once
        self._habits[chunk] = _Habit(changes, number + wait)
        other = self._held[(number + 1) % 2]
        if chunk in other:  # nor is it looked at in the other slot until then
            other[chunk] = other[chunk]._replace(fingerprint=None)


def _versions(chunk: Chunk, tensors: Sequence[TensorBytes]) -> _Versions:
    versions = tuple(tensors[part.tensor].version for part in chunk.parts)
    return None if None in versions else versions
