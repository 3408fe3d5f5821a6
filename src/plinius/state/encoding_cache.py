"""The cache of encodings: what has the structure of the last commit is not encoded again.

An entry covers one module, or one container of plain values and tensors. Its encoding depends on

- its form: types, keys, and values that are not tensors;
- the facts of its tensors: shape, strides, dtype ..., all but their addresses and their items;
- which of its tensors are at one address;
- whether a tensor or container in it was encoded before, elsewhere in the state.

All of these are compared at every commit, so a hit gives what encoding would give. Each comparison
is one pass in C over all tensors.
"""

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, islice
from operator import attrgetter
from typing import NamedTuple, Protocol

import torch

from plinius.jsonvalue import Json, JsonText, to_json
from plinius.state.devices import Items, items_of
from plinius.state.structure import Structure
from plinius.state.tensor_memory import Place, has_gaps, place_of

LEAST_ITEMS = 16
"""Smaller containers are encoded each time; what they hold may still be in the cache."""
_MOST_MISSES = 6
_T, _S = torch.Tensor, torch.UntypedStorage
_DTYPE, _DEVICE = attrgetter("dtype"), attrgetter("device")

Facts = Callable[[Iterable[torch.Tensor]], Iterator[object]]
_FACTS: tuple[Facts, ...] = (
    partial(map, _DEVICE), partial(map, _DTYPE), partial(map, _T.size),
    partial(map, _T.stride), partial(map, _T.is_conj), partial(map, _T.is_neg),
    partial(map, _T.storage_offset),
    lambda tensors: map(_S.nbytes, map(_T.untyped_storage, tensors)),
)  # fmt: skip
"""All but the address. Only a strided tensor has strides; the others raise RuntimeError."""
Description = tuple[tuple[str, str], ...]
Encode = Callable[[], tuple[Json, Description]]
EncodeValues = Callable[[], tuple[object, Json]]


class Target(Protocol):
    """What an encoder has found so far; see Encoder."""

    tensors: dict[str, torch.Tensor]
    stored: dict[str, Items]
    devices: set[torch.device]
    names_at: dict[int, tuple[str, ...]]
    seen: dict[int, tuple[str, object]]


