"""Codecs of torch tensors: plain, with a gradient, strided, sparse.

If a tensor in a container was read into, it already holds the stored items, and stays.
Otherwise the container gets the tensor that was read.
"""

from typing import Any

import torch
from torch import nn

from plinius.jsonvalue import Json
from plinius.state.codec import ABSENT, CODECS, Codec, Decoder, Encoder, refused
from plinius.state.tensor_memory import copy_items, has_gaps, place_of


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
    if value.layout is not torch.sparse_coo:
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
    new = torch.empty_strided(found.shape, strides, dtype=found.dtype, device=found.device)
    copy_items(new, found)
    return new


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

CODECS.add(_TENSOR, _LEAF, _STRIDED, _SPARSE)
CODECS.protocols += [
    (_is_sparse, _SPARSE),
    (_is_leaf, _LEAF),
    (lambda value: _strided(value) and has_gaps(value), _STRIDED),
    (_strided, _TENSOR),
]
