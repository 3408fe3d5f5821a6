"""The run state: the live objects of a run, as bytes."""

import itertools
import logging
import random
from collections.abc import Callable, Hashable, MutableMapping, Set
from typing import Any, NamedTuple, cast

import numpy as np
import torch

from plinius.jsonvalue import Json, JsonText, to_json
from plinius.snapshot import TensorBytes
from plinius.state.class_lookup import Classes
from plinius.state.codec import UNKNOWN, Blueprint, Encoder, pointer, refused
from plinius.state.codecs.generators import (
    Generator,
    generator_state,
    same_state,
    set_generator_state,
)
from plinius.state.codecs.stateful_objects import loads_later
from plinius.state.copies import Copies
from plinius.state.devices import DeviceTensor, HostCopies, Items, default_generator, items_of
from plinius.state.encoding_cache import EncodingCache, is_gradient
from plinius.state.exactness import environment
from plinius.state.optimizers import lost_parameters, optimizers_in, owned_by
from plinius.state.tensor_memory import Place, bits_of, has_gaps, place_of, storages_of
from plinius.state.version_tracker import VersionTracker

_log = logging.getLogger("plinius")
DEVICES = "devices"
"""The name, in the environment, of where the tensors are."""
STATE, RNG, OBJECTS = "", "~rng", "~objects"
"""The roots of the tree; an escaped key of a user never begins with a tilde and a letter."""


Shape = tuple[tuple[str, str], ...]


class EncodedState(NamedTuple):
    """The live state: its JSON, its tensors, and the blueprints of its objects.

    `stored` are the bytes of the tensors whose encoding came from the cache. torch counts no writes
    to the tensors in `uncounted`. `addresses` are those of all tensors. `devices` are those where
    tensors are, other than the CPU.
    """

    json: dict[str, Json]
    tensors: dict[str, torch.Tensor]
    blueprints: dict[str, Blueprint]
    stored: dict[str, Items]
    uncounted: Set[str]
    addresses: Set[int]
    devices: Set[torch.device]


