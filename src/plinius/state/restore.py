"""Restoration: a state put back into the objects that it was taken from."""

from bisect import bisect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from plinius.errors import MismatchError
from plinius.jsonvalue import Json, to_json
from plinius.slots import Manifest
from plinius.state.classes import Classes
from plinius.state.codec import Decoder, Encoder, pointer
from plinius.state.environment import show
from plinius.state.objects import is_lazy
from plinius.state.run_state import OBJECTS, RNG, STATE, RunState, Walk, differing, generators
from plinius.state.tensors import Memory, copy_items, empty, layout_of, place_of, show_layout

Read = Callable[[Sequence[memoryview]], None]
"""Fills memory with the tensors of a commit, in their order."""

Tensors = dict[str, torch.Tensor]


def restore(state: RunState, about: Manifest, read: Read) -> list[str]:
    """Put every object where it was when a commit was taken, in place where that can be.

    Returns what did not come back as it was, since an object did not take it back. Raises
    MismatchError, changing nothing, if the objects are others; and what `read` raises. After any
    other refusal, the tensors that were written to hold zeros.
    """
    now = state.walk()
    require_fit(state, now, about)
    written: list[torch.Tensor] = []
    try:
        tensors = _read(now, about, read, written)
        after = state.walk()
        # An object's own are those that it shows itself; it is to load the others.
        own = {name for name, it in tensors.items() if place_of(it) == after.places.get(name)}
        if not _is_back(after, about, own):
            decoder = Decoder(tensors, state.classes, own, after.facts)
            parts = decoder.value(about.values[STATE], STATE, {**state.parts})
            for key, value in parts.items():
                if state.parts[key] is not value:
                    state.parts[key] = value
            after = state.walk()
            _require_items(after, tensors)
        Decoder(tensors, state.classes).value(about.values[RNG], RNG, generators())
        lazy = {path for path, fact in after.facts.items() if is_lazy(fact.live)}
        return [*_differences(after.json[STATE], about.values[STATE], STATE, lazy)]
    except BaseException:
        _clear(written)
        raise


def require_fit(state: RunState, now: Walk, about: Manifest) -> None:
    """Raise MismatchError unless a commit's state fits these objects.

    The parts must be the same, and so the classes of objects, the groups of optimizers, and the
    parameters of modules with their dtypes and shapes.
    """
    if not {STATE, RNG, OBJECTS} <= about.values.keys():
        raise _misfit("it is no mirrored state but a checkpoint, or another program's")
    stored = _by_key(cast(Any, about.values[STATE])["dict"])
    for key in [*state.parts, *stored]:
        if key not in stored or key not in state.parts:
            where = "the state that was mirrored" if key not in stored else "the state given"
            raise _misfit(f"{key} is missing in {where}")
    for path, (cls, shape) in cast(dict[str, Any], about.values[OBJECTS]).items():
        mine = now.facts.get(path)
        if mine is None:
            raise _misfit(f"{path} is a {cls} there and none here")
        other = differing(path, (mine.cls, mine.shape), (cls, shape))
        if other:
            raise _misfit(f"{other[0]} is {other[2]} there and {other[1]} here")


def load_tensors(model: nn.Module, part: str, stored: Mapping[str, torch.Tensor]) -> None:
    """Put stored parameters and buffers into a model that is `part` of a state, in place.

    Raises MismatchError, changing nothing, if their names, dtypes or shapes differ.
    """
    encoder = Encoder(Classes(), learn=True)
    encoder.node(model, part)
    mine = {name: it for name, it in encoder.tensors.items() if not is_beside(name)}
    stored = {name: it for name, it in stored.items() if not is_beside(name)}
    for name in [*mine, *stored]:
        here = layout_of(mine[name]) if name in mine else None
        there = layout_of(stored[name]) if name in stored else None
        if here != there:
            raise _misfit(f"{name} is {show_layout(there)} there and {show_layout(here)} here")
    for name, tensor in mine.items():
        copy_items(tensor, stored[name])


