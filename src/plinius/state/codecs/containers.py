"""Codecs of containers: lists, tuples, dicts, sets and their subclasses in Python's library."""

from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from plinius.errors import MismatchError
from plinius.jsonvalue import Json, to_json
from plinius.state.codec import ABSENT, CODECS, Blueprint, Codec, Decoder, Encoder, pointer

_FACTORIES: dict[str, type] = {
    cls.__name__: cls for cls in (int, float, complex, str, bytes, list, dict, set, tuple, bool)
}


def _items(encoder: Encoder, value: Iterable[Any], path: str) -> list[Json]:
    return [encoder.node(item, pointer(path, i)) for i, item in enumerate(value)]


def decode_items(decoder: Decoder, nodes: list[Any], live: Any, path: str) -> list[Any]:
    """The values of nodes; items of `live` at the same index are changed in place."""
    old = list(live) if live is not ABSENT else []
    return [
        decoder.value(node, pointer(path, i), old[i] if i < len(old) else ABSENT)
        for i, node in enumerate(nodes)
    ]


def _decode_list(decoder: Decoder, payload: Any, live: Any, path: str) -> list[Any]:
    new = decoder.remember(path, live if type(live) is list else [])
    items = decode_items(decoder, payload, new, path)
    new[:] = items
    return new  # type: ignore[no-any-return]


def _decode_tuple(decoder: Decoder, payload: Any, live: Any, path: str) -> tuple[Any, ...]:
    old = live if isinstance(live, tuple) else ABSENT
    return tuple(decode_items(decoder, payload, old, path))


def _encode_deque(encoder: Encoder, value: deque[Any], path: str) -> Json:
    return [value.maxlen, _items(encoder, value, path)]


def _decode_deque(decoder: Decoder, payload: Any, live: Any, path: str) -> deque[Any]:
    most, nodes = payload
    same = type(live) is deque and live.maxlen == most
    new = decoder.remember(path, live if same else deque(maxlen=most))
    items = decode_items(decoder, nodes, new, path)
    new.clear()
    new.extend(items)
    return new  # type: ignore[no-any-return]


def _encode_set(encoder: Encoder, value: Iterable[Any], path: str) -> Json:
    return sorted((encoder.key(item, path) for item in value), key=to_json)


def _decode_set(decoder: Decoder, payload: Any, live: Any, path: str) -> set[Any]:
    new: set[Any] = decoder.remember(path, live if type(live) is set else set())
    items = [decoder.value(node, path) for node in payload]
    new.clear()
    new.update(items)
    return new


def pairs(encoder: Encoder, value: dict[Any, Any], path: str) -> list[Json]:
    """The items of a dict as pairs of nodes, in its order."""
    return [
        [encoder.key(key, path), encoder.node(item, name)]
        for (key, item), name in zip(value.items(), _names(path, value), strict=True)
    ]


def _names(path: str, keys: Iterable[Any]) -> Iterator[str]:
    """The names of a dict's items: a key 1 and a key "1" have two."""
    taken = set()
    for key in keys:
        name = pointer(path, key)
        while name in taken:
            name += "~"
        taken.add(name)
        yield name


def fill(
    decoder: Decoder,
    payload: Any,
    new: dict[Any, Any],
    path: str,
    cls: type[dict[Any, Any]],
    make: Callable[[], Any] | None = None,
) -> Any:
    """Give a dict the items of pairs, in their order, by the methods of `cls`.

    `make` makes the live value of an item that is not there yet and needs one.
    """
    decoder.remember(path, new)
    items = []
    keys = [decoder.value(encoded, path) for encoded, _ in payload]
    for (_, node), key, name in zip(payload, keys, _names(path, keys), strict=True):
        live = dict.get(new, key, ABSENT)
        if live is ABSENT and make and isinstance(node, dict) and "default" in node:
            live = make()
        items.append((key, decoder.value(node, name, live)))
    if list(new) != keys or any(type(key) is not str for key in keys):
        cls.clear(new)  # so that its order comes back as well, and 1 does not stay for True
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
        name = None if factory is None else factory.__name__
        return [name, pairs(encoder, value, path)]
    encoder.blueprint(
        path, Blueprint("defaultdict", (), None, value)
    )  # only the program can make its factory
    return ["live", _encode_nested(encoder, value, path)]


def _encode_nested(encoder: Encoder, value: defaultdict[Any, Any], path: str) -> Json:
    """The items of a defaultdict whose factory only the program can make, nested ones included."""
    found: list[Json] = []
    for key, item in value.items():
        name = pointer(path, key)
        made_here = type(item) is defaultdict and item.default_factory is not None
        if made_here and not _has_name(item.default_factory):
            inner = partial(_encode_nested, encoder, item, name)
            node: Json = {"default": ["live", encoder.deeper(name, inner)]}
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
                f"{path} was a defaultdict with a factory of the program, and is not one here",
                "Put that defaultdict into the state before mirror_in",
            )
        return fill(decoder, items, live, path, dict, live.default_factory)
    wanted = None if factory is None else _FACTORIES[factory]
    same = type(live) is defaultdict and live.default_factory is wanted
    return fill(decoder, items, live if same else defaultdict(wanted), path, dict)


CODECS.add(
    Codec("list", (list,), _items, _decode_list, shared=True),
    Codec("tuple", (tuple,), _items, _decode_tuple),
    Codec("dict", (dict,), pairs, _decode_dict, shared=True),
    Codec("ordered", (OrderedDict,), pairs, _decode_ordered, shared=True),
    Codec("counter", (Counter,), pairs, _decode_counter, shared=True),
    Codec("default", (defaultdict,), _encode_default, _decode_default, shared=True),
    Codec("set", (set,), _encode_set, _decode_set, shared=True),
    Codec("frozenset", (frozenset,), _encode_set,
         lambda d, payload, live, p: frozenset(d.value(node, p) for node in payload)),
    Codec("deque", (deque,), _encode_deque, _decode_deque, shared=True),
)  # fmt: skip
