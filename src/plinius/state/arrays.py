"""Codecs of tensors, NumPy arrays, and random number generators."""

import random
from typing import Any

import numpy as np
import torch
from torch import nn

from plinius.errors import MismatchError
from plinius.jsonvalue import Json
from plinius.state.classes import name_of
from plinius.state.codec import ABSENT, CODECS, Blueprint, Codec, Decoder, Encoder, refused
from plinius.state.tensors import (
    Memory,
    array_order,
    bytes_of_array,
    copy_items,
    has_gaps,
    place_of,
)

Generator = torch.Generator | np.random.Generator | np.random.RandomState | random.Random
_GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)


# Tensors. If a tensor in a container was read into, it already holds the stored items, and stays.
# Otherwise the container gets the tensor that was read.


def _encode_tensor(encoder: Encoder, value: torch.Tensor, path: str) -> Json:
    if type(value) not in (torch.Tensor, nn.Parameter, nn.Buffer):
        raise refused(
            path,
            f"is a tensor of class {type(value).__qualname__}",
            "Give a plain tensor: its as_subclass(torch.Tensor), or the tensors it consists of",
        )
    return encoder.tensor(value, path)


def _decode_tensor(decoder: Decoder, payload: Any, live: Any, path: str) -> torch.Tensor:
    found = decoder.tensors[payload]
    if isinstance(live, torch.Tensor) and place_of(live) == place_of(found):
        if live.requires_grad or live.grad is not None:
            live.requires_grad_(False).grad = None
        return live
    return found


def _encode_leaf(encoder: Encoder, value: torch.Tensor, path: str) -> Json:
    if not value.is_leaf:
        raise refused(
            path, "is part of an autograd graph, which cannot be stored", "Give its detach()"
        )
    node: Json = {"tensor": _encode_tensor(encoder, value, path)}
    grad = None if value.grad is None else encoder.node(value.grad.detach(), path + "/~grad")
    frozen: list[Json] = [] if value.requires_grad else ["frozen"]
    return [isinstance(value, nn.Parameter), node, grad, *frozen]


def _decode_leaf(decoder: Decoder, payload: Any, live: Any, path: str) -> torch.Tensor:
    is_parameter, node, grad, *frozen = payload
    found: torch.Tensor = decoder.value(node, path, live)
    if found is not live:
        found = nn.Parameter(found) if is_parameter else found.detach()
    found.requires_grad_(not frozen)
    set_grad(decoder, found, grad, path + "/~grad")
    return found


def set_grad(decoder: Decoder, tensor: torch.Tensor, node: Json, path: str) -> None:
    """Give a tensor the gradient in a node; None removes it."""
    live = ABSENT if tensor.grad is None else tensor.grad
    tensor.grad = None if node is None else decoder.value(node, path, live)


def _encode_sparse(encoder: Encoder, value: torch.Tensor, path: str) -> Json:
    if value.layout is not torch.sparse_coo or not value.is_cpu:
        raise refused(path, f"is a {value.layout} tensor on {value.device}")
    if value.requires_grad:
        raise refused(path, "is a sparse tensor that requires grad", "Give its detach()")
    parts: list[Json] = [
        {"tensor": encoder.tensor(value._indices(), path + "/~indices")},
        {"tensor": encoder.tensor(value._values(), path + "/~values")},
    ]
    return [*parts, list(value.shape), value.is_coalesced()]


def _decode_sparse(decoder: Decoder, payload: Any, live: Any, path: str) -> torch.Tensor:
    indices, values, shape, coalesced = payload
    parts = decoder.value(indices, path), decoder.value(values, path)
    return torch.sparse_coo_tensor(
        *parts, shape, is_coalesced=coalesced, check_invariants=False
    )  # fmt: skip


def _encode_strided(encoder: Encoder, value: torch.Tensor, path: str) -> Json:
    return [{"tensor": _encode_tensor(encoder, value, path)}, list(value.stride())]


def _decode_strided(decoder: Decoder, payload: Any, live: Any, path: str) -> torch.Tensor:
    node, strides = payload
    found: torch.Tensor = decoder.value(node, path, live)
    if [*found.stride()] == strides:
        return found
    new = torch.empty_strided(found.shape, strides, dtype=found.dtype)
    copy_items(new, found)
    return new


# Arrays.


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
    node: Json = {"tensor": encoder.tensor(bytes_of_array(value), path)} if value.size else None
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


# Generators.


def generator_state(generator: Generator) -> object:
    """The state of a random number generator, as plain values, arrays and tensors."""
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, np.random.Generator):
        return {**generator.bit_generator.state, **_seed_of(generator.bit_generator)}
    if isinstance(generator, np.random.RandomState):
        return generator.get_state(legacy=False)
    version, words, gauss = generator.getstate()
    return {"version": version, "words": np.array(words, np.int64), "gauss": gauss}


