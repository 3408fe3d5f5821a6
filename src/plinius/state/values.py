"""The kinds of plain values: numbers, text, times, paths and containers of Python.

A large text or run of bytes becomes a tensor of bytes, and a float that JSON has no word for the
hex digits of its 8 bytes, so that every bit comes back.
"""

import dataclasses
import datetime
import enum
import pathlib
import struct
import zoneinfo
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import torch

from plinius.errors import MismatchError
from plinius.snapshot import Json, to_json
from plinius.state.classes import name_of
from plinius.state.codec import (
    ABSENT,
    KINDS,
    Decoder,
    Encoder,
    Fact,
    Kind,
    pointer,
    refused,
)

LARGE_BYTES = 1024
"""Bytes and texts above this are tensors, not part of the JSON."""

_FACTORIES: dict[str, type] = {
    cls.__name__: cls for cls in (int, float, complex, str, bytes, list, dict, set, tuple, bool)
}
_PATHS = {
    cls.__name__: cls
    for cls in (
        pathlib.PosixPath, pathlib.PurePosixPath, pathlib.WindowsPath, pathlib.PureWindowsPath
    )
}  # fmt: skip


def _kept(encoder: Encoder, data: bytes, path: str) -> Json:
    if len(data) <= LARGE_BYTES or encoder.in_key:
        return data.hex()
    tensor = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    return {"tensor": encoder.tensor(tensor, path)}


def _bytes(decoder: Decoder, payload: Any, path: str) -> bytes:
    if isinstance(payload, str):
        return bytes.fromhex(payload)
    return bytes(decoder.value(payload, path).numpy().data)


def _encode_text(encoder: Encoder, value: str, path: str) -> Json:
    if len(value) <= LARGE_BYTES or encoder.in_key:
        return str.__str__(value)
    return {"text": _kept(encoder, value.encode("utf-8", "surrogatepass"), path)}


def _decode_text(decoder: Decoder, payload: Any, live: Any, path: str) -> str:
    return _bytes(decoder, payload, path).decode("utf-8", "surrogatepass")


def _encode_float(encoder: Encoder, value: float, path: str) -> Json:
    return struct.pack(">d", value).hex()


def _decode_float(decoder: Decoder, payload: Any, live: Any, path: str) -> float:
    (value,) = struct.unpack(">d", bytes.fromhex(payload))
    return float(value)


def _plain_float(encoder: Encoder, value: float, path: str) -> Json:
    return encoder.node(float(value), path)


def _encode_bytearray(encoder: Encoder, value: bytearray, path: str) -> Json:
    return _kept(encoder, bytes(value), path)


def _decode_bytearray(decoder: Decoder, payload: Any, live: Any, path: str) -> bytearray:
    new = live if type(live) is bytearray else bytearray()
    new[:] = _bytes(decoder, payload, path)
    return decoder.made(path, new)  # type: ignore[no-any-return]


def _items(encoder: Encoder, value: Iterable[Any], path: str) -> list[Json]:
    return [encoder.node(item, pointer(path, i)) for i, item in enumerate(value)]


def _decode_items(decoder: Decoder, nodes: list[Any], live: Any, path: str) -> list[Any]:
    old = list(live) if live is not ABSENT else []
    return [
        decoder.value(node, pointer(path, i), old[i] if i < len(old) else ABSENT)
        for i, node in enumerate(nodes)
    ]


def _decode_list(decoder: Decoder, payload: Any, live: Any, path: str) -> list[Any]:
    new = decoder.made(path, live if type(live) is list else [])
    items = _decode_items(decoder, payload, new, path)
    new[:] = items
    return new  # type: ignore[no-any-return]


def _decode_tuple(decoder: Decoder, payload: Any, live: Any, path: str) -> tuple[Any, ...]:
    old = live if isinstance(live, tuple) else ABSENT
    return tuple(_decode_items(decoder, payload, old, path))


