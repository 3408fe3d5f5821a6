"""Restoration: a state put back into the objects that it was taken from."""

from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from plinius.environment import show
from plinius.errors import MismatchError
from plinius.slots import Manifest
from plinius.snapshot import Json
from plinius.tensors import Memory, copy_items, layout_of
from plinius.tree import (
    Generator,
    Stateful,
    Tree,
    pointer,
    put_together,
    set_generator_state,
    take_apart,
)

Tensors = Mapping[str, torch.Tensor]
Layout = tuple[str, tuple[int, ...]]


def require_fit(parts: Mapping[str, Any], mine: Tree, about: Manifest) -> None:
    """Raise MismatchError unless a commit's state fits these parts.

    Parts must be the same; of models and tensors, names, dtypes and shapes as well. Other objects
    may hold more or fewer tensors than they will (an optimizer before its first step).
    """
    stored = dict(_items(about.values[""]))
    for key in [*parts, *stored]:
        if key not in stored or key not in parts:
            where = "the state that was mirrored" if key not in stored else "the state given"
            raise _misfit(f"{key} is missing in {where}")
    now = {name: layout_of(tensor) for name, tensor in mine.tensors.items()}
    then = {spec.name: (spec.dtype, spec.shape) for spec in about.tensors}
    for key, part in parts.items():
        if isinstance(part, nn.Module | torch.Tensor | np.ndarray):
            root = pointer("", key)
            _require_layouts(_under(root, now), _under(root, then))


def load_tensors(model: nn.Module, part: str, stored: Tensors) -> None:
    """Put stored parameters and buffers into a model that is `part` of a state, in place.

    Raises MismatchError, changing nothing, if their names, dtypes or shapes differ.
    """
    mine = take_apart({part: model}).tensors
    _require_layouts(
        {name: layout_of(tensor) for name, tensor in mine.items()},
        {name: layout_of(tensor) for name, tensor in stored.items()},
    )
    for name, tensor in mine.items():
        copy_items(tensor, stored[name])


def put_back(value: Any, mine: Json, theirs: Json, tensors: Tensors, own: set[str]) -> Any:
    """`value` as `theirs` says: itself wherever it can be changed, or what takes its place.

    `mine` is its tree now. `tensors` are restored; those named in `own` are the objects' own.
    """
    if isinstance(value, torch.Tensor):
        restored = put_together(theirs, tensors)
        if restored is not value and not _same_memory(restored, value):
            copy_items(value, restored)
        return value
    if isinstance(value, np.ndarray):
        value[...] = put_together(theirs, tensors)
        return value
    if isinstance(value, Generator):
        set_generator_state(value, put_together(theirs, tensors))
        return value
    if isinstance(value, Stateful):
        if mine != theirs or not _names(theirs) <= own:
            value.load_state_dict(put_together(theirs, tensors))
            if isinstance(value, torch.optim.Optimizer):
                _undo_casts(value, put_together(theirs, tensors))
        return value
    if isinstance(value, MutableMapping) and isinstance(theirs, dict) and "dict" in theirs:
        return _put_back_dict(value, mine, theirs, tensors, own)
    if isinstance(value, list) and isinstance(theirs, list) and isinstance(mine, list):
        kept = zip(value, mine, theirs, strict=False)
        front = [put_back(item, m, t, tensors, own) for item, m, t in kept]
        value[:] = front + [put_together(item, tensors) for item in theirs[len(front) :]]
        return value
    if isinstance(value, tuple) and isinstance(theirs, dict) and "tuple" in theirs:
        before = cast(list[Json], cast(dict[str, Json], mine)["tuple"])
        items = cast(list[Json], theirs["tuple"])
        if len(before) == len(items):
            triples = zip(value, before, items, strict=True)
            return tuple(put_back(item, m, t, tensors, own) for item, m, t in triples)
    return put_together(theirs, tensors)


