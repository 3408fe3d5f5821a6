"""The structure of a part of a state: what its encoding depends on, apart from its tensors' memory.

It is compared at every commit, so it is made of few lists, by calls that loop in C.
"""

import functools
import operator
from collections.abc import Iterable
from itertools import chain, repeat
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import nn

_MOST_LEVELS = 16
_PLAIN_TYPES = {torch.Tensor, nn.Parameter, nn.Buffer}
_SCALARS = {int, bool, str, type(None)}
_CONTAINERS = {dict, list, tuple}
_KEYS = {str, int}
_GRAD, _IS_LEAF = attrgetter("grad"), attrgetter("is_leaf")
_REQUIRES_GRAD = attrgetter("requires_grad")
_MODULES, _PARAMETERS = attrgetter("_modules"), attrgetter("_parameters")
_BUFFERS, _NON_PERSISTENT = attrgetter("_buffers"), attrgetter("_non_persistent_buffers_set")
_HOOKS, _PRE_HOOKS = attrgetter("_state_dict_hooks"), attrgetter("_state_dict_pre_hooks")
_TRAINING = attrgetter("training")


class Structure(NamedTuple):
    """What an encoding depends on, apart from the facts and addresses of the tensors.

    `gradients` are those of the tensors. `containers` are those whose identity matters, because the
    state may hold them twice.
    """

    form: list[object]
    tensors: list[torch.Tensor]
    gradients: list[torch.Tensor]
    containers: list[object]


def structure_of_tree(value: object) -> Structure | None:
    """The structure of a container; None if it holds more than containers, values and tensors."""
    structure, key_types, seen = Structure([], [], [], []), set[type](), {id(value)}
    level: list[Any] = [value]
    for _ in range(_MOST_LEVELS):
        items = _add_level(level, structure.form, key_types)
        kinds = [*map(type, items)]
        structure.form.extend(kinds)
        if kinds.count(torch.Tensor) == len(kinds):
            structure.tensors.extend(items)
            break
        level = []
        for item, kind in zip(items, kinds, strict=True):
            if kind in _CONTAINERS:
                level.append(item)
            elif kind in _PLAIN_TYPES:
                structure.tensors.append(item)
            elif kind in _SCALARS:
                structure.form.append(item)
            elif kind is float and item == item:
                structure.form.append(item.hex())  # 0.0 and -0.0 are equal; some NaNs look alike
            else:
                return None
        shared = [it for it in level if type(it) is not tuple]  # two places may hold one tuple
        if len(seen | {*map(id, shared)}) != len(seen) + len(shared):
            return None
        seen.update(map(id, shared))
        structure.containers.extend(shared)
    else:
        return None
    tensors = structure.tensors
    if key_types - _KEYS or any(map(_REQUIRES_GRAD, tensors)):
        return None
    return structure if _are_none(map(_GRAD, tensors)) else None


def _add_level(level: list[Any], form: list[object], key_types: set[type]) -> list[Any]:
    """Add containers of one depth, without their items, which it returns."""
    kinds = [*map(type, level)]
    form.extend(kinds)
    form.extend(map(len, level))
    if kinds.count(dict) == len(kinds):
        dicts, items = level, chain.from_iterable(map(dict.values, level))
    else:
        dicts = [it for it in level if type(it) is dict]
        items = chain.from_iterable(it.values() if type(it) is dict else it for it in level)
    keys = [*chain.from_iterable(dicts)]
    types = [*map(type, keys)]
    key_types.update(types)
    form.extend(keys)
    form.extend(types)
    return [*items]


def structure_of_module(module: nn.Module) -> Structure | None:
    """The structure of a module; None if its state_dict may show more than its own tensors."""
    form: list[object] = []
    raw: list[torch.Tensor | None] = []
    level, seen = [module], {id(module)}
    while level:
        if not _add_modules(level, form, raw):
            return None
        inner = [*chain.from_iterable(map(dict.values, map(_MODULES, level)))]
        form.extend(map(id, inner))
        level = [it for it in dict.fromkeys(inner) if it is not None and id(it) not in seen]
        seen.update(map(id, level))
    tensors = [tensor for tensor in raw if tensor is not None]
    if {*map(type, tensors)} - _PLAIN_TYPES or not all(map(_IS_LEAF, tensors)):
        return None
    grads = [*map(_GRAD, tensors)]
    form.extend(map(_REQUIRES_GRAD, tensors))
    if _are_none(grads):
        return Structure(form, tensors, [], [])
    form.extend(grad is None for grad in grads)
    grads = [grad for grad in grads if grad is not None]
    if any(map(_REQUIRES_GRAD, grads)) or {*map(type, grads)} - {torch.Tensor}:
        return None
    return Structure(form, tensors, grads, [])


def _are_none(values: Iterable[object]) -> bool:
    return all(map(operator.is_, values, repeat(None)))


def _add_modules(
    modules: list[nn.Module], form: list[object], tensors: list[torch.Tensor | None]
) -> bool:
    """Add modules of one depth; False if torch's own state_dict is not all there is to them."""
    if (
        not all(map(_is_plain, {*map(type, modules)}))
        or any(map(_HOOKS, modules))
        or any(map(_PRE_HOOKS, modules))
        or not all(map(_METHODS.isdisjoint, map(vars, modules)))
    ):
        return False
    form.extend(map(id, modules))
    form.extend(map(bool, map(_TRAINING, modules)))
    for named in ([*map(_PARAMETERS, modules)], [*map(_BUFFERS, modules)]):
        values = [*chain.from_iterable(map(dict.values, named))]
        form.extend(map(len, named))
        form.extend(chain.from_iterable(named))
        form.extend(map(id, values))
        tensors += values
    form.extend(map(frozenset, map(_NON_PERSISTENT, modules)))
    inner = [*map(_MODULES, modules)]
    form.extend(map(len, inner))
    form.extend(chain.from_iterable(inner))
    return True


_METHODS = frozenset({"state_dict", "_save_to_state_dict", "get_extra_state", "named_modules"})


@functools.cache
def _is_plain(cls: Any) -> bool:
    """Whether a module of this class shows its state as torch's own modules do."""
    return not issubclass(cls, torch.jit.ScriptModule) and all(
        getattr(cls, name) is getattr(nn.Module, name) for name in _METHODS
    )
