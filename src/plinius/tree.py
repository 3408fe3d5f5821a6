"""A state as a tree: nested values of a run taken apart into tensors by name and JSON.

    None, bool, int, float, str     as they are            list        a list
    {"tensor": name}                a tensor               {"tuple": [...]}
    {"array": [name, dtype, *dims]} a NumPy array          {"dict": [[key, value], ...]}
    {"object": tree}                what state_dict() gave
    {"generator": tree}             a random number generator of torch, NumPy or Python
    {"scalar": [dtype, hex]}        a NumPy number         {"bytes": hex}
    {"complex": [re, im]}  {"dtype": name}  {"device": name}

A tensor's name is the JSON pointer (RFC 6901) to it, without the leading slash. One that shows in
several places is kept once, under its first name. There is no pickle: what is none of these is
refused.
"""

import random
from collections import OrderedDict, defaultdict
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import numpy as np
import torch

from plinius.errors import StateError
from plinius.snapshot import Json
from plinius.tensors import NAMES, Place, bytes_of_array, place_of

_MAX_DEPTH = 64
_MAX_INT_BITS = 4096
_NUMPY_KINDS = "biufc"
_PLAIN = {dict, OrderedDict, defaultdict, list, tuple, torch.Size}


@runtime_checkable
class Stateful(Protocol):
    """What gives its state and takes it back: models, optimizers, schedulers, scalers."""

    def state_dict(self) -> dict[str, Any]:
        """The state now."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> object:
        """Take a state on."""


Generator = torch.Generator | np.random.Generator | np.random.RandomState | random.Random


class Tree(NamedTuple):
    """The JSON of a state, its tensors by name, and where each of them lies (`place_of`)."""

    json: dict[str, Json]
    tensors: dict[str, torch.Tensor]
    places: dict[str, Place]


def take_apart(roots: Mapping[str, object]) -> Tree:
    """The trees of values, by the name from which on their tensors are named; memory is shared.

    Raises StateError for what a mirror cannot hold.
    """
    taken = _Taken()
    json = {name: taken.node(root, name, 0) for name, root in roots.items()}
    return Tree(json, taken.tensors, taken.places)


def put_together(node: Json, tensors: Mapping[str, torch.Tensor]) -> Any:
    """The value of a tree, made of these tensors; generators are given as their states."""
    if not isinstance(node, dict):
        return [put_together(item, tensors) for item in node] if isinstance(node, list) else node
    ((kind, inner),) = node.items()
    inner = cast(Any, inner)
    if kind == "tensor":
        return tensors[inner]
    if kind == "array":
        return tensors[inner[0]].numpy().view(np.dtype(inner[1])).reshape(inner[2:])
    if kind == "dict":
        return {
            _key(put_together(key, tensors)): put_together(item, tensors) for key, item in inner
        }
    if kind == "tuple":
        return tuple(put_together(item, tensors) for item in inner)
    if kind in ("object", "generator"):
        return put_together(inner, tensors)
    if kind == "bytes":
        return bytes.fromhex(inner)
    if kind == "complex":
        return complex(*inner)
    if kind == "scalar":
        return np.frombuffer(bytes.fromhex(inner[1]), inner[0])[0]
    return getattr(torch, inner) if kind == "dtype" else torch.device(inner)


def pointer(name: str, key: object) -> str:
    """The name of what lies under `key` in what has this name; the root's name is empty."""
    escaped = str(key)
    if "~" in escaped or "/" in escaped:
        escaped = escaped.replace("~", "~0").replace("/", "~1")
    return f"{name}/{escaped}" if name else escaped


def generator_state(generator: Generator) -> object:
    """The state of a random number generator, as plain values, arrays and tensors."""
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, np.random.Generator):
        return dict(generator.bit_generator.state)
    if isinstance(generator, np.random.RandomState):
        return generator.get_state(legacy=False)
    version, words, gauss = generator.getstate()
    return {"version": version, "words": np.array(words, np.int64), "gauss": gauss}


def set_generator_state(generator: Generator, state: Any) -> None:
    """Put a generator where another was when its state was taken."""
    if isinstance(generator, torch.Generator):
        generator.set_state(state)
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, np.random.RandomState):
        generator.set_state(state)
    else:
        words = tuple(map(int, state["words"]))
        generator.setstate((state["version"], words, state["gauss"]))


class _Taken:
    """The tensors found on one walk through a state."""

    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self.places: dict[str, Place] = {}
        self._names: dict[Place, str] = {}

    def node(self, value: object, name: str, depth: int) -> Json:
        if depth > _MAX_DEPTH:
            raise _refused(name, "is nested too deeply")
        if value is None or isinstance(value, bool | str):
            return value
        if isinstance(value, int):
            if value.bit_length() > _MAX_INT_BITS:
                raise _refused(name, "is too large a number")
            return int(value)
        if isinstance(value, float):
            return float(value)
        if isinstance(value, torch.Tensor):
            return {"tensor": self._tensor(name, value)}
        if isinstance(value, np.ndarray):
            if value.dtype.kind not in _NUMPY_KINDS:
                raise _refused(name, f"is an array of {value.dtype}")
            kept = self._tensor(name, bytes_of_array(value))
            return {"array": [kept, value.dtype.str, *value.shape]}
        if type(value) in _PLAIN:
            return self._plain(value, name, depth)
        if isinstance(value, Generator):
            return {"generator": self.node(generator_state(value), name, depth + 1)}
        if isinstance(value, Stateful):
            return {"object": self.node(value.state_dict(), name, depth + 1)}
        return self._plain(value, name, depth)

    def _plain(self, value: object, name: str, depth: int) -> Json:
        if isinstance(value, Mapping):
            return {
                "dict": [
                    [
                        key if type(key) is str else self.node(key, name, depth + 1),
                        self.node(v, pointer(name, key), depth + 1),
                    ]
                    for key, v in value.items()
                ]
            }
        if isinstance(value, list | tuple):
            items = [self.node(v, pointer(name, i), depth + 1) for i, v in enumerate(value)]
            return {"tuple": items} if isinstance(value, tuple) else items
        if isinstance(value, bytes | bytearray):
            return {"bytes": value.hex()}
        if isinstance(value, complex):
            return {"complex": [value.real, value.imag]}
        if isinstance(value, np.generic) and value.dtype.kind in _NUMPY_KINDS:
            return {"scalar": [value.dtype.str, value.tobytes().hex()]}
        if isinstance(value, torch.dtype):
            return {"dtype": str(value).removeprefix("torch.")}
        if isinstance(value, torch.device):
            return {"device": str(value)}
        raise _refused(name, f"is a {type(value).__name__}")

    def _tensor(self, name: str, tensor: torch.Tensor) -> str:
        if tensor.layout is not torch.strided or not tensor.is_cpu:
            raise _refused(name, f"is a {tensor.layout} tensor on {tensor.device}")
        if tensor.dtype not in NAMES:
            raise _refused(name, f"is a tensor of {tensor.dtype}")
        place = place_of(tensor)
        known = self._names.get(place)
        if known is not None and tensor.numel():  # empty ones are all at one place
            return known
        while name in self.tensors:  # a key 1 and a key "1" of one dict
            name += "~"
        self._names[place] = name
        self.tensors[name], self.places[name] = tensor, place
        return name


def _key(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _refused(name: str, what: str) -> StateError:
    return StateError(
        f"The state cannot be mirrored: {name} {what}",
        "Give tensors, arrays, numbers, strings, lists and dicts of them, generators, and objects "
        "with state_dict and load_state_dict",
    )
