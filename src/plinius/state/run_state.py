"""The run state: the live objects of a run, taken as bytes."""

import logging
import random
from collections.abc import Callable, Hashable, MutableMapping
from typing import Any, NamedTuple

import numpy as np
import torch

from plinius.jsonvalue import Json
from plinius.snapshot import TensorBytes
from plinius.state.arrays import Generator, generator_state, set_generator_state
from plinius.state.changes import Changes, optimizers_in, owned_by
from plinius.state.classes import Classes
from plinius.state.codec import UNKNOWN, Encoder, Fact, pointer, refused
from plinius.state.objects import is_lazy, lost_parameters
from plinius.state.tensors import Memory, Place, place_of, storage_of

_log = logging.getLogger("plinius")
STATE, RNG, OBJECTS = "", "~rng", "~objects"
"""The roots of the tree; no name of a user's begins with a tilde."""


Shape = tuple[tuple[str, str], ...]


class Walk(NamedTuple):
    """The live state as JSON; its tensors, where they lie, and the facts of its objects."""

    json: dict[str, Json]
    tensors: dict[str, torch.Tensor]
    places: dict[str, Place]
    facts: dict[str, Fact]


class Taken(NamedTuple):
    """A state as it was taken: its tensors' bytes and its values.

    `shared` are the tensors whose bytes are the run's own, with their versions.
    """

    tensors: tuple[TensorBytes, ...]
    values: dict[str, Json]
    shared: dict[str, tuple[torch.Tensor, Hashable]]


class RunState:
    """What a user gave to be mirrored, by name, and the random numbers of the process.

    `trust_versions` and `only_steps_write` are those of `Mirror.open`; `before_step` is called
    before any step of an optimizer in the state if the latter is chosen.
    """

    def __init__(
        self,
        parts: MutableMapping[str, Any],
        *,
        trust_versions: bool = False,
        only_steps_write: bool = False,
        before_step: Callable[[], None] | None = None,
    ) -> None:
        """Learn what the objects are like when they are freshly built. Raises StateError."""
        self.parts = parts
        self.classes = Classes()
        self._trusted, self._only_steps = trust_versions, only_steps_write
        watching = trust_versions or only_steps_write
        self._changes = Changes(before_step if only_steps_write else None) if watching else None
        self._memories: dict[str, Memory] = {}
        self._restless: set[str] = set()
        self._copies = memoryview(bytearray())
        self._draws = True
        self._drew = False
        first = self.walk(learn=True)
        self._draws = self._drew or any(is_lazy(it.live) for it in first.facts.values())
        self._names = set(parts)
        self._facts = {path: fact._replace(live=None) for path, fact in first.facts.items()}
        self._lost = set(lost_parameters(optimizers_in(parts), first.places))
        for path in sorted(self._lost):
            _log.warning(
                "%s steps parameters that are not in the state: they will not be mirrored", path
            )

    def take(self, *, apart: bool = False) -> Taken:
        """The state now. Its tensors are shared with the run: use it before anything moves on.

        With `apart`, they are copied first: all of them, or with `only_steps_write` those that
        something other than an optimizer's step may write to. Raises StateError for what cannot
        be mirrored, or could not be put back into objects built as these were at first.
        """
        if self._changes:
            self._changes.watch([optimizer for _, optimizer in optimizers_in(self.parts)])
        self._require_names()
        walk = self.walk()
        for path, fact in walk.facts.items():
            _require_rebuildable(path, self._facts.get(path), fact)
        self._require_parameters(walk)
        owned = self._owned() if apart and self._only_steps else set()
        tensors, shared = [], {}
        for name, tensor in walk.tensors.items():
            memory = self._memory_of(name, tensor, walk.places[name])
            version = self._changes.version(tensor, memory) if self._changes else None
            if name not in self._restless and memory.own and storage_of(tensor) in owned:
                shared[name] = (tensor, version)
            tensors.append(
                TensorBytes(
                    name, memory.dtype, memory.shape, memory.data, order=memory.order,
                    version=version if self._trusted else None,
                )
            )  # fmt: skip
        # Gradients are let go of: they would stay until the next commit, beside the new ones.
        self._memories = {
            name: memory
            for name, memory in self._memories.items()
            if name in walk.tensors and "/~grad" not in name
        }
        if apart:
            tensors = self._copied(tensors, shared)
        return Taken(tuple(tensors), walk.json, shared)

    def moved(self, taken: Taken) -> list[str]:
        """The shared tensors that were written to since; from now on they are copied."""
        moved = [
            name
            for name, (tensor, version) in taken.shared.items()
            if self._changes
            and self._changes.version(tensor, self._memory_of(name, tensor, place_of(tensor)))
            != version
        ]
        self._restless.update(moved)
        return moved

    def walk(self, *, learn: bool = False) -> Walk:
        """Walk through the live state. Raises StateError for what cannot be mirrored."""
        encoder = Encoder(self.classes, learn=learn)
        shared = generators()
        before = {name: generator_state(it) for name, it in shared.items()} if self._draws else {}
        json = {STATE: encoder.node({**self.parts}, STATE)}
        json[OBJECTS] = {
            path: [fact.cls, [[*it] for it in fact.shape]] for path, fact in encoder.facts.items()
        }
        for name, state in before.items():  # a loader may draw when it is asked for its state
            if not _same_state(generator_state(shared[name]), state):
                set_generator_state(shared[name], state)
                self._drew = True
        json[RNG] = encoder.alone(lambda: encoder.node(shared, RNG))
        return Walk(json, encoder.tensors, encoder.places, encoder.facts)

    def close(self) -> None:
        """Take the hooks back from the optimizers."""
        if self._changes:
            self._changes.close()

    def _require_names(self) -> None:
        for name in self._names ^ set(self.parts):
            done = "taken out of" if name in self._names else "put into"
            raise refused(
                str(name),
                f"was {done} the state after the mirror was opened",
                "Have the same names in the state from the start: None can stand for what is "
                "not there yet",
            )

    def _require_parameters(self, walk: Walk) -> None:
        optimizers = (
            (path, fact.live)
            for path, fact in walk.facts.items()
            if isinstance(fact.live, torch.optim.Optimizer) and path not in self._lost
        )
        for path in lost_parameters(optimizers, walk.places):
            raise refused(
                path,
                "steps parameters that are not in the state any more",
                "Replace parameters in the optimizer too, or before Mirror.open",
            )

    def _owned(self) -> set[int]:
        """The storages of the parameters and the state of all optimizers."""
        return {
            storage_of(tensor)
            for _, optimizer in optimizers_in(self.parts)
            for tensor in owned_by(optimizer)
        }

    def _copied(
        self, tensors: list[TensorBytes], shared: dict[str, tuple[torch.Tensor, Hashable]]
    ) -> list[TensorBytes]:
        """The tensors with copies of their bytes, in memory that is used again at each commit."""
        total = sum(it.nbytes for it in tensors if it.name not in shared)
        if len(self._copies) < total:
            self._copies = np.empty(total, np.uint8).data
        copies, end = [], 0
        for it in tensors:
            if it.name not in shared:
                start, end = end, end + it.nbytes
                self._copies[start:end] = it.data
                it = it.with_data(self._copies[start:end])
            copies.append(it)
        return copies

    def _memory_of(self, name: str, tensor: torch.Tensor, place: Place) -> Memory:
        """A tensor's memory; the one known under its name if it is still the tensor's."""
        memory = self._memories.get(name)
        if memory is None or not memory.lies_at(place):
            memory = self._memories[name] = Memory(tensor, place)
        return memory


