"""The codec: a state as JSON and named tensors, and back. There is no pickle.

    None, bool, str          themselves           list     a list
    int, |value| < 2^63      itself               float    itself, if it is finite
    {tag: payload}           everything else; `CODECS` has an entry for each tag

A tensor's name is the JSON pointer (RFC 6901) to it, without the leading slash. A tensor in
several places is stored once, under its first name. A container that appears twice is
`{"same": path}` the second time. A value that has no codec is refused.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader

from plinius.errors import MismatchError, StateError
from plinius.jsonvalue import Json
from plinius.state.class_lookup import Classes
from plinius.state.devices import SUPPORTED, Items
from plinius.state.encoding_cache import (
    LEAST_ITEMS,
    Description,
    Encode,
    EncodeValues,
    EncodingCache,
)
from plinius.state.structure import Structure, structure_of_tree
from plinius.state.tensor_memory import NAMES, has_storage, place_of

MAX_DEPTH = 64
_T = TypeVar("_T")
_USE_OUR_LOADER = "Use plinius.ResumableLoader, which goes on at the next batch, and mirror that"
ABSENT: Any = object()
"""Stands for the live value where there is none."""


class Blueprint(NamedTuple):
    """What a freshly built object must be like, so that the stored state can be put into it.

    `shape` has what a state cannot change, as (name, description): the dtype and shape of each
    parameter of a module (or UNKNOWN, before its first pass), its buffers, the groups of an
    optimizer. `payload` is the encoded state, `live` the object itself.
    """

    cls: str
    shape: tuple[tuple[str, str], ...]
    payload: Json
    live: object


UNKNOWN = "?"


class Codec(NamedTuple):
    """How values of some classes are encoded, and decoded (into the live value if possible)."""

    tag: str
    classes: tuple[type, ...]
    encode: Callable[["Encoder", Any, str], Json]
    decode: Callable[["Decoder", Any, Any, str], Any]
    shared: bool = False
    """Whether it matters that two places hold the same object: a list, but not a tuple."""


class CodecTable:
    """All codecs, by class and by tag; `protocols` are tried in order where no class matches.

    A subclass of a class in the table has the codec `subclass`.
    """

    def __init__(self) -> None:
        self._by_class: dict[type, Codec] = {}
        self._by_tag: dict[str, Codec] = {}
        self.protocols: list[tuple[Callable[[Any], bool], Codec]] = []

    def add(self, *codecs: Codec) -> None:
        """Add codecs. A class has one codec only."""
        for codec in codecs:
            assert codec.tag not in self._by_tag
            self._by_tag[codec.tag] = codec
            for cls in codec.classes:
                assert cls not in self._by_class
                self._by_class[cls] = codec

    def of(self, value: object) -> Codec | None:
        """The codec of a value, or None."""
        codec = self._by_class.get(type(value))
        if codec is None:
            codec = next((codec for fits, codec in self.protocols if fits(value)), None)
        return codec

    def base(self, cls: type) -> tuple[type, Codec] | None:
        """The nearest class of which `cls` is a subclass, and its codec."""
        for base in cls.__mro__[1:]:
            if base in self._by_class:
                return base, self._by_class[base]
        return None

    def tagged(self, tag: str) -> Codec:
        """The codec with a tag. Raises MismatchError for an unknown one."""
        if tag not in self._by_tag:
            raise MismatchError(
                f"The state in the region holds a {tag}, which this release does not know",
                "Use the release of plinius that made it",
            )
        return self._by_tag[tag]


CODECS = CodecTable()


class Encoder:
    """Encodes one live state.

    `tensors` are those found, by name; nothing is copied. `blueprints` are of the objects that only
    the program can build, by path. `stored` are the bytes of those tensors whose encoding comes
    from the cache. `uncounted` are the names of tensors whose writes torch does not count: arrays.
    `devices` are those on which tensors are, other than the CPU.
    """

    def __init__(
        self, classes: Classes, *, register: bool = False, cache: EncodingCache | None = None
    ) -> None:
        """With `register`, the classes of the values are added to `classes`.

        With a `cache`, a part of the JSON can be JsonText.
        """
        self.classes, self.register, self._cache = classes, register, cache
        self.tensors: dict[str, torch.Tensor] = {}
        self.stored: dict[str, Items] = {}
        self.uncounted: set[str] = set()
        self.devices: set[torch.device] = set()
        self.blueprints: dict[str, Blueprint] = {}
        self.names_at: dict[int, tuple[str, ...]] = {}  # by address
        self.seen: dict[int, tuple[str, object]] = {}  # by id; kept alive, or ids would repeat
        self._within: set[int] = set()
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
        codec = CODECS.of(value) or (CODECS.tagged("subclass") if CODECS.base(cls) else None)
        if codec is None:
            loader = _USE_OUR_LOADER if issubclass(cls, DataLoader) else None
            raise refused(path, f"is a {cls.__qualname__}", loader)
        if codec.shared and not (self.in_key and codec.tag == "subclass"):
            return self._shared(codec, value, path)
        return self._tagged(codec, value, path)

    def key(self, value: Any, path: str) -> Json:
        """The key of a dict, or an item of a set, as JSON: no tensor, no list, dict or set."""
        if type(value) is str and len(value) < 1024:
            return value
        before, self.in_key = self.in_key, True
        try:
            return self.node(value, path)
        finally:
            self.in_key = before

    def tensor(self, tensor: torch.Tensor, path: str) -> str:
        """The name under which a tensor is stored.

        Raises StateError if it is not dense, or neither on the CPU nor on a device of `SUPPORTED`.
        """
        if self.in_key:
            raise refused(path, "has a tensor as a key")
        known = tensor.is_cpu or tensor.device.type in SUPPORTED
        if tensor.layout is not torch.strided or not known or tensor.is_nested:
            kind = "nested" if tensor.is_nested else tensor.layout
            todo = "Give plain tensors on the CPU: a dense copy, or the parts it is made of"
            raise refused(path, f"is a {kind} tensor on {tensor.device}", todo)
        if tensor.dtype not in NAMES:
            way = "Give its int_repr(), scale and zero point" if tensor.is_quantized else None
            raise refused(path, f"is a tensor of {tensor.dtype}", way)
        if not has_storage(tensor):
            raise refused(path, "is a tensor whose storage was freed (resize_(0))")
        if tensor.numel():  # empty tensors may all have one address
            address = tensor.data_ptr()
            others = self.names_at.get(address, ())
            for name in others:
                if place_of(self.tensors[name]) == place_of(tensor):
                    return name
        while path in self.tensors:  # one dict may have a key 1 and a key "1"
            path += "~"
        if tensor.numel():
            self.names_at[address] = (*others, path)
        self.tensors[path] = tensor
        if not tensor.is_cpu:
            self.devices.add(tensor.device)
        return path

    def blueprint(self, path: str, blueprint: Blueprint) -> None:
        """Add the blueprint of an object that only the program can build."""
        if path in self.blueprints:
            raise refused(path, "has a name that another object in the state has too")
        self.blueprints[path] = blueprint

    def separately(self, encode: Callable[[], _T]) -> _T:
        """Encode what is loaded as a whole: `same` then points only to what is within it."""
        before, self.seen = self.seen, {}
        try:
            return encode()
        finally:
            self.seen = before

    def cached(
        self, path: str, structure: Callable[[], Structure | None], encode: Encode
    ) -> tuple[Json, Description]:
        """What `encode` returns; from the cache, if there is one and the structure is unchanged."""
        if self._cache is None or self.in_key:
            return encode()
        return self._cache.encode(self, path, structure, encode)

    def cached_values(
        self, path: str, same: Callable[[object], bool], encode: EncodeValues
    ) -> Json:
        """The JSON that `encode` returns, or that of the values before if `same` says so."""
        if self._cache is None or self.in_key:
            return encode()[1]
        return self._cache.encode_values(self, path, same, encode)

    def _shared(self, codec: Codec, value: Any, path: str) -> Json:
        if self.in_key:
            raise refused(path, f"has a {type(value).__qualname__} as a key")
        if id(value) in self._within:
            raise refused(path, "contains itself")
        seen = self.seen.get(id(value))
        if seen is not None:
            return {"same": seen[0]}
        self.seen[id(value)] = path, value
        self._within.add(id(value))
        try:
            return self._tagged(codec, value, path)
        finally:
            self._within.discard(id(value))

    def deeper(self, path: str, encode: Callable[[], _T]) -> _T:
        """Encode one level further down. Raises StateError where those are too many."""
        if self._depth >= MAX_DEPTH:
            raise refused(path, "is nested too deeply")
        self._depth += 1
        try:
            return encode()
        finally:
            self._depth -= 1

    def _tagged(self, codec: Codec, value: Any, path: str) -> Json:
        payload = self.deeper(path, partial(self._payload, codec, value, path))
        return payload if codec.tag in ("list", "str") else {codec.tag: payload}

    def _payload(self, codec: Codec, value: Any, path: str) -> Json:
        if type(value) in (dict, list, tuple) and len(value) >= LEAST_ITEMS:
            structure = partial(structure_of_tree, value)
            return self.cached(path, structure, lambda: (codec.encode(self, value, path), ()))[0]
        return codec.encode(self, value, path)


class Decoder:
    """Decodes a stored state, into the live objects wherever that is possible.

    `tensors` hold the stored items; those named in `own` are the live objects' own tensors.
    `blueprints` are those of the live state. `changed` are the live arrays that were written to.
    """

    def __init__(
        self,
        tensors: Mapping[str, torch.Tensor],
        classes: Classes,
        own: set[str] | None = None,
        blueprints: Mapping[str, Blueprint] | None = None,
    ) -> None:
        self.tensors, self.classes = tensors, classes
        self.own, self.blueprints = own or set(), blueprints or {}
        self.changed: list[np.ndarray[Any, Any]] = []
        self._made: dict[str, Any] = {}

    def value(self, node: Json, path: str, live: Any = ABSENT) -> Any:
        """The value of a node: `live` itself, changed in place if possible; or a new value."""
        if isinstance(node, list):
            codec, payload = CODECS.tagged("list"), node
        elif isinstance(node, str) or not isinstance(node, dict):
            return node
        else:
            ((tag, payload),) = node.items()  # type: ignore[assignment]
            if tag == "same":
                return self._made[str(payload)]
            codec = CODECS.tagged(tag)
        value = codec.decode(self, payload, live, path)
        return self.remember(path, value) if codec.shared else value

    def holds(self, array: np.ndarray[Any, Any]) -> bool:
        """Whether an array shows memory that a tensor was restored in."""
        low, high = np.lib.array_utils.byte_bounds(array)
        return any(
            (start := (it := self.tensors[name]).data_ptr()) < high and low < start + it.nbytes
            for name in self.own
        )

    def root(self, node: Json, path: str, live: Any) -> Any:
        """The value of a whole tree. Raises MismatchError if it is not one of this format."""
        try:
            return self.value(node, path, live)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise MismatchError(
                f"The state in the region cannot be decoded: {type(error).__name__}: {error}",
                "Use the release of plinius and the versions of its libraries that made it",
            ) from error

    def remember(self, path: str, value: Any) -> Any:
        """Note a container before its items are decoded: `same` may point to it."""
        self._made[path] = value
        return value

    def separately(self, decode: Callable[[], Any]) -> Any:
        """Decode what was encoded by `Encoder.separately`."""
        before, self._made = self._made, {}
        try:
            return decode()
        finally:
            self._made = before


def pointer(path: str, key: object) -> str:
    """The JSON pointer (RFC 6901), without its first slash, of `key` below `path`."""
    escaped = str(key)
    if "~" in escaped or "/" in escaped:
        escaped = escaped.replace("~", "~0").replace("/", "~1")
    return f"{path}/{escaped}" if path else escaped


def refused(path: str, what: str, todo: str | None = None) -> StateError:
    """The error for a value that cannot be mirrored; `todo` says what to do instead."""
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