def _encode_deque(encoder: Encoder, value: deque[Any], path: str) -> Json:
    return [value.maxlen, _items(encoder, value, path)]


def _decode_deque(decoder: Decoder, payload: Any, live: Any, path: str) -> deque[Any]:
    most, nodes = payload
    same = type(live) is deque and live.maxlen == most
    new = decoder.made(path, live if same else deque(maxlen=most))
    items = _decode_items(decoder, nodes, new, path)
    new.clear()
    new.extend(items)
    return new  # type: ignore[no-any-return]


def _encode_set(encoder: Encoder, value: Iterable[Any], path: str) -> Json:
    return sorted((encoder.key(item, path) for item in value), key=to_json)


def _decode_set(decoder: Decoder, payload: Any, live: Any, path: str) -> set[Any]:
    new: set[Any] = decoder.made(path, live if type(live) is set else set())
    items = [decoder.value(node, path) for node in payload]
    new.clear()
    new.update(items)
    return new


def pairs(encoder: Encoder, value: dict[Any, Any], path: str) -> list[Json]:
    """The items of a dict as pairs of nodes, in its order."""
    return [
        [encoder.key(key, path), encoder.node(item, pointer(path, key))]
        for key, item in value.items()
    ]


def fill(
    decoder: Decoder,
    payload: Any,
    new: dict[Any, Any],
    path: str,
    cls: type[dict[Any, Any]],
    make: Callable[[], Any] | None = None,
) -> Any:
    """Give a dict the items of pairs, in their order; `cls` is whose methods store them.

    `make` gives the live value of an item that is not there yet and needs one.
    """
    decoder.made(path, new)
    items = []
    for encoded, node in payload:
        key = decoder.value(encoded, path)
        live = dict.get(new, key, ABSENT)
        if live is ABSENT and make and isinstance(node, dict) and "default" in node:
            live = make()
        items.append((key, decoder.value(node, pointer(path, key), live)))
    if list(new) != [key for key, _ in items]:
        cls.clear(new)  # so that its order comes back as well
    for key, item in items:
        cls.__setitem__(new, key, item)
    return new


def _decode_dict(decoder: Decoder, payload: Any, live: Any, path: str) -> Any:
    return fill(decoder, payload, live if type(live) is dict else {}, path, dict)


def _decode_ordered(decoder: Decoder, payload: Any, live: Any, path: str) -> Any:
    new = live if type(live) is OrderedDict else OrderedDict()
    return fill(decoder, payload, new, path, OrderedDict)


def _decode_counter(decoder: Decoder, payload: Any, live: Any, path: str) -> Any:
    return fill(decoder, payload, live if type(live) is Counter else Counter(), path, dict)


def _encode_default(encoder: Encoder, value: defaultdict[Any, Any], path: str) -> Json:
    factory = value.default_factory
    if factory is None or _has_name(factory):
        name = None if factory is None else factory.__name__  # type: ignore[attr-defined]
        return [name, pairs(encoder, value, path)]
    encoder.fact(path, Fact("defaultdict", (), None, value))  # only the program has its factory
    return ["live", _encode_nested(encoder, value, path)]


def _encode_nested(encoder: Encoder, value: defaultdict[Any, Any], path: str) -> Json:
    """The items of one with a factory of its own, which makes those within it as well."""
    found: list[Json] = []
    for key, item in value.items():
        name = pointer(path, key)
        if type(item) is defaultdict and item.default_factory and not _has_name(item.default_factory):
            node: Json = {"default": ["live", _encode_nested(encoder, item, name)]}
        else:
            node = encoder.node(item, name)
        found.append([encoder.key(key, path), node])
    return found


def _has_name(factory: Any) -> bool:
    return _FACTORIES.get(getattr(factory, "__name__", "")) is factory