def is_beside(name: str) -> bool:
    """Whether a tensor of a module is none of its state_dict: a gradient, a hidden buffer."""
    return "/~hidden/" in name or "/~grad/" in name


def _read(now: Walk, about: Manifest, read: Read, written: list[torch.Tensor]) -> Tensors:
    """The stored tensors: the live ones of the same name and layout, filled, or new ones."""
    tensors: Tensors = {}
    outs, late = [], []
    within = _within(now.tensors)
    for spec in about.tensors:
        mine = now.tensors.get(spec.name)
        if mine is None or layout_of(mine) != (spec.dtype, spec.shape):
            memory = Memory(mine := empty(spec))
        else:
            memory = Memory(mine)
            if memory.order != spec.order:
                memory = Memory(mine := empty(spec))
            elif not memory.own or spec.name in within:
                late.append((spec.name, mine, fresh := empty(spec)))
                memory = Memory(fresh)
            else:
                written.append(mine)
        tensors[spec.name] = mine
        outs.append(memory.data)
    read(outs)
    for name, mine, fresh in late:
        if name not in within:
            written.append(mine)
            copy_items(mine, fresh)
        elif not _same_items(mine, fresh):
            tensors[name] = fresh  # it showed another part, and the whole is in place
    return tensors


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
    return Memory(one.contiguous()).data == Memory(other.contiguous()).data


def _is_back(after: Walk, about: Manifest, own: set[str]) -> bool:
    """Whether all came back in place: the values are those stored, and every tensor is its own."""
    whole = all(spec.name in own or spec.name.startswith(RNG) for spec in about.tensors)
    return whole and to_json(after.json[STATE]) == to_json(about.values[STATE])


def _require_items(after: Walk, tensors: Tensors) -> None:
    """Raise MismatchError unless the objects show the stored tensors, bit for bit."""
    for name, wanted in tensors.items():
        if name.startswith(RNG):
            continue
        found = after.tensors.get(name)
        if found is None or layout_of(found) != layout_of(wanted):
            shown = show_layout(None if found is None else layout_of(found))
            raise _misfit(f"{name} came back as {shown}, not as {show_layout(layout_of(wanted))}")
        if place_of(found) != place_of(wanted) and not _same_items(found, wanted):
            raise _misfit(f"{name} came back with other items")


def _clear(written: list[torch.Tensor]) -> None:
    """What a refused commit left in the objects means nothing: leave zeros."""
    for tensor in written:
        memory = Memory(tensor)
        if memory.own:
            np.frombuffer(memory.data, np.uint8).fill(0)
        else:
            copy_items(tensor, torch.zeros_like(tensor))


def _differences(one: Json, other: Json, path: str, lazy: set[str]) -> Iterator[str]:
    """What of the values of two trees differs, for people; `lazy` objects are passed over."""
    if path in lazy or to_json(one) == to_json(other):
        return
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for index, (mine, theirs) in enumerate(zip(one, other, strict=True)):
            yield from _differences(mine, theirs, pointer(path, index), lazy)
    elif isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        ((tag, mine),) = one.items()
        theirs = other[tag]
        if tag in _PAIRS and isinstance(mine, list) and isinstance(theirs, list):
            here, there = _by_key(mine), _by_key(theirs)
            for key in [*here, *(there.keys() - here.keys())]:
                yield from _differences(here.get(key), there.get(key), pointer(path, key), lazy)
        elif tag == "object":
            yield from _differences(mine[1], theirs[1], path, lazy)  # type: ignore[index]
        else:
            yield from _differences(mine, theirs, path, lazy)
    else:
        yield f"{path} was {show(other)} and is {show(one)}"


_PAIRS = {"dict", "ordered", "counter"}


def _by_key(pairs: list[Json]) -> dict[str, Json]:
    return {
        key if isinstance(key, str) else to_json(key).decode(): node
        for key, node in cast(list[tuple[Json, Json]], pairs)
    }


def _misfit(what: str) -> MismatchError:
    return MismatchError(
        f"The state in the region does not fit: {what}",
        "Give the objects that run began with, or name another region",
    )