def generators() -> dict[str, Generator]:
    """The random number generators that every module of a process shares."""
    return {
        "python": random.getstate.__self__,  # type: ignore[attr-defined]
        "numpy": np.random.get_state.__self__,  # type: ignore[attr-defined]
        "torch": torch.default_generator,
    }


def _same_state(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return all(_same_state(one[key], other[key]) for key in one)
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else bool(one == other)


def _require_rebuildable(path: str, first: Fact | None, now: Fact) -> None:
    """Refuse what an object built as at first could not take back."""
    if first is None:
        raise refused(
            path,
            f"is a {now.cls} that was not there when the mirror was opened",
            "Build it before Mirror.open, or give what it holds: its state_dict(), or a copy",
        )
    other = differing(path, (first.cls, first.shape), (now.cls, now.shape))
    if other:
        raise refused(
            path,
            f"is not as it was when the mirror was opened: {other[0]} was {other[1]} and is "
            f"{other[2]}",
            "Replace objects, prune, add layers or parameter groups before Mirror.open, as a new "
            "process will",
        )


def differing(
    path: str, one: tuple[str, Shape], other: tuple[str, Shape]
) -> tuple[str, str, str] | None:
    """The first thing in which two objects differ that a state cannot change, and both of it."""
    if one[0] != other[0]:
        return path, f"a {one[0]}", f"a {other[0]}"
    mine, theirs = dict(one[1]), dict(other[1])
    for name in [*mine, *theirs]:
        pair = mine.get(name, "missing"), theirs.get(name, "missing")
        if pair[0] != pair[1] and UNKNOWN not in pair:
            return pointer(path, name), *pair
    return None