def _decode_default(decoder: Decoder, payload: Any, live: Any, path: str) -> Any:
    factory, items = payload
    if factory == "live":
        if type(live) is not defaultdict:
            raise MismatchError(
                f"{path} was a defaultdict with a factory of its own, and is none here",
                "Put that defaultdict into the state before mirror_in",
            )
        return fill(decoder, items, live, path, dict, live.default_factory)
    wanted = None if factory is None else _FACTORIES[factory]
    same = type(live) is defaultdict and live.default_factory is wanted
    return fill(decoder, items, live if same else defaultdict(wanted), path, dict)


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
            "Use the version of the program that mirrored it",
        ) from None


def _encode_time(encoder: Encoder, value: Any, path: str) -> Json:
    zone = getattr(value, "tzinfo", None)
    if zone is None:
        shown: Json = None
    elif type(zone) is zoneinfo.ZoneInfo and zone.key:
        shown = zone.key
    elif type(zone) is datetime.timezone:
        shown = zone.utcoffset(None).total_seconds()
    else:
        raise refused(path, f"has a time zone of class {type(zone).__qualname__}")
    plain = value.replace(tzinfo=None) if zone is not None else value
    return [plain.isoformat(), shown, getattr(value, "fold", 0)]


def _decode_time(cls: Any) -> Any:
    def decode(decoder: Decoder, payload: Any, live: Any, path: str) -> Any:
        text, zone, fold = payload
        value = cls.fromisoformat(text)
        if cls is datetime.date:
            return value
        if isinstance(zone, str):
            zone = zoneinfo.ZoneInfo(zone)
        elif zone is not None:
            zone = datetime.timezone(datetime.timedelta(seconds=zone))
        return value.replace(tzinfo=zone, fold=fold)

    return decode


def _require_class(encoder: Encoder, cls: type, path: str) -> None:
    if encoder.learn:
        encoder.classes.meet(cls)
    elif not encoder.classes.has(cls):
        raise refused(
            path,
            f"is a {cls.__qualname__}, a class that a new process could not find",
            "Define it at the top level of a module, or have one of it in the state when the "
            "mirror is opened",
        )


# Subclasses of the classes above, and dataclasses: their class, what the base class holds, and
# their attributes.

_MADE_OF = (int, float, complex, str, bytes, tuple, frozenset)  # by __new__, from the whole value


def _encode_subclass(encoder: Encoder, value: Any, path: str) -> Json:
    cls = type(value)
    _require_class(encoder, cls, path)
    if hasattr(cls, "n_sequence_fields"):
        raise refused(path, f"is a {cls.__qualname__}", "Give a tuple of its items")
    found = KINDS.base(cls)
    inner: Json = None
    if found is not None:
        base, kind = found
        if base not in _MADE_OF and kind.tag not in ("list", "dict", "ordered", "set", "deque"):
            raise refused(path, f"is a {cls.__qualname__}, a subclass of {base.__qualname__}")
        inner = {kind.tag: kind.encode(encoder, value, path)}
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
        return decoder.made(path, object.__new__(cls) if live is ABSENT else live)
    ((tag, payload),) = inner.items()
    base = next(base for base in cls.__mro__[1:] if base in _BASES.get(tag, ()))
    if base in _MADE_OF:
        value = KINDS.tagged(tag).decode(decoder, payload, live, path)
        return base.__new__(cls, value)
    new = cls.__new__(cls) if live is ABSENT else live
    if tag in ("dict", "ordered"):
        return fill(decoder, payload, new, path, base)
    decoder.made(path, new)
    if tag == "set":
        items: Any = [decoder.value(node, path) for node in payload]
        set.clear(new)
        set.update(new, items)
    elif tag == "deque":
        items = _decode_items(decoder, payload[1], new, path)
        deque.__init__(new, items, payload[0])
    else:
        new[:] = _decode_items(decoder, payload, new, path)
    return new


