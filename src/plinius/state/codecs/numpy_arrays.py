"""Codecs of NumPy arrays, scalars and dtypes."""

from typing import Any

import numpy as np

from plinius.errors import MismatchError
from plinius.jsonvalue import Json
from plinius.state.class_lookup import name_of
from plinius.state.codec import ABSENT, CODECS, Blueprint, Codec, Decoder, Encoder, refused
from plinius.state.tensor_memory import Memory, array_order, bytes_of_array


def _encode_array(encoder: Encoder, value: np.ndarray[Any, Any], path: str) -> Json:
    _require_items(value.dtype, path, "an array")
    cls: Json = None
    if type(value) is np.memmap:
        cls = "memmap"
        encoder.blueprint(path, Blueprint(f"memory-mapped array of {show(value)}", (), None, value))
    elif type(value) is not np.ndarray:
        if type(value) not in (np.matrix, np.recarray):
            raise refused(path, f"is an array of class {type(value).__qualname__}")
        cls = name_of(type(value))
    node: Json = None
    if value.size:
        name = encoder.tensor(bytes_of_array(value), path)
        encoder.uncounted.add(name)
        node = {"tensor": name}
    return [node, _descr(value.dtype), list(value.shape), [*array_order(value)], cls]


def _decode_array(decoder: Decoder, payload: Any, live: Any, path: str) -> np.ndarray[Any, Any]:
    node, descr, shape, order, cls = payload
    dtype = _dtype(descr)
    if node is None:
        found: np.ndarray[Any, Any] = np.empty(shape, dtype)
    else:
        raw = np.frombuffer(Memory(decoder.value(node, path)).data, np.uint8)
        laid = raw.view(dtype).reshape([shape[d] for d in order])
        found = laid.transpose(np.argsort(order))
    if cls == "memmap" and live is ABSENT and path in decoder.blueprints:
        live = decoder.blueprints[path].live  # of an object that is to load its state
    if isinstance(live, np.ndarray) and type(live) is not np.ma.MaskedArray:
        fits = live.dtype == dtype and live.shape == tuple(shape)
        if fits and (cls is None or isinstance(live, np.memmap) == (cls == "memmap")):
            if _same_memory(live, found) or live.tobytes() == found.tobytes():
                return live
            if live.flags.writeable and not decoder.holds(live):
                decoder.changed.append(live)
                live[...] = found
                return live
    if cls == "memmap":
        raise MismatchError(
            f"{path} was a memory-mapped array of {show(found)} with other items",
            "Map the file before mirror_in, in the same shape, to be written to",
        )
    if cls is not None:
        found = found.view(np.matrix if cls.endswith(":matrix") else np.recarray)
    return found


def show(array: np.ndarray[Any, Any]) -> str:
    """The dtype and shape of an array for people."""
    return f"{array.dtype}{list(array.shape)}"


def _same_memory(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> bool:
    return (
        one.__array_interface__["data"] == other.__array_interface__["data"]
        and one.strides == other.strides
    )


def _encode_masked(encoder: Encoder, value: Any, path: str) -> Json:
    mask: Json = None
    if value.mask is not np.ma.nomask:
        mask = encoder.node(np.asarray(value.mask), path + "/~mask")
    fill = encoder.node(np.asarray(value.fill_value), path + "/~fill")
    return [_encode_array(encoder, np.asarray(value.data), path), mask, fill, value.hardmask]


def _decode_masked(decoder: Decoder, payload: Any, live: Any, path: str) -> Any:
    data, mask, fill, hard = payload
    found = np.ma.MaskedArray(
        _decode_array(decoder, data, ABSENT, path),
        mask=np.ma.nomask if mask is None else decoder.value(mask, path + "/~mask"),
        fill_value=decoder.value(fill, path + "/~fill")[()],
        hard_mask=hard,
    )
    same = type(live) is np.ma.MaskedArray and live.shape == found.shape
    if same and live.dtype == found.dtype and live.hardmask == hard and mask is not None:
        decoder.changed.append(live.data)
        live.soften_mask()
        live.data[...] = found.data
        live.mask = found.mask
        live.fill_value = found.fill_value
        return live.harden_mask() if hard else live
    return found


def _encode_scalar(encoder: Encoder, value: np.generic, path: str) -> Json:
    if isinstance(value, np.str_):
        return ["str", encoder.node(str(value), path)]
    if isinstance(value, np.bytes_):
        return ["bytes", encoder.node(bytes(value), path)]
    _require_items(value.dtype, path, "a NumPy scalar")
    return [_descr(value.dtype), value.tobytes().hex()]


def _decode_scalar(decoder: Decoder, payload: Any, live: Any, path: str) -> Any:
    descr, value = payload
    if descr == "str":
        return np.str_(decoder.value(value, path))
    if descr == "bytes":
        return np.bytes_(decoder.value(value, path))
    return np.frombuffer(bytearray.fromhex(value), _dtype(descr))[0]


def _require_items(dtype: np.dtype[Any], path: str, what: str) -> None:
    if dtype.hasobject:
        raise refused(path, f"is {what} of Python objects", "Give a list, or numbers")
    try:
        told = dtype.names is None or _dtype(_descr(dtype)) == dtype
    except ValueError:  # fields that overlap, or are not in order
        told = False
    if not told:
        raise refused(path, f"is {what} with fields laid out by hand", "Give each of its fields")


def _descr(dtype: np.dtype[Any]) -> Json:
    return dtype.str if dtype.names is None else _listed(dtype.descr)


def _listed(value: Any) -> Json:
    return [_listed(v) for v in value] if isinstance(value, list | tuple) else value


def _dtype(descr: Any) -> np.dtype[Any]:
    found: Any = descr if isinstance(descr, str) else _fields(descr)
    return np.lib.format.descr_to_dtype(found)


def _fields(descr: Any) -> Any:
    return [
        (name, base if isinstance(base, str) else _fields(base), *map(tuple, rest))
        for name, base, *rest in descr
    ]


_MASKED = Codec("masked", (np.ma.MaskedArray,), _encode_masked, _decode_masked, shared=True)
_ARRAY = Codec("array", (np.ndarray,), _encode_array, _decode_array, shared=True)
_SCALAR = Codec("scalar", (), _encode_scalar, _decode_scalar)
_DTYPE = Codec("numpy_dtype", (), lambda e, v, p: _descr(v), lambda d, v, live, p: _dtype(v))

CODECS.add(_MASKED, _ARRAY, _SCALAR, _DTYPE)
CODECS.protocols += [
    (lambda value: isinstance(value, np.ndarray), _ARRAY),
    (lambda value: isinstance(value, np.generic), _SCALAR),
    (lambda value: isinstance(value, np.dtype), _DTYPE),
]