class CapturedState(NamedTuple):
    """The state at one moment: the bytes of its tensors, and its values.

    `versions` are those of the tensors if any is known; None stands for an unknown one. `shared`
    are the tensors whose bytes were not copied, with their versions at that moment. `environment`
    is where it runs, with the devices of the tensors unless all are on the CPU.
    """

    tensors: tuple[TensorBytes, ...]
    values: dict[str, Json]
    versions: list[Hashable] | None
    shared: dict[str, tuple[torch.Tensor, Hashable]]
    environment: dict[str, Json]


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
        """Take the blueprints of the objects as they are freshly built. Raises StateError."""
        self.parts = parts
        self.classes = Classes()
        self._trusted, self._only_steps = trust_versions, only_steps_write
        watching = trust_versions or only_steps_write
        self._tracker = (
            VersionTracker(before_step if only_steps_write else None) if watching else None
        )
        self._cache = EncodingCache()
        self._described: dict[str, tuple[object, JsonText]] = {}
        self._stored: dict[str, tuple[Place, Items]] = {}  # of tensors not in the cache
        self._always_copied: set[str] = set()
        self._copies = Copies()
        self._host_copies: dict[torch.device, HostCopies] = {}
        self._may_draw, self._drew = True, False
        first = self.encode(register=True)
        self._may_draw = self._drew or any(
            loads_later(blueprint.live) for blueprint in first.blueprints.values()
        )
        self._names = set(parts)
        self._blueprints = {
            path: blueprint._replace(live=None) for path, blueprint in first.blueprints.items()
        }
        self._lost = set(lost_parameters(optimizers_in(parts), first.addresses))
        for path in sorted(self._lost):
            _log.warning(
                "%s steps parameters that are not in the state: they will not be mirrored", path
            )

    def capture(self, *, copied: bool = False) -> CapturedState:
        """The state now. Its bytes are the objects' own memory: use it before they change.

        With `copied`, they are copied: all of them, or with `only_steps_write` those that something
        other than an optimizer's step may write to. Raises StateError for what cannot be mirrored,
        or could not be restored into objects built as these were when the mirror was opened.
        """
        if self._tracker:
            self._tracker.watch([optimizer for _, optimizer in optimizers_in(self.parts)])
        self._require_names()
        encoded = self.encode(cache=self._cache)
        self._require_parameters(encoded)
        items = self._items(encoded)
        trusted = self._tracker if self._trusted else None
        versions = self._versions(trusted, items, encoded) if trusted else None
        shared = self._shared(encoded) if copied and self._only_steps else {}
        where = _environment(items) if encoded.devices else environment()
        if DeviceTensor in {*map(type, items)}:
            versions = versions or [None] * len(items)
            on_devices = self._copy_out(items, versions)
            shared = {name: it for name, it in shared.items() if name not in on_devices}
        else:
            on_devices = set()
        tensors = cast(list[TensorBytes], items)
        if copied:
            tensors = self._copies.of(tensors, shared.keys() | on_devices)
        self._cache.end()
        return CapturedState(tuple(tensors), encoded.json, versions, shared, where)

    def written_since(self, captured: CapturedState) -> list[str]:
        """The names of shared tensors that were written to since; from now on these are copied."""
        written = [
            name
            for name, (tensor, version) in captured.shared.items()
            if self._version_of(tensor) != version
        ]
        self._always_copied.update(written)
        return written

    def encode(self, *, register: bool = False, cache: EncodingCache | None = None) -> EncodedState:
        """Encode the live state. Raises StateError for what cannot be mirrored."""
        encoder = Encoder(self.classes, register=register, cache=cache)
        before = (
            {name: generator_state(it) for name, it in generators().items()}
            if self._may_draw
            else {}
        )
        json = {STATE: encoder.node({**self.parts}, STATE)}
        json[OBJECTS] = {
            path: self._description(path, blueprint, checked=cache is not None)
            for path, blueprint in encoder.blueprints.items()
        }
        shared = generators(encoder.devices)
        for name, state in before.items():  # a loader may draw when it is asked for its state
            if not same_state(generator_state(shared[name]), state):
                set_generator_state(shared[name], state)
                self._drew = True
        json[RNG] = encoder.separately(lambda: encoder.node(shared, RNG))
        return EncodedState(
            json, encoder.tensors, encoder.blueprints, encoder.stored, encoder.uncounted,
            encoder.names_at.keys(), encoder.devices,
        )  # fmt: skip

    def close(self) -> None:
        """Remove the hooks from the optimizers."""
        if self._tracker:
            self._tracker.close()

    def _description(self, path: str, blueprint: Blueprint, *, checked: bool) -> Json:
        """What `mirror_in` requires of an object; `checked` against the object as it was built."""
        what = blueprint.cls, blueprint.shape
        known = self._described.get(path)
        if checked and known and known[0] == what:
            return known[1]
        description: Json = [blueprint.cls, [[*it] for it in blueprint.shape]]
        if checked:
            _require_rebuildable(path, self._blueprints.get(path), blueprint)
            self._described[path] = what, JsonText(to_json(description))
        return description

    def _require_names(self) -> None:
        for name in self._names ^ set(self.parts):
            done = "taken out of" if name in self._names else "put into"
            raise refused(
                str(name),
                f"was {done} the state after the mirror was opened",
                "Have the same names in the state from the start: None can stand for what is "
                "not there yet",
            )

    def _require_parameters(self, encoded: EncodedState) -> None:
        optimizers = (
            (path, blueprint.live)
            for path, blueprint in encoded.blueprints.items()
            if isinstance(blueprint.live, torch.optim.Optimizer) and path not in self._lost
        )
        for path in lost_parameters(optimizers, encoded.addresses):
            raise refused(
                path,
                "steps parameters that are not in the state any more",
                "Replace parameters in the optimizer too, or before Mirror.open",
            )

    def _items(self, encoded: EncodedState) -> list[Items]:
        """The items of all tensors; those made for an earlier commit if they are still right."""
        tensors, names = [*map(encoded.stored.get, encoded.tensors)], [*encoded.tensors]
        kept = {}
        for index in [index for index, it in enumerate(tensors) if it is None]:
            name = names[index]
            place = place_of(tensor := encoded.tensors[name])
            known = self._stored.get(name)
            if known is None or known[0] != place:
                known = place, items_of(tensor, name)
                if has_gaps(tensor) or bits_of(tensor) or is_gradient(name):
                    tensors[index] = known[1]
                    continue
            tensors[index], kept[name] = known[1], known
        self._stored = kept
        return cast(list[Items], tensors)

    def _copy_out(self, items: list[Items], versions: list[Hashable]) -> set[str]:
        """Put bytes in the place of the tensors on devices, and their versions; returns names."""
        there = [index for index, it in enumerate(items) if isinstance(it, DeviceTensor)]
        by_device: dict[torch.device, list[int]] = {}
        for index in there:
            by_device.setdefault(cast(DeviceTensor, items[index]).device, []).append(index)
        for device, indices in by_device.items():
            if device not in self._host_copies:
                self._host_copies[device] = HostCopies(device)
            sources = [cast(DeviceTensor, items[index]) for index in indices]
            copies, proved = self._host_copies[device].of(sources)
            for index, copy, version in zip(indices, copies, proved, strict=True):
                items[index], versions[index] = copy, version
        return {items[index].name for index in there}

    def _versions(
        self, tracker: VersionTracker, tensors: list[Items], encoded: EncodedState
    ) -> list[Hashable]:
        """Of each tensor its memory, kept so that no other gets it, and its counts of writes."""
        names = encoded.tensors
        known: list[Hashable] = [*zip(tensors, *tracker.counts([*names.values()]), strict=True)]
        unknown = encoded.uncounted | (names.keys() - encoded.stored.keys() - self._stored.keys())
        return [
            None if name in unknown or is_gradient(name) else version
            for name, version in zip(names, known, strict=True)
        ]

    def _shared(self, encoded: EncodedState) -> dict[str, tuple[torch.Tensor, Hashable]]:
        """The tensors that only steps of the optimizers may write to, and their versions now."""
        owned: set[int] = set()
        for _, optimizer in optimizers_in(self.parts):
            owned.update(storages_of(owned_by(optimizer)))
        copied = self._always_copied | encoded.uncounted
        return {
            name: (tensor, self._version_of(tensor))
            for (name, tensor), storage in zip(
                encoded.tensors.items(), storages_of(encoded.tensors.values()), strict=True
            )
            if storage in owned
            and name not in copied
            and (name in encoded.stored or name in self._stored)
        }

    def _version_of(self, tensor: torch.Tensor) -> Hashable:
        assert self._tracker
        return place_of(tensor), *self._tracker.counts([tensor]), self._tracker.steps


