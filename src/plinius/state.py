"""The run state: the live objects of a run, taken as bytes and put back."""

import random
from collections.abc import Callable, Hashable, Iterator, MutableMapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from plinius.restoration import differences, put_back, require_fit, require_restored
from plinius.slots import Manifest
from plinius.snapshot import Json, TensorBytes
from plinius.stamps import Stamps
from plinius.tensors import Memory, Place, copy_items, empty, layout_of, place_of
from plinius.tree import Generator, Tree, put_together, set_generator_state, take_apart

_STATE, _RNG = "", "~rng"  # the roots of the tree; no name of a user's begins with a tilde

Read = Callable[[Sequence[memoryview]], None]
"""Fills memory with the tensors of a commit, in their order."""


class Taken(NamedTuple):
    """A state as it was taken: its tensors' bytes and its values.

    `shared` are the tensors whose bytes are the run's own, with their stamps.
    """

    tensors: tuple[TensorBytes, ...]
    values: dict[str, Json]
    shared: dict[str, tuple[torch.Tensor, Hashable]]


class State:
    """What a user gave to be mirrored, by name, and the random numbers of the process."""

    def __init__(self, parts: MutableMapping[str, Any], *, checked: bool) -> None:
        self._parts = parts
        self.optimizers = [*_optimizers(parts, set())]
        self._stamps = Stamps(self.optimizers, checked=checked)
        self._last: dict[str, Hashable] = {}
        self._restless: set[str] = set()
        self._memories: dict[str, Memory] = {}

    def take(self, *, apart: bool = False) -> Taken:
        """The state now. Its tensors are shared with the run: use it before the next step.

        With `apart`, those are copied that something other than an optimizer's step may change.
        Raises StateError for what cannot be mirrored.
        """
        tree = self._tree()
        owned = self._stamps.owned() if apart else set()
        tensors, shared = [], {}
        for name, tensor in tree.tensors.items():
            memory = self._memory_of(name, tensor, tree.places[name])
            data, stamp = memory.data, self._stamps.stamp(tensor, memory)
            if apart:
                mine = memory.storage in owned and name not in self._restless
                if mine or (stamp is not None and stamp == self._last.get(name)):
                    shared[name] = (tensor, stamp)
                else:
                    data = memoryview(bytearray(data))
                self._last[name] = stamp
            tensors.append(
                TensorBytes(name, memory.dtype, memory.shape, data, order=memory.order, stamp=stamp)
            )
        self._memories = {name: self._memories[name] for name in tree.tensors}
        return Taken(tuple(tensors), tree.json, shared)

    def moved(self, taken: Taken) -> list[str]:
        """The shared tensors that were written to since; from now on they are copied."""
        moved = [
            name
            for name, (tensor, stamp) in taken.shared.items()
            if self._stamps.stamp(tensor, self._memory_of(name, tensor, place_of(tensor))) != stamp
        ]
        self._restless.update(moved)
        return moved

    def restore(self, about: Manifest, read: Read) -> list[str]:
        """Put every object where it was when a commit was taken, in place where that can be.

        Returns what did not come back as it was, since an object did not take it back. Raises
        MismatchError, changing nothing, if names, shapes or dtypes differ; and what `read`
        raises, which leaves the tensors without meaning.
        """
        now = self._tree()
        require_fit(self._parts, now, about)
        tensors: dict[str, torch.Tensor] = {}
        outs, late = [], []
        for spec in about.tensors:
            mine = now.tensors.get(spec.name)
            if mine is None or layout_of(mine) != (spec.dtype, spec.shape):
                memory = Memory(mine := empty(spec))
            else:
                memory = self._memory_of(spec.name, mine, now.places[spec.name])
                if not memory.own or memory.order != spec.order:
                    late.append((spec.name, mine, fresh := empty(spec)))
                    memory = Memory(fresh)
            tensors[spec.name] = mine
            outs.append(memory.data)
        read(outs)
        for _, mine, fresh in late:
            copy_items(mine, fresh)
        # An object's own are those that it shows itself; it is to load the others.
        after = self._tree()
        own = {name for name, it in tensors.items() if place_of(it) == after.places.get(name)}
        tensors |= {name: fresh for name, _, fresh in late if name not in own}
        if self._loaded(after, about, tensors, own):
            after = self._tree()
            for name, tensor in tensors.items():
                if not name.startswith(_RNG):
                    require_restored(name, tensor, after.tensors.get(name))
        states = put_together(about.values[_RNG], tensors)
        for name, generator in _generators().items():
            set_generator_state(generator, states[name])
        self._last = {}
        return [*differences(after.json[_STATE], about.values[_STATE], _STATE)]

    def _loaded(
        self, now: Tree, about: Manifest, tensors: dict[str, torch.Tensor], own: set[str]
    ) -> bool:
        """Put back what did not come back in place; whether there was any such thing."""
        mine, theirs = now.json[_STATE], about.values[_STATE]
        whole = all(name in own or name.startswith(_RNG) for name in tensors)
        if whole and mine == theirs:
            return False
        put_back(self._parts, mine, theirs, tensors, own)
        return True

    def close(self) -> None:
        """Let go of the optimizers."""
        self._stamps.close()

    def _memory_of(self, name: str, tensor: torch.Tensor, place: Place) -> Memory:
        """A tensor's memory; the one known under its name if it is still the tensor's."""
        memory = self._memories.get(name)
        if memory is None or not memory.lies_at(place):
            memory = self._memories[name] = Memory(tensor)
        return memory

    def _tree(self) -> Tree:
        return take_apart({_STATE: self._parts, _RNG: _generators()})


def _generators() -> dict[str, Generator]:
    """The random number generators that every module of a process shares."""
    return {
        "python": random.getstate.__self__,  # type: ignore[attr-defined]
        "numpy": np.random.get_state.__self__,  # type: ignore[attr-defined]
        "torch": torch.default_generator,
    }


def _optimizers(value: object, seen: set[int]) -> Iterator[torch.optim.Optimizer]:
    """The optimizers among the parts of a state."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, torch.optim.Optimizer):
        inner = getattr(value, "optimizer", None)  # of a wrapper (Accelerate's), which has no hooks
        yield inner if isinstance(inner, torch.optim.Optimizer) else value
    elif isinstance(value, MutableMapping | list | tuple):
        for item in value.values() if isinstance(value, MutableMapping) else value:
            yield from _optimizers(item, seen)
