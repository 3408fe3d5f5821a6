"""The batches of a Trainer's epoch, and how another process finds its place in them again."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xxhash

from plinius.errors import StateError
from plinius.state.capture import generators
from plinius.state.codecs.generators import Generator, generator_state, set_generator_state

_MAX_DEPTH, _MAX_ITEMS = 6, 100
GeneratorStates = dict[str, Any]
"""The states of all generators that data may draw from, by name."""


class Batches:
    """An iterator over the batches of one epoch after another, in groups: one for each step.

    Before each batch it records the states of the random number generators: those of the process,
    and those of the loader, its samplers, dataset and collator. Loaders read ahead (accelerate's
    by one batch). So a resumed epoch is read again from its start, and the batches of the next
    step are read with the recorded states.
    """

    def __init__(self, loader: Any) -> None:
        self._loader = loader
        self._generators: dict[str, Generator] = {**generators(), **find_generators(loader)}
        self._iterator: Iterator[Any] | None = None
        self._epoch_states: GeneratorStates = {}
        self._recorded: dict[int, GeneratorStates] = {}
        self._to_restore: dict[int, GeneratorStates] = {}
        self._group: list[Any] = []
        self._read = self._group_start = 0

    def generator_states(self) -> GeneratorStates:
        """The states of the generators now."""
        return {name: generator_state(it) for name, it in self._generators.items()}

    def restore_generators(self, states: Mapping[str, Any]) -> None:
        """Set the generators to these states."""
        for name, state in states.items():
            set_generator_state(self._generators[name], state)

    def begin_epoch(self) -> None:
        """Begin an epoch: nothing of its loader has been read yet."""
        self._epoch_states, self._iterator = self.generator_states(), None
        self._recorded, self._to_restore = {}, {}
        self._read = self._group_start = 0

    def resume_epoch(self, epoch: int, position: Mapping[str, Any]) -> None:
        """Begin an epoch that another process began: skip the batches that it trained on.

        Raises StateError if the data ends before.
        """
        states = position["states"]
        to_restore = {number: states[index] for number, index in position["recorded"]}
        self.restore_generators(states[position["epoch_states"]])
        self.begin_epoch()
        _set_epoch(self._loader, epoch)
        self._iterator, self._to_restore = iter(self._loader), to_restore
        for _ in range(position["batches"]):
            if next(self, None) is None:
                raise _other_data(self._loader, f"it ended after {self._read} batches")

    def next_group(self, iterator: Iterator[Any]) -> Iterator[Any]:
        """Begin the group of the next step; of a resumed epoch, `iterator` is not used."""
        self._iterator = self._iterator or iterator
        self._group_start, self._group = self._read, []
        # the sampler begins with batch 0; the first batch of the group was read ahead with the last
        needed = (0, self._group_start - 1)
        self._recorded = {n: it for n, it in self._recorded.items() if n in needed}
        return self

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        assert self._iterator is not None
        if self._read in self._to_restore:
            self.restore_generators(self._to_restore.pop(self._read))
        self._recorded[self._read] = self.generator_states()
        batch = next(self._iterator)
        self._read += 1
        self._group.append(batch)
        return batch

    def position(self) -> dict[str, Any]:
        """Where the current group begins, and what `resume_epoch` needs to find it again."""
        states: list[GeneratorStates] = []
        return {
            "batches": self._group_start,
            "epoch_states": _index(self._epoch_states, states),
            "recorded": [[number, _index(it, states)] for number, it in self._recorded.items()],
            "states": states,
            "digest": _digest(self._group),
        }

    def require_same_group(self, position: Mapping[str, Any]) -> None:
        """Raise StateError unless the current group has the batches that it had at `position`."""
        if _digest(self._group) != position["digest"]:
            raise _other_data(
                self._loader, f"batch {self._group_start} of the epoch is another one"
            )


def find_generators(loader: Any) -> dict[str, Generator]:
    """The random number generators that a loader, its samplers, dataset and collator own."""
    shared = {id(it) for it in generators().values()}
    found: dict[str, Generator] = {}
    seen, todo = set(shared), [("loader", loader, 0)]
    while todo:
        path, value, depth = todo.pop()
        if id(value) in seen or depth > _MAX_DEPTH:
            continue
        seen.add(id(value))
        if isinstance(value, Generator):
            found[path] = value
        elif not isinstance(value, torch.Tensor | torch.nn.Module | np.ndarray | type):
            todo += [(f"{path}.{name}", it, depth + 1) for name, it in _children(value)]
    return found


def _children(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping | list | tuple):
        if len(value) > _MAX_ITEMS:
            return []
        pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
        return [(str(name), it) for name, it in pairs]
    return [*getattr(value, "__dict__", {}).items()]


def _set_epoch(loader: Any, epoch: int) -> None:
    """What the Trainer does at the start of an epoch."""
    inner: Any = getattr(getattr(loader, "batch_sampler", None), "batch_sampler", None)
    for it in (loader, inner):
        if it is not None and hasattr(it, "set_epoch"):
            it.set_epoch(epoch)


def _index(state: GeneratorStates, states: list[GeneratorStates]) -> int:
    """The index of a state in a list; it is appended if no equal one is there."""
    for index, other in enumerate(states):
        if _equal(state, other):
            return index
    states.append(state)
    return len(states) - 1


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Mapping):
        return all(_equal(it, other[name]) for name, it in one.items())
    if isinstance(one, np.ndarray | torch.Tensor):
        return bytes(np.asarray(one).data) == bytes(np.asarray(other).data)
    return bool(one == other)


def _digest(batches: Sequence[Any]) -> str:
    """A fingerprint of tensors, arrays, numbers and text, however they are nested."""
    hasher, todo = xxhash.xxh3_128(), [*batches]
    while todo:
        value = todo.pop()
        if isinstance(value, Mapping):
            todo += [it for name in sorted(value, key=str) for it in (name, value[name])]
        elif isinstance(value, list | tuple):
            todo += value
        elif isinstance(value, torch.Tensor):
            plain = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            hasher.update(f"{value.dtype}{value.shape}".encode() + plain.numpy().tobytes())
        elif isinstance(value, np.ndarray):
            hasher.update(value.tobytes())
        elif isinstance(value, str | bytes | int | float | None):
            hasher.update(repr(value).encode())
        else:
            todo.append(getattr(value, "__dict__", {}))
    return hasher.hexdigest()


def _other_data(loader: Any, what: str) -> StateError:
    name = type(getattr(loader, "dataset", loader)).__name__
    return StateError(
        f"The training data ({name}) is not the same as before: {what}",
        "Give the same data, which depends on indices, the epoch and random number generators only",
    )