class EncodingCache:
    """The encodings of one state, by path."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}
        self._values: dict[str, _Values] = {}
        self._misses: dict[str, int] = {}
        self._waits: dict[str, int] = {}
        self._visited: set[str] = set()

    def encode(
        self,
        target: Target,
        path: str,
        structure: Callable[[], Structure | None],
        encode: Encode,
    ) -> tuple[Json, Description]:
        """What `encode` returns, from the cache if that is the same; the JSON is then a JsonText.

        What is often not the same is looked up less often: after 2, 6, 14 ... commits.
        """
        self._visited.add(path)
        if wait := self._waits.get(path, 0):
            self._waits[path] = wait - 1
            return encode()
        now, entry = structure(), self._entries.pop(path, None)
        if now and entry and entry.add_to(target, now):
            self._misses.pop(path, None)
            self._entries[path] = entry
            return entry.encoded
        if entry or not now:
            misses = self._misses[path] = min(self._misses.get(path, 0) + 1, _MOST_MISSES)
            self._waits[path] = 2**misses - 2
        if not now or self._waits.get(path):
            return encode()
        made, encoded = _Entry.of(target, now, encode)
        if made:
            self._entries[path] = made
        return encoded

    def encode_values(
        self, target: Target, path: str, same: Callable[[object], bool], encode: EncodeValues
    ) -> Json:
        """The JSON that `encode` returns, of values that it returns too and that nobody changes.

        It is taken from the cache if `same` says so of the values that were encoded last.
        """
        self._visited.add(path)
        known = self._values.get(path)
        if known is None or not same(known.values):
            before = len(target.tensors)
            values, node = encode()
            tensors = dict(islice(target.tensors.items(), before, None))
            stored = {name: items_of(tensor, name) for name, tensor in tensors.items()}
            known = self._values[path] = _Values(values, JsonText(to_json(node)), tensors, stored)
        target.tensors.update(known.tensors)
        target.stored.update(known.stored)
        return known.json

    def end(self) -> None:
        """After each commit: forget what is not in the state any more, and release gradients."""
        for path in self._entries.keys() - self._visited:
            del self._entries[path]
        for path in self._values.keys() - self._visited:
            del self._values[path]
        self._visited = set()
        for entry in self._entries.values():
            entry.release_gradients()


class _Values(NamedTuple):
    """Values with their encoding."""

    values: object
    json: JsonText
    tensors: dict[str, torch.Tensor]
    stored: dict[str, Items]


class _Held(NamedTuple):
    """The tensors of an entry where they are now. Replaced as a whole: no interrupt halves it.

    `aliases` are other tensor objects for those that are not gradients, with the same sizes,
    strides, offset and storage; `storages` are theirs, and `memories` the addresses and bytes of
    these.
    """

    addresses: list[int]
    stored: dict[str, Items]
    names_at: dict[int, tuple[str, ...]]
    aliases: list[torch.Tensor]
    storages: list[torch.UntypedStorage]
    memories: list[int]


class _Entry:
    """One cached encoding, and all that it depends on."""

    def __init__(
        self,
        structure: Structure,
        indices: dict[str, int],
        paths: list[str],
        encoded: tuple[Json, Description],
    ) -> None:
        tensors, gradients = structure.tensors, structure.gradients
        self._form, self._paths, self.encoded = structure.form, paths, encoded
        self._dtypes = [*map(_DTYPE, tensors)]
        self._devices = {*map(_DEVICE, chain(tensors, gradients))} - {torch.device("cpu")}
        # A complex tensor has a conjugate at the same place, and the imaginary part of that, at
        # another offset than 0, is the one kind of real tensor that torch negates on reading.
        self._has_bits = any(map(_T.storage_offset, tensors)) or any(map(_T.is_complex, tensors))
        self._facts = _facts_of(tensors)
        self._gradient_facts = _facts_of(gradients)
        self._indices = indices
        self._gradients = [name for name, index in indices.items() if index >= len(tensors)]
        addresses = [*map(_T.data_ptr, chain(tensors, gradients))]
        self._pattern = _pattern(addresses)
        self._held = self._hold(addresses, structure, None)

    @classmethod
    def of(
        cls, target: Target, structure: Structure, encode: Encode
    ) -> tuple["_Entry | None", tuple[Json, Description]]:
        """Encode, and make an entry unless what was encoded is not all in the structure."""
        tensors, before = [*structure.tensors, *structure.gradients], len(target.tensors)
        alone = (
            _are_plain(tensors)
            and target.names_at.keys().isdisjoint(map(_T.data_ptr, tensors))
            and target.seen.keys().isdisjoint(map(id, structure.containers))
        )
        node, description = encode()
        if not alone or any(map(has_gaps, tensors)):
            return None, (node, description)
        indices = _indices([*islice(target.tensors.items(), before, None)], tensors)
        paths = [target.seen[id(it)][0] for it in structure.containers if id(it) in target.seen]
        if indices is None or len(paths) != len(structure.containers):
            return None, (node, description)
        encoded = JsonText(to_json(node)), description
        made = cls(structure, indices, paths, encoded)
        target.stored.update(made._held.stored)
        return made, encoded

    def add_to(self, target: Target, now: Structure) -> bool:
        """Add the tensors and containers to the target, unless encoding would not give the same."""
        if now.form != self._form or not self._finds(now):
            return False
        held, ids = self._held, [*map(id, now.containers)]
        if not (
            target.names_at.keys().isdisjoint(held.names_at)
            and target.tensors.keys().isdisjoint(self._indices)
            and target.seen.keys().isdisjoint(ids)
        ):
            return False
        tensors = [*now.tensors, *now.gradients]
        there = map(tensors.__getitem__, self._indices.values())
        target.tensors.update(zip(self._indices, there, strict=True))
        target.stored.update(held.stored)
        target.devices.update(self._devices)
        target.names_at.update(held.names_at)
        target.seen.update(zip(ids, zip(self._paths, now.containers, strict=True), strict=True))
        return True

    def release_gradients(self) -> None:
        """Let go of gradients: they would stay in memory beside the next ones."""
        if self._gradients:
            addresses, stored = [*self._held.addresses], {**self._held.stored}
            for name in self._gradients:
                stored.pop(name, None)
                addresses[self._indices[name]] = -1
            self._held = self._held._replace(addresses=addresses, stored=stored)

    def _finds(self, now: Structure) -> bool:
        """Whether the tensors are as they were, also if they are somewhere else now."""
        try:
            stayed = self._have_stayed(now.tensors)
            if not (stayed or _have(now.tensors, self._facts)):
                return False
            if not _have(now.gradients, self._gradient_facts):
                return False
        except RuntimeError:  # not a strided tensor
            return False
        if not stayed or now.gradients:
            addresses = [*map(_T.data_ptr, chain(now.tensors, now.gradients))]
            if _pattern(addresses) != self._pattern:
                return False
            self._held = self._hold(addresses, now, self._held)
        return True

    def _have_stayed(self, tensors: list[torch.Tensor]) -> bool:
        held = self._held
        return (
            len(tensors) == len(held.aliases)
            and all(map(_T.is_set_to, tensors, held.aliases))
            and _memories(held.storages) == held.memories
            and all(map(operator.is_, map(_DTYPE, tensors), self._dtypes))
            and not (self._has_bits and any(map(_T.is_conj, tensors)))
            and not (self._has_bits and any(map(_T.is_neg, tensors)))
        )

    def _hold(self, addresses: list[int], now: Structure, old: _Held | None) -> _Held:
        tensors = [*now.tensors, *now.gradients]
        stored: dict[str, Items] = {}
        names_at: dict[int, tuple[str, ...]] = {}
        for name, index in self._indices.items():
            address = addresses[index]
            if old and old.addresses[index] == address and name in old.stored:
                stored[name] = old.stored[name]
            else:
                stored[name] = items_of(tensors[index], name)
            if address:  # empty tensors have none
                names_at[address] = (*names_at.get(address, ()), name)
        if old and self._have_stayed(now.tensors):
            return _Held(addresses, stored, names_at, *old[3:])
        aliases = [*map(_T.detach, now.tensors)]
        storages = [*map(_T.untyped_storage, aliases)]
        return _Held(addresses, stored, names_at, aliases, storages, _memories(storages))


def _facts_of(tensors: list[torch.Tensor]) -> list[tuple[Facts, list[object]]]:
    return [(facts, [*facts(tensors)]) for facts in _FACTS]


def _have(tensors: list[torch.Tensor], facts: list[tuple[Facts, list[object]]]) -> bool:
    return all(
        len(tensors) == len(known) and all(map(operator.eq, fact(tensors), known))
        for fact, known in facts
    )


def _memories(storages: list[torch.UntypedStorage]) -> list[int]:
    return [*map(_S.data_ptr, storages), *map(_S.nbytes, storages)]


def is_gradient(name: str) -> bool:
    """Whether a tensor of this name is a gradient: the next backward pass may make it anew."""
    return "/~grad" in name


def _are_plain(tensors: Sequence[torch.Tensor]) -> bool:
    return (
        {*map(attrgetter("layout"), tensors)} <= {torch.strided}
        and not any(map(attrgetter("is_nested"), tensors))
        and not any(map(_T.is_conj, tensors))
        and not any(map(_T.is_neg, tensors))
    )


def _indices(
    named: list[tuple[str, torch.Tensor]], tensors: list[torch.Tensor]
) -> dict[str, int] | None:
    """For each name the index of its tensor, by where that is in memory; None if one is missing."""
    by_place: dict[Place, list[int]] = {}
    for index, tensor in enumerate(tensors):
        by_place.setdefault(place_of(tensor), []).append(index)
    found: dict[str, int] = {}
    for name, tensor in named:
        at = by_place.get(place_of(tensor))
        if not at or name.endswith("~"):  # a name that depends on what has its name already
            return None
        found[name] = at[0] if tensor.numel() else at.pop(0)
    return found if len({*found.values()}) == len(found) else None


def _pattern(addresses: list[int]) -> list[int]:
    """For each tensor the index of the first one at its address."""
    first: dict[int, int] = {}
    return [first.setdefault(address, index) for index, address in enumerate(addresses)]