def require_restored(name: str, wanted: torch.Tensor, found: torch.Tensor | None) -> None:
    """Raise MismatchError unless an object took a tensor back bit for bit."""
    if found is None or layout_of(found) != layout_of(wanted):
        shown = _show(None if found is None else layout_of(found))
        raise _misfit(f"{name} came back as {shown}, not as {_show(layout_of(wanted))}")
    one, other = found.contiguous(), wanted.contiguous()
    if not _same_memory(found, wanted) and Memory(one).data != Memory(other).data:
        raise _misfit(f"{name} came back with other items")


def differences(mine: Json, theirs: Json, name: str) -> Iterator[str]:
    """What of the values of two trees differs, for people."""
    if mine == theirs:
        return
    if isinstance(mine, dict) and isinstance(theirs, dict) and mine.keys() == theirs.keys():
        ((kind, inner),) = mine.items()
        other = theirs[kind]
        if kind == "dict":
            here, there = dict(_items(mine)), dict(_items(theirs))
            for key in [*here, *(there.keys() - here.keys())]:
                yield from differences(here.get(key), there.get(key), pointer(name, key))
            return
        yield from differences(inner, other, name)
    elif isinstance(mine, list) and isinstance(theirs, list) and len(mine) == len(theirs):
        for index, (one, other) in enumerate(zip(mine, theirs, strict=True)):
            yield from differences(one, other, pointer(name, index))
    else:
        yield f"{name} was {show(theirs)} and is {show(mine)}"


def _put_back_dict(
    value: MutableMapping[Any, Any], mine: Json, theirs: Json, tensors: Tensors, own: set[str]
) -> Any:
    before = dict(_items(mine))
    restored = {
        key: put_back(value[key], before[key], node, tensors, own)
        if key in value
        else put_together(node, tensors)
        for key, node in _items(theirs)
    }
    if list(value) != list(restored):
        value.clear()  # so that the order of its keys comes back as well
    value.update(restored)
    return value


def _undo_casts(optimizer: torch.optim.Optimizer, stored: dict[str, Any]) -> None:
    """torch casts what an optimizer loads to its parameters' dtype: put back what it was."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, values in stored.get("state", {}).items():
        if isinstance(index, int) and index < len(parameters):
            mine = optimizer.state[parameters[index]]
            for key, value in values.items():
                if isinstance(value, torch.Tensor) and mine[key].dtype != value.dtype:
                    mine[key] = value


def _items(node: Json) -> Iterator[tuple[Any, Json]]:
    """The keys, put together, and the nodes of a dict in a tree."""
    for key, inner in cast(Any, node)["dict"]:
        made = put_together(key, {})
        yield (tuple(made) if isinstance(made, list) else made), inner


def _names(node: Json) -> set[str]:
    """The names of the tensors in a tree."""
    if isinstance(node, list):
        return set().union(*map(_names, node))
    if not isinstance(node, dict):
        return set()
    ((kind, inner),) = node.items()
    if kind == "tensor":
        return {cast(str, inner)}
    if kind == "array":
        return {cast(str, cast(list[Json], inner)[0])}
    return _names(inner)


def _under(root: str, layouts: Mapping[str, Layout]) -> dict[str, Layout]:
    return {n: one for n, one in layouts.items() if n == root or n.startswith(root + "/")}


def _require_layouts(mine: Mapping[str, Layout], theirs: Mapping[str, Layout]) -> None:
    for name in [*mine, *theirs]:
        if mine.get(name) != theirs.get(name):
            raise _misfit(
                f"{name} is {_show(theirs.get(name))} there and {_show(mine.get(name))} here"
            )


def _same_memory(one: torch.Tensor, other: torch.Tensor) -> bool:
    return (
        one.data_ptr() == other.data_ptr()
        and one.stride() == other.stride()
        and layout_of(one) == layout_of(other)
    )


def _misfit(what: str) -> MismatchError:
    return MismatchError(
        f"The state in the region does not fit: {what}",
        "Give the objects that run began with, or name another region",
    )


def _show(layout: Layout | None) -> str:
    return f"{layout[0]}{list(layout[1])}" if layout else "missing"