def generators(devices: Set[torch.device] = frozenset()) -> dict[str, Generator]:
    """The random number generators that a whole process shares: the host's, those of devices."""
    return {
        "python": random.getstate.__self__,  # type: ignore[attr-defined]
        "numpy": np.random.get_state.__self__,  # type: ignore[attr-defined]
        "torch": torch.default_generator,
        **{str(device): default_generator(device) for device in sorted(devices, key=str)},
    }


def _environment(items: list[Items]) -> dict[str, Json]:
    """The environment of a run with devices; `DEVICES` is [device, how many in turn], ...."""
    where = [str(it.device) if isinstance(it, DeviceTensor) else "cpu" for it in items]
    runs: list[Json] = [[device, len([*run])] for device, run in itertools.groupby(where)]
    return {**environment(sorted({*where} - {"cpu"})), DEVICES: runs}


def _require_rebuildable(path: str, first: Blueprint | None, now: Blueprint) -> None:
    """Raise StateError if the state of this object would not fit the object as first built."""
    if first is None:
        raise refused(
            path,
            f"is a {now.cls} that was not there when the mirror was opened",
            "Build it before Mirror.open, or give what it holds: its state_dict(), or a copy",
        )
    other = first_difference(path, (first.cls, first.shape), (now.cls, now.shape))
    if other:
        raise refused(
            path,
            f"is not as it was when the mirror was opened: {other[0]} was {other[1]} and is "
            f"{other[2]}",
            "Replace objects, prune, add layers or parameter groups before Mirror.open, as a new "
            "process will",
        )


def first_difference(
    path: str, one: tuple[str, Shape], other: tuple[str, Shape]
) -> tuple[str, str, str] | None:
    """Where two objects first differ in what a state cannot change: its path, and both."""
    if one[0] != other[0]:
        return path, f"a {one[0]}", f"a {other[0]}"
    mine, theirs = dict(one[1]), dict(other[1])
    for name in [*mine, *theirs]:
        pair = mine.get(name, "missing"), theirs.get(name, "missing")
        if pair[0] != pair[1] and UNKNOWN not in pair:
            return pointer(path, name), *pair
    return None
