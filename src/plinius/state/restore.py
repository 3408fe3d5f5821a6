"""Restoration: a stored state is put into live objects."""

from bisect import bisect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from plinius.errors import MismatchError
from plinius.jsonvalue import Json, to_json
from plinius.slots import Manifest
from plinius.state.capture import (
    DEVICES,
    OBJECTS,
    RNG,
    STATE,
    EncodedState,
    RunState,
    first_difference,
    generators,
)
from plinius.state.class_lookup import Classes
from plinius.state.codec import Decoder, Encoder, pointer
from plinius.state.codecs.stateful_objects import loads_later
from plinius.state.devices import is_on_host
from plinius.state.exactness import show
from plinius.state.tensor_memory import (
    Memory,
    copy_items,
    empty,
    order_of,
    place_of,
    show_type,
    tensor_type,
)

Read = Callable[[Sequence[memoryview]], None]
"""Fills memory with the tensors of a commit, one buffer for each, in the manifest's order."""

Tensors = dict[str, torch.Tensor]


def restore(state: RunState, manifest: Manifest, read: Read) -> list[str]:
    """Put the state of a commit into the objects, in place if possible.

    Returns a sentence for each value that an object did not restore. Raises MismatchError if the
    objects do not fit (then nothing has changed) or do not load their state, and what `read`
    raises. After an error, the tensors and arrays that were written to hold zeros.
    """
    now = state.encode()
    require_fit(state, now, manifest)
    written: list[torch.Tensor] = []
    arrays: list[np.ndarray[Any, Any]] = []
    try:
        tensors = _read(now, manifest, read, written)
        random, lost = _generators_here(now, manifest)
        after = state.encode()
        # Tensors that the objects show themselves are restored; the others must be loaded.
        own = {name for name, it in tensors.items() if _is_at(it, after.tensors.get(name))}
        if not _is_back(after, manifest, own):
            decoder = Decoder(tensors, state.classes, own, after.blueprints)
            arrays = decoder.changed
            parts = decoder.root(manifest.values[STATE], STATE, {**state.parts})
            for key, value in parts.items():
                if state.parts[key] is not value:
                    state.parts[key] = value
            after = state.encode()
            _require_items(after, tensors)
        Decoder(tensors, state.classes).root(random, RNG, generators(now.devices))
        skip = {path for path, blueprint in after.blueprints.items() if loads_later(blueprint.live)}
        return [*lost, *_differences(after.json[STATE], manifest.values[STATE], STATE, skip)]
    except BaseException:
        _clear(written)
        for array in arrays:
            array[...] = np.zeros((), array.dtype)
        raise


def require_fit(state: RunState, now: EncodedState, manifest: Manifest) -> None:
    """Raise MismatchError unless a commit's state fits these objects.

    The parts must be the same, and so the classes of objects, the groups of optimizers, and the
    parameters of modules with their dtypes and shapes.
    """
    if not {STATE, RNG, OBJECTS} <= manifest.values.keys():
        raise _does_not_fit(
            "it is not the state of a mirror but a checkpoint, or of another program"
        )
    stored = _by_key(cast(Any, manifest.values[STATE])["dict"])
    for key in [*state.parts, *stored]:
        if key not in stored or key not in state.parts:
            where = "the state that was mirrored" if key not in stored else "the state given"
            raise _does_not_fit(f"{key} is missing in {where}")
    for path, (cls, shape) in cast(dict[str, Any], manifest.values[OBJECTS]).items():
        mine = now.blueprints.get(path)
        if mine is None:
            raise _does_not_fit(f"{path} is a {cls} there and missing here")
        other = first_difference(path, (mine.cls, mine.shape), (cls, shape))
        if other:
            raise _does_not_fit(f"{other[0]} is {other[2]} there and {other[1]} here")


def load_tensors(model: nn.Module, part: str, stored: Mapping[str, torch.Tensor]) -> None:
    """Put stored parameters and buffers into a model that is `part` of a state, in place.

    Raises MismatchError, changing nothing, if their names, dtypes or shapes differ.
    """
    encoder = Encoder(Classes(), register=True)
    encoder.node(model, part)
    mine = {name: it for name, it in encoder.tensors.items() if not is_outside_state_dict(name)}
    stored = {name: it for name, it in stored.items() if not is_outside_state_dict(name)}
    for name in [*mine, *stored]:
        here = tensor_type(mine[name]) if name in mine else None
        there = tensor_type(stored[name]) if name in stored else None
        if here != there:
            raise _does_not_fit(f"{name} is {show_type(there)} there and {show_type(here)} here")
    for name, tensor in mine.items():
        copy_items(tensor, stored[name])


def is_outside_state_dict(name: str) -> bool:
    """Whether a tensor of a module is not in its state_dict: a gradient, a hidden buffer."""
    return "/~hidden/" in name or "/~grad/" in name


def _read(
    now: EncodedState, manifest: Manifest, read: Read, written: list[torch.Tensor]
) -> Tensors:
    """The stored tensors: live ones of the same name, dtype and shape, filled; or new ones."""
    tensors: Tensors = {}
    outs, late, moved = [], [], []
    within, devices = _within(now.tensors), _devices(now, manifest)
    for spec, device in zip(manifest.tensors, devices, strict=True):
        mine = now.tensors.get(spec.name)
        if mine is None or _form(mine) != (spec.dtype, spec.shape, spec.order):
            memory = Memory(mine := empty(spec))
            if device.type != "cpu":
                moved.append((spec.name, device))
        elif is_on_host(mine) and spec.name not in within and (memory := Memory(mine)).own:
            written.append(mine)
        else:
            late.append((spec.name, mine, fresh := empty(spec)))
            memory = Memory(fresh)
        tensors[spec.name] = mine
        outs.append(memory.data)
    read(outs)
    for name, device in moved:
        tensors[name] = tensors[name].to(device)
    for name, mine, fresh in late:
        if name not in within:
            written.append(mine)
            copy_items(mine, fresh)
        elif not _same_items(mine, fresh):
            tensors[name] = fresh  # it showed another part, and the whole is in place
    return tensors