def _seed_of(bits: np.random.BitGenerator) -> dict[str, Any]:
    seed: Any = bits.seed_seq
    return {"seed": seed.state} if type(seed) is np.random.SeedSequence else {}


def set_generator_state(generator: Generator, state: Any) -> None:
    """Give a generator a state that `generator_state` returned."""
    if isinstance(generator, torch.Generator):
        generator.set_state(state)
    elif isinstance(generator, np.random.Generator):
        state = dict(state)
        seed = state.pop("seed", None)
        generator.bit_generator.state = state
        if seed is not None:  # so that spawn gives the same children
            new = generator.bit_generator.state, np.random.SeedSequence(**seed)
            generator.bit_generator.__setstate__(new)  # type: ignore[attr-defined]
    elif isinstance(generator, np.random.RandomState):
        generator.set_state(state)
    else:
        words = tuple(map(int, state["words"]))
        generator.setstate((state["version"], words, state["gauss"]))


def _encode_generator(encoder: Encoder, value: Generator, path: str) -> Json:
    if isinstance(value, torch.Generator) and value.device.type != "cpu":
        raise refused(path, f"is a generator on {value.device}")
    if type(value) not in (torch.Generator, *_GENERATORS):
        raise refused(path, f"is a generator of class {type(value).__qualname__}")
    return [type(value).__name__, encoder.node(generator_state(value), path)]


def _decode_generator(decoder: Decoder, payload: Any, live: Any, path: str) -> Any:
    name, node = payload
    state = decoder.value(node, path)
    if type(live).__name__ != name or _other_bits(live, state):
        live = _new_generator(name, state, path)
    try:
        set_generator_state(live, state)
    except (ValueError, TypeError, RuntimeError):
        raise MismatchError(
            f"{path} is another kind of generator than it was",
            "Put the same kind of generator into the state as at the start of the run",
        ) from None
    return live


def _other_bits(live: Any, state: Any) -> bool:
    """Whether a NumPy generator is on another bit generator than the one with this state."""
    if not (isinstance(live, np.random.Generator) and isinstance(state, dict)):
        return False
    return bool(live.bit_generator.state["bit_generator"] != state["bit_generator"])


def _new_generator(name: str, state: Any, path: str) -> Generator:
    if name == "Generator" and isinstance(state, dict):
        bits = getattr(np.random, str(state["bit_generator"]), None)
        if not (isinstance(bits, type) and issubclass(bits, np.random.BitGenerator)):
            raise MismatchError(
                f"{path} was a NumPy generator on {state['bit_generator']}",
                "Put one into the state before mirror_in",
            )
        return np.random.Generator(bits())
    if name == "RandomState":
        return np.random.RandomState()
    return torch.Generator() if name == "Generator" else random.Random()  # noqa: S311


def _strided(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.layout is torch.strided


def _is_leaf(value: Any) -> bool:
    """Whether it is more than its items: it has a gradient, or may get one."""
    if not _strided(value):
        return False
    return value.requires_grad or value.grad is not None or type(value) is nn.Parameter


def _is_sparse(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.layout is not torch.strided


_TENSOR = Codec("tensor", (), _encode_tensor, _decode_tensor)
_LEAF = Codec("leaf", (), _encode_leaf, _decode_leaf)
_STRIDED = Codec("strided", (), _encode_strided, _decode_strided)
_SPARSE = Codec("sparse", (), _encode_sparse, _decode_sparse)
_MASKED = Codec("masked", (np.ma.MaskedArray,), _encode_masked, _decode_masked, shared=True)
_ARRAY = Codec("array", (np.ndarray,), _encode_array, _decode_array, shared=True)
_SCALAR = Codec("scalar", (), _encode_scalar, _decode_scalar)
_NUMPY_DTYPE = Codec("numpy_dtype", (), lambda e, v, p: _descr(v), lambda d, v, live, p: _dtype(v))
_GENERATOR = Codec("generator", (), _encode_generator, _decode_generator, shared=True)

CODECS.add(
    _TENSOR, _LEAF, _STRIDED, _SPARSE, _MASKED, _ARRAY, _SCALAR, _NUMPY_DTYPE, _GENERATOR
)  # fmt: skip
CODECS.protocols += [
    (_is_sparse, _SPARSE),
    (_is_leaf, _LEAF),
    (lambda value: _strided(value) and has_gaps(value), _STRIDED),
    (_strided, _TENSOR),
    (lambda value: isinstance(value, np.ndarray), _ARRAY),
    (lambda value: isinstance(value, np.generic), _SCALAR),
    (lambda value: isinstance(value, np.dtype), _NUMPY_DTYPE),
    (lambda value: isinstance(value, _GENERATORS), _GENERATOR),
]