def _is_dataclass(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _decode_range(decoder: Decoder, payload: Any, live: Any, path: str) -> range:
    return range(*(decoder.value(node, path) for node in payload))


_SUBCLASS = Kind("subclass", (), _encode_subclass, _decode_subclass, shared=True)
_ENUM = Kind("enum", (), _encode_enum, _decode_enum)

KINDS.add(
    _SUBCLASS,
    _ENUM,
    Kind("int", (int,), lambda e, v, p: hex(v), lambda d, payload, live, p: int(payload, 16)),
    Kind("float", (float,), _encode_float, _decode_float),
    Kind("complex", (complex,),
         lambda e, v, p: [e.node(v.real, p), e.node(v.imag, p)],
         lambda d, payload, live, p: complex(*(d.value(node, p) for node in payload))),
    Kind("str", (str,), _encode_text, lambda d, payload, live, p: d.value(payload, p)),
    Kind("text", (), _encode_text, _decode_text),
    Kind("bytes", (bytes,), _kept, lambda d, payload, live, p: _bytes(d, payload, p)),
    Kind("bytearray", (bytearray,), _encode_bytearray, _decode_bytearray, shared=True),
    Kind("list", (list,), _items, _decode_list, shared=True),
    Kind("tuple", (tuple,), _items, _decode_tuple),
    Kind("size", (torch.Size,), lambda e, v, p: list(v), lambda d, v, live, p: torch.Size(v)),
    Kind("dict", (dict,), pairs, _decode_dict, shared=True),
    Kind("ordered", (OrderedDict,), pairs, _decode_ordered, shared=True),
    Kind("counter", (Counter,), pairs, _decode_counter, shared=True),
    Kind("default", (defaultdict,), _encode_default, _decode_default, shared=True),
    Kind("set", (set,), _encode_set, _decode_set, shared=True),
    Kind("frozenset", (frozenset,), _encode_set,
         lambda d, payload, live, p: frozenset(d.value(node, p) for node in payload)),
    Kind("deque", (deque,), _encode_deque, _decode_deque, shared=True),
    Kind("range", (range,),
         lambda e, v, p: [e.node(n, p) for n in (v.start, v.stop, v.step)], _decode_range),
    Kind("slice", (slice,),
         lambda e, v, p: [e.node(n, p) for n in (v.start, v.stop, v.step)],
         lambda d, payload, live, p: slice(*(d.value(node, p) for node in payload))),
    Kind("decimal", (Decimal,), lambda e, v, p: str(v), lambda d, v, live, p: Decimal(v)),
    Kind("fraction", (Fraction,), lambda e, v, p: str(v), lambda d, v, live, p: Fraction(v)),
    Kind("datetime", (datetime.datetime,), _encode_time, _decode_time(datetime.datetime)),
    Kind("date", (datetime.date,), _encode_time, _decode_time(datetime.date)),
    Kind("time", (datetime.time,), _encode_time, _decode_time(datetime.time)),
    Kind("timedelta", (datetime.timedelta,),
         lambda e, v, p: [v.days, v.seconds, v.microseconds],
         lambda d, v, live, p: datetime.timedelta(*v)),
    Kind("path", (*_PATHS.values(),),
         lambda e, v, p: [type(v).__name__, e.node(str(v), p)],
         lambda d, v, live, p: _PATHS[v[0]](d.value(v[1], p))),
    Kind("dtype", (torch.dtype,),
         lambda e, v, p: str(v).removeprefix("torch."), lambda d, v, live, p: getattr(torch, v)),
    Kind("device", (torch.device,),
         lambda e, v, p: str(v), lambda d, v, live, p: torch.device(v)),
)  # fmt: skip
KINDS.protocols += [
    (lambda value: isinstance(value, enum.Enum), _ENUM),
]
DATACLASS = (_is_dataclass, _SUBCLASS)

_BASES: dict[str, tuple[type, ...]] = {
    "int": (int,), "float": (float,), "complex": (complex,), "str": (str,), "bytes": (bytes,),
    "tuple": (tuple,), "frozenset": (frozenset,), "list": (list,), "dict": (dict,),
    "ordered": (OrderedDict,), "set": (set,), "deque": (deque,),
}  # fmt: skip