def _form(tensor: torch.Tensor) -> tuple[object, ...]:
    """Its dtype, shape and order, as a spec has them."""
    return *tensor_type(tensor), order_of(tensor)


def _devices(now: EncodedState, manifest: Manifest) -> list[torch.device]:
    """Where new tensors go: to the device that has the live ones of the same device then."""
    runs = cast(list[tuple[str, int]], manifest.environment.get(DEVICES, []))
    stored = [device for device, count in runs for _ in range(count)]
    stored = stored or ["cpu"] * len(manifest.tensors)
    here: dict[str, torch.device] = {"cpu": torch.device("cpu")}
    for spec, device in zip(manifest.tensors, stored, strict=True):
        if device not in here and spec.name in now.tensors:
            here[device] = now.tensors[spec.name].device
    return [here.get(device, torch.device("cpu")) for device in stored]


def _generators_here(now: EncodedState, manifest: Manifest) -> tuple[Json, list[str]]:
    """The stored states of the generators that are here, and a sentence for each other one."""
    stored = cast(Any, manifest.values[RNG])["dict"]
    here = generators(now.devices)
    lost = [
        f"the random numbers of {name} are not restored" for name, _ in stored if name not in here
    ]
    return {"dict": [[name, node] for name, node in stored if name in here]}, lost


def _within(tensors: Tensors) -> set[str]:
    """The tensors that show a part of a larger one's memory, or of one as large."""
    starts: list[int] = []  # of memory that no two tensors share, in order
    ends: list[int] = []
    found = set()
    for name, tensor in sorted(tensors.items(), key=lambda item: -_extent(item[1])):
        start, end = tensor.data_ptr(), tensor.data_ptr() + _extent(tensor)
        at = bisect(starts, start)
        before, after = at > 0 and ends[at - 1] > start, at < len(starts) and starts[at] < end
        if (before or after) and end > start:
            found.add(name)
        elif end > start:
            starts.insert(at, start)
            ends.insert(at, end)
    return found


def _extent(tensor: torch.Tensor) -> int:
    """Bytes of memory from its first item to its last."""
    if not tensor.numel():
        return 0
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    return (1 + sum((size - 1) * stride for size, stride in steps)) * tensor.element_size()


def _same_items(one: torch.Tensor, other: torch.Tensor) -> bool:
    return Memory(one.cpu().contiguous()).data == Memory(other.cpu().contiguous()).data


def _is_at(tensor: torch.Tensor, other: torch.Tensor | None) -> bool:
    return other is not None and place_of(tensor) == place_of(other)


def _is_back(after: EncodedState, manifest: Manifest, own: set[str]) -> bool:
    """Whether all came back in place: the values are those stored, and every tensor is its own."""
    whole = all(spec.name in own or spec.name.startswith(RNG) for spec in manifest.tensors)
    return whole and to_json(after.json[STATE]) == to_json(manifest.values[STATE])


def _require_items(after: EncodedState, tensors: Tensors) -> None:
    """Raise MismatchError unless the objects hold the stored tensors, bit for bit."""
    for name, wanted in tensors.items():
        if name.startswith(RNG):
            continue
        found = after.tensors.get(name)
        if found is None or tensor_type(found) != tensor_type(wanted):
            shown = show_type(None if found is None else tensor_type(found))
            raise _does_not_fit(
                f"{name} was restored as {shown}, not as {show_type(tensor_type(wanted))}"
            )
        if place_of(found) != place_of(wanted) and not _same_items(found, wanted):
            raise _does_not_fit(f"{name} was restored with other items")


def _clear(written: list[torch.Tensor]) -> None:
    """Fill tensors with zeros: what a refused commit left in them must not be used."""
    for tensor in written:
        if is_on_host(tensor) and (memory := Memory(tensor)).own:
            np.frombuffer(memory.data, np.uint8).fill(0)
        else:
            copy_items(tensor, torch.zeros_like(tensor))


def _differences(one: Json, other: Json, path: str, skip: set[str]) -> Iterator[str]:
    """A sentence for each difference between two trees; objects at the paths in `skip` excluded."""
    if path in skip or to_json(one) == to_json(other):
        return
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for index, (mine, theirs) in enumerate(zip(one, other, strict=True)):
            yield from _differences(mine, theirs, pointer(path, index), skip)
    elif isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        ((tag, mine),) = one.items()
        theirs = other[tag]
        if tag in _PAIRS and isinstance(mine, list) and isinstance(theirs, list):
            here, there = _by_key(mine), _by_key(theirs)
            for key in [*here, *(there.keys() - here.keys())]:
                yield from _differences(here.get(key), there.get(key), pointer(path, key), skip)
        elif tag == "object":
            yield from _differences(mine[1], theirs[1], path, skip)  # type: ignore[index]
        else:
            yield from _differences(mine, theirs, path, skip)
    else:
        yield f"{path} was {show(other)} and is {show(one)}"


_PAIRS = {"dict", "ordered", "counter"}


def _by_key(pairs: list[Json]) -> dict[str, Json]:
    return {
        key if isinstance(key, str) else to_json(key).decode(): node
        for key, node in cast(list[tuple[Json, Json]], pairs)
    }


def _does_not_fit(what: str) -> MismatchError:
    return MismatchError(
        f"The state in the region does not fit: {what}",
        "Give objects like those at the start of that run, or name another region",
    )
