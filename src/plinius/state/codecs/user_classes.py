"""Codecs of values whose class is the user's: enums, dataclasses, subclasses of plain classes.

Stored are the class by name, the value of the plain class, and the attributes.
"""

import dataclasses
import enum
from collections import OrderedDict, deque
from typing import Any

from plinius.errors import MismatchError
from plinius.jsonvalue import Json
from plinius.state.class_lookup import name_of
from plinius.state.codec import ABSENT, CODECS, Codec, Decoder, Encoder, pointer, refused
from plinius.state.codecs.containers import decode_items, fill, pairs

_BUILT_BY_NEW = (
    int,
    float,
    complex,
    str,
    bytes,
    tuple,
    frozenset,
)  # by __new__, from the whole value
_BASES: dict[str, tuple[type, ...]] = {
    "int": (int,), "float": (float,), "complex": (complex,), "str": (str,), "bytes": (bytes,),
    "tuple": (tuple,), "frozenset": (frozenset,), "list": (list,), "dict": (dict,),
    "ordered": (OrderedDict,), "set": (set,), "deque": (deque,),
}  # fmt: skip


def _encode_enum(encoder: Encoder, value: enum.Enum, path: str) -> Json:
    _require_class(encoder, type(value), path)
    by_name = value.name if value.name in type(value).__members__ else None
    return [name_of(type(value)), by_name, None if by_name else encoder.node(value.value, path)]


def _decode_enum(decoder: Decoder, payload: Any, live: Any, path: str) -> Any:
    cls, by_name, value = payload
    found: Any = decoder.classes.find(cls, enum.Enum, path)
    try:
        return found[by_name] if by_name is not None else found(decoder.value(value, path))
    except (KeyError, ValueError):
        raise MismatchError(
            f"{path} was {by_name or value} of {cls.replace(':', '.')}, which has no such member",
            "Use the version of the program that was mirrored",
        ) from None


def _encode_subclass(encoder: Encoder, value: Any, path: str) -> Json:
    cls = type(value)
    _require_class(encoder, cls, path)
    if hasattr(cls, "n_sequence_fields"):
        raise refused(path, f"is a {cls.__qualname__}", "Give a tuple of its items")
    found = CODECS.base(cls)
    inner: Json = None
    if found is not None:
        base, codec = found
        if base not in _BUILT_BY_NEW and codec.tag not in (
            "list",
            "dict",
            "ordered",
            "set",
            "deque",
        ):
            raise refused(path, f"is a {cls.__qualname__}, a subclass of {base.__qualname__}")
        inner = {codec.tag: codec.encode(encoder, value, path)}
    attributes = _attributes(value)
    if attributes is value:
        return [name_of(cls), inner, "itself"]
    return [name_of(cls), inner, pairs(encoder, attributes, pointer(path, "") + "~attributes")]


def _attributes(value: Any) -> dict[str, Any]:
    found = getattr(value, "__dict__", {})
    if found is value:
        return found  # type: ignore[no-any-return]
    slots = {
        name: getattr(value, name)
        for cls in type(value).__mro__
        for name in _slot_names(cls)
        if hasattr(value, name)
    }
    return {**found, **slots}


def _slot_names(cls: type) -> list[str]:
    slots = cls.__dict__.get("__slots__", ())
    names = [slots] if isinstance(slots, str) else [*slots]
    return [name for name in names if name not in ("__dict__", "__weakref__")]


def _decode_subclass(decoder: Decoder, payload: Any, live: Any, path: str) -> Any:
    name, inner, attributes = payload
    cls = decoder.classes.find(name, object, path)
    new = _instance(decoder, cls, inner, live if type(live) is cls else ABSENT, path)
    if attributes == "itself":
        new.__dict__ = new
        return new
    where = pointer(path, "") + "~attributes"
    old = _attributes(new)
    wanted = [(key, decoder.value(node, pointer(where, key), old.get(key, ABSENT)))
              for key, node in attributes]  # fmt: skip
    for key in old.keys() - {key for key, _ in wanted}:
        object.__delattr__(new, key)
    for key, item in wanted:
        object.__setattr__(new, key, item)
    return new


def _instance(decoder: Decoder, cls: Any, inner: Any, live: Any, path: str) -> Any:
    if inner is None:
        return decoder.remember(path, object.__new__(cls) if live is ABSENT else live)
    ((tag, payload),) = inner.items()
    base = next(base for base in cls.__mro__[1:] if base in _BASES.get(tag, ()))
    if base in _BUILT_BY_NEW:
        value = CODECS.tagged(tag).decode(decoder, payload, live, path)
        return base.__new__(cls, value)
    new = cls.__new__(cls) if live is ABSENT else live
    if tag in ("dict", "ordered"):
        return fill(decoder, payload, new, path, base)
    decoder.remember(path, new)
    if tag == "set":
        items: Any = [decoder.value(node, path) for node in payload]
        set.clear(new)
        set.update(new, items)
    elif tag == "deque":
        items = decode_items(decoder, payload[1], new, path)
        deque.__init__(new, items, payload[0])
    else:
        new[:] = decode_items(decoder, payload, new, path)
    return new


def _is_dataclass(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _require_class(encoder: Encoder, cls: type, path: str) -> None:
    if encoder.register:
        encoder.classes.register(cls)
    elif not encoder.classes.has(cls):
        raise refused(
            path,
            f"is a {cls.__qualname__}, a class that a new process cannot find",
            "Define it at the top level of a module, or have an object of it in the state when "
            "the mirror is opened",
        )


_SUBCLASS = Codec("subclass", (), _encode_subclass, _decode_subclass, shared=True)
_ENUM = Codec("enum", (), _encode_enum, _decode_enum)
DATACLASS_PROTOCOL = (_is_dataclass, _SUBCLASS)

CODECS.add(_SUBCLASS, _ENUM)
CODECS.protocols.append((lambda value: isinstance(value, enum.Enum), _ENUM))
