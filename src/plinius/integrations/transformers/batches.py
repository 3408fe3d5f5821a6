"""The batches of a Trainer's epoch: taken in order, and found again in another process."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xxhash

from plinius.errors import StateError
from plinius.state.arrays import Generator, generator_state, set_generator_state
from plinius.state.run_state import generators

_DEPTH, _MANY = 6, 100
Random = dict[str, Any]
"""The states of all generators that data may draw from, by name."""


class Batches:
    """An iterator over the batches of one epoch after the other, in groups of one step each.

    Before each batch it notes the states of the random number generators: of the process, and of
    the loader, its samplers, dataset and collator. Loaders read ahead (accelerate's by one batch),
    so that a resumed epoch is read again from its begin, with the random numbers put back that the
    batches of the next step were read with.
    """

    def __init__(self, loader: Any) -> None:
        self._loader = loader
        self._generators: dict[str, Generator] = {**generators(), **find_generators(loader)}
        self._inner: Iterator[Any] | None = None
        self._begun: Random = {}
        self._draws: dict[int, Random] = {}
        self._again: dict[int, Random] = {}
        self._group: list[Any] = []
        self._read = self._first = 0

    def random(self) -> Random:
        """The states of the generators now."""
        return {name: generator_state(it) for name, it in self._generators.items()}

    def put_random(self, states: Mapping[str, Any]) -> None:
        """Put the generators where they were."""
        for name, state in states.items():
            set_generator_state(self._generators[name], state)

    def begin_epoch(self) -> None:
        """An epoch begins: nothing of its loader is read yet."""
        self._begun, self._inner = self.random(), None
        self._draws, self._again = {}, {}
        self._read = self._first = 0

    def begin_epoch_again(self, epoch: int, kept: Mapping[str, Any]) -> None:
        """An epoch begins that was begun in another process: skip what it trained on.

        Raises StateError if the data ends before.
        """
        states = kept["states"]
        draws = {number: states[index] for number, index in kept["draws"]}
        self.put_random(states[kept["begun"]])
        self.begin_epoch()
        _set_epoch(self._loader, epoch)
        self._inner, self._again = iter(self._loader), draws
        for _ in range(kept["batches"]):
            if next(self, None) is None:
                raise _other_data(self._loader, f"it ended after {self._read} batches")

    def next_group(self, iterator: Iterator[Any]) -> Iterator[Any]:
        """The batches of a step are about to be read, from the epoch's iterator or from ours."""
        self._inner = self._inner or iterator
        self._first, self._group = self._read, []
        kept = (0, self._first - 1)  # the sampler is begun with batch 0, the next batch read ahead
        self._draws = {n: it for n, it in self._draws.items() if n in kept}
        return self

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        assert self._inner is not None
        if self._read in self._again:
            self.put_random(self._again.pop(self._read))
        self._draws[self._read] = self.random()
        batch = next(self._inner)
        self._read += 1
        self._group.append(batch)
        return batch

    def take(self) -> dict[str, Any]:
        """Where the step is whose batches were just read, and how to find them again."""
        states: list[Random] = []
        return {
            "batches": self._first,
            "begun": _index(self._begun, states),
            "draws": [[number, _index(it, states)] for number, it in self._draws.items()],
            "states": states,
            "digest": _digest(self._group),
        }

    def require_same(self, kept: Mapping[str, Any]) -> None:
        """Raise StateError unless the batches just read are those that were read when taken."""
        if _digest(self._group) != kept["digest"]:
            raise _other_data(self._loader, f"batch {self._first} of the epoch is another one")


def find_generators(loader: Any) -> dict[str, Generator]:
    """The random number generators that a loader, its samplers, dataset and collator own."""
    shared = {id(it) for it in generators().values()}
    found: dict[str, Generator] = {}
    seen, todo = set(shared), [("loader", loader, 0)]
    while todo:
        path, value, depth = todo.pop()
        if id(value) in seen or depth > _DEPTH:
            continue
        seen.add(id(value))
        if isinstance(value, Generator):
            found[path] = value
        elif not isinstance(value, torch.Tensor | torch.nn.Module | np.ndarray | type):
            todo += [(f"{path}.{name}", it, depth + 1) for name, it in _inside(value)]
    return found


def _inside(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping | list | tuple):
        if len(value) > _MANY:
            return []
        pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
        return [(str(name), it) for name, it in pairs]
    return [*getattr(value, "__dict__", {}).items()]


def _set_epoch(loader: Any, epoch: int) -> None:
    """As the Trainer does at the begin of an epoch."""
    inner: Any = getattr(getattr(loader, "batch_sampler", None), "batch_sampler", None)
    for it in (loader, inner):
        if it is not None and hasattr(it, "set_epoch"):
            it.set_epoch(epoch)


def _index(state: Random, states: list[Random]) -> int:
    """The place of a state in a list, which it is added to if it is not there."""
    for index, other in enumerate(states):
        if _same(state, other):
            return index
    states.append(state)
    return len(states) - 1


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Mapping):
        return all(_same(it, other[name]) for name, it in one.items())
    if isinstance(one, np.ndarray | torch.Tensor):
        return bytes(one.data if isinstance(one, np.ndarray) else one.numpy().data) == bytes(
            other.data if isinstance(other, np.ndarray) else other.numpy().data
        )
    return bool(one == other)


def _digest(batches: Sequence[Any]) -> str:
    """A fingerprint of tensors, arrays, numbers and texts, however they are nested."""
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
        f"The training data ({name}) does not come back as it was: {what}",
        "Give the same data, which depends on indices, the epoch and random number generators only",
    )
