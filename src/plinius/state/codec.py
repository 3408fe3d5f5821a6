"""The codec: a state as JSON and named tensors, and back. There is no pickle.

    None, bool, str          as they are          list     a list
    int below 2^63           as it is             float    as it is, if it is finite
    {tag: payload}           everything else; `KINDS` has an entry for each tag

A tensor's name is the JSON pointer (RFC 6901) to it, without the leading slash. One that shows in
several places is kept once, under its first name. A container that shows twice is `{"same": path}`
the second time. What no kind fits is refused.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from plinius.errors import MismatchError, StateError
from plinius.jsonvalue import Json
from plinius.state.classes import Classes
from plinius.state.tensors import NAMES, Place, has_storage, place_of

MAX_DEPTH = 64
ABSENT: Any = object()
"""Stands for the live value where there is none."""


class Fact(NamedTuple):
    """What a freshly built object at a path must be like, to take its state back.

    `shape` is what a state cannot change: names, with the layout of each parameter of a module
    (or UNKNOWN, before its first pass), the buffers it has, the groups of an optimizer. `live` is
    the object itself.
    """

    cls: str
    shape: tuple[tuple[str, str], ...]
    payload: Json
    live: object


UNKNOWN = "?"


class Kind(NamedTuple):
    """How values of some classes are encoded, and decoded: into the live value where it can be."""

    tag: str
    classes: tuple[type, ...]
    encode: Callable[["Encoder", Any, str], Json]
    decode: Callable[["Decoder", Any, Any, str], Any]
    shared: bool = False
    """Whether two places may hold the same object, and a change in one shows in the other."""


class Kinds:
    """All kinds, by class and by tag. A subclass of a class here has the kind `subclass`."""

    def __init__(self) -> None:
        self._by_class: dict[type, Kind] = {}
        self._by_tag: dict[str, Kind] = {}
        self.protocols: list[tuple[Callable[[Any], bool], Kind]] = []

    def add(self, *kinds: Kind) -> None:
        """Add kinds; a class belongs to one."""
        for kind in kinds:
            assert kind.tag not in self._by_tag
            self._by_tag[kind.tag] = kind
            for cls in kind.classes:
                assert cls not in self._by_class
                self._by_class[cls] = kind

    def of(self, value: object) -> Kind | None:
        """The kind of a value, or None."""
        kind = self._by_class.get(type(value))
        if kind is None:
            kind = next((kind for fits, kind in self.protocols if fits(value)), None)
        return kind

    def base(self, cls: type) -> tuple[type, Kind] | None:
        """The nearest class of which `cls` is a subclass, and its kind."""
        for base in cls.__mro__[1:]:
            if base in self._by_class:
                return base, self._by_class[base]
        return None

    def tagged(self, tag: str) -> Kind:
        """The kind with a tag. Raises MismatchError for an unknown one."""
        if tag not in self._by_tag:
            raise MismatchError(
                f"The state in the region holds a {tag}, which this program does not know",
                "Use the release of plinius that made it",
            )
        return self._by_tag[tag]


KINDS = Kinds()


class Encoder:
    """One walk through a live state.

    `tensors` are those found, by name, and `places` where each lies; their memory is the state's
    own. `facts` are of the objects that only the program can build, by path.
    """

    def __init__(self, classes: Classes, *, learn: bool = False) -> None:
        """With `learn`, classes met here count as known from now on."""
        self.classes, self.learn = classes, learn
        self.tensors: dict[str, torch.Tensor] = {}
        self.places: dict[str, Place] = {}
        self.facts: dict[str, Fact] = {}
        self._names: dict[Place, str] = {}
        self._seen: dict[int, tuple[str, object]] = {}  # by id; kept alive, or ids would repeat
        self._within: list[int] = []
        self._depth = 0
        self.in_key = False

    def node(self, value: Any, path: str) -> Json:
        """A value as JSON. Raises StateError, with the path, for what a mirror cannot hold."""
        if value is None or value is True or value is False:
            return value
        cls = type(value)
        if cls is float and math.isfinite(value):
            return value  # type: ignore[no-any-return]
        if cls is int and -(2**63) < value < 2**63:
            return value  # type: ignore[no-any-return]
        if cls is torch.Tensor and value.layout is torch.strided and _is_plain(value):
            return {"tensor": self.tensor(value, path)}
        kind = KINDS.of(value) or (KINDS.tagged("subclass") if KINDS.base(cls) else None)
        if kind is None:
            raise refused(path, f"is a {cls.__qualname__}")
        if kind.shared and not (self.in_key and kind.tag == "subclass"):
            return self._shared(kind, value, path)
        return self._tagged(kind, value, path)

    def key(self, value: Any, path: str) -> Json:
        """The key of a dict, or an item of a set: something that cannot change."""
        if type(value) is str and len(value) < 1024:
            return value
        before, self.in_key = self.in_key, True
        try:
            return self.node(value, path)
        finally:
            self.in_key = before

    def tensor(self, tensor: torch.Tensor, path: str) -> str:
        """The name under which a tensor is kept. Raises StateError if it has no items here."""
        if self.in_key:
            raise refused(path, "has a tensor as a key")
        if tensor.layout is not torch.strided or not tensor.is_cpu or tensor.is_nested:
            kind = "nested" if tensor.is_nested else tensor.layout
            todo = "Give plain tensors on the CPU: a dense copy, or the parts it is made of"
            raise refused(path, f"is a {kind} tensor on {tensor.device}", todo)
        if tensor.dtype not in NAMES:
            way = "Give its int_repr(), scale and zero point" if tensor.is_quantized else None
            raise refused(path, f"is a tensor of {tensor.dtype}", way)
        if not has_storage(tensor):
            raise refused(path, "is a tensor whose storage was given back (resize_(0))")
        place = place_of(tensor)
        known = self._names.get(place)
        if known is not None and tensor.numel():  # empty ones are all at one place
            return known
        while path in self.tensors:  # a key 1 and a key "1" of one dict
            path += "~"
        self._names[place] = path
        self.tensors[path], self.places[path] = tensor, place
        return path

    def fact(self, path: str, fact: Fact) -> None:
        """Note an object that only the program can build."""
        if path in self.facts:
            raise refused(path, "has a name that another object in the state has too")
        self.facts[path] = fact

    def alone(self, encode: Callable[[], Json]) -> Json:
        """Encode what is loaded as a whole: containers are shared within it only."""
        before, self._seen = self._seen, {}
        try:
            return encode()
        finally:
            self._seen = before

    def _shared(self, kind: Kind, value: Any, path: str) -> Json:
        if self.in_key:
            raise refused(path, f"has a {type(value).__qualname__} as a key")
        if id(value) in self._within:
            raise refused(path, "is nested too deeply: it holds itself")
        known = self._seen.get(id(value))
        if known is not None:
            return {"same": known[0]}
        self._seen[id(value)] = path, value
        if len(self._within) >= MAX_DEPTH:
            raise refused(path, "is nested too deeply")
        self._within.append(id(value))
        try:
            return self._tagged(kind, value, path)
        finally:
            self._within.pop()

    def deeper(self, path: str, encode: Callable[[], Json]) -> Json:
        """Encode one level further down. Raises StateError where those are too many."""
        if self._depth > MAX_DEPTH:  # the containers end at MAX_DEPTH, and hold what is plain
            raise refused(path, "is nested too deeply")
        self._depth += 1
        try:
            return encode()
        finally:
            self._depth -= 1

    def _tagged(self, kind: Kind, value: Any, path: str) -> Json:
        payload = self.deeper(path, lambda: kind.encode(self, value, path))
        return payload if kind.tag in ("list", "str") else {kind.tag: payload}


class Decoder:
    """Puts the values of a stored state together, in the live objects wherever that can be.

    `tensors` hold the stored items; those in `own` are the live objects' own tensors. `facts` are
    those of the live state.
    """

    def __init__(
        self,
        tensors: Mapping[str, torch.Tensor],
        classes: Classes,
        own: set[str] | None = None,
        facts: Mapping[str, Fact] | None = None,
    ) -> None:
        self.tensors, self.classes = tensors, classes
        self.own, self.facts = own or set(), facts or {}
        self._made: dict[str, Any] = {}

    def value(self, node: Json, path: str, live: Any = ABSENT) -> Any:
        """The value of a node: `live` itself, changed, where it is of the kind; or a new one."""
        if isinstance(node, list):
            kind, payload = KINDS.tagged("list"), node
        elif isinstance(node, str) or not isinstance(node, dict):
            return node
        else:
            ((tag, payload),) = node.items()  # type: ignore[assignment]
            if tag == "same":
                return self._made[str(payload)]
            kind = KINDS.tagged(tag)
        value = kind.decode(self, payload, live, path)
        return self.made(path, value) if kind.shared else value

    def holds(self, array: np.ndarray[Any, Any]) -> bool:
        """Whether an array shows memory that a tensor was restored in."""
        low, high = np.lib.array_utils.byte_bounds(array)
        return any(
            (start := (it := self.tensors[name]).data_ptr()) < high and low < start + it.nbytes
            for name in self.own
        )

    def made(self, path: str, value: Any) -> Any:
        """Note a container, before its items: another place may hold the same one."""
        self._made[path] = value
        return value

    def alone(self, decode: Callable[[], Any]) -> Any:
        """Decode what was encoded by `Encoder.alone`."""
        before, self._made = self._made, {}
        try:
            return decode()
        finally:
            self._made = before


def pointer(path: str, key: object) -> str:
    """The name of what lies under `key` in what has this name; the root's name is empty."""
    escaped = str(key)
    if "~" in escaped or "/" in escaped:
        escaped = escaped.replace("~", "~0").replace("/", "~1")
    return f"{path}/{escaped}" if path else escaped


def refused(path: str, what: str, todo: str | None = None) -> StateError:
    """The refusal of a value, with its path."""
    return StateError(
        f"The state cannot be mirrored: {path} {what}",
        todo
        or "Give tensors, arrays, numbers, strings, containers of them, generators, and objects "
        "with state_dict and load_state_dict",
    )


def tensor_names(node: Json) -> set[str]:
    """The names of the tensors in a node."""
    if isinstance(node, list):
        return set().union(*map(tensor_names, node)) if node else set()
    if not isinstance(node, dict):
        return set()
    found: set[str] = set()
    for tag, payload in node.items():
        if tag == "tensor":
            found.add(str(payload))
        else:
            found |= tensor_names(payload)
    return found


def _is_plain(tensor: torch.Tensor) -> bool:
    return not tensor.requires_grad and tensor.is_contiguous() and tensor.grad is None
