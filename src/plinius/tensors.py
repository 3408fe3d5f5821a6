"""Tensors of torch as bytes: their dtypes by name, their order in memory, their memory."""

from typing import Any

import numpy as np
import torch

from plinius.snapshot import ITEM_BYTES, TensorBytes, TensorSpec

DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in ITEM_BYTES}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def order_of(tensor: torch.Tensor) -> tuple[int, ...] | None:
    """The dimensions from the outermost in memory to the innermost; None for row-major order.

    A tensor with gaps, or that overlaps itself, has no order: None as well.
    """
    if tensor.is_contiguous():
        return None
    strides = tensor.stride()
    order = tuple(sorted(range(tensor.ndim), key=lambda d: (-strides[d], d)))
    return order if tensor.permute(order).is_contiguous() else None


def memory_of(tensor: torch.Tensor) -> tuple[tuple[int, ...] | None, memoryview]:
    """The order of a tensor and its items as bytes in that order.

    They are its own memory, unless it has gaps or overlaps itself: then a copy, row by row.
    """
    order = order_of(tensor)
    laid = tensor.detach() if order is None else tensor.detach().permute(order)
    flat = laid.resolve_conj().resolve_neg().contiguous().reshape(-1)
    return order, flat.view(torch.uint8).numpy().data


def is_own_memory(tensor: torch.Tensor) -> bool:
    """Whether `memory_of` gives the tensor's own memory."""
    if tensor.is_conj() or tensor.is_neg():
        return False
    return tensor.is_contiguous() or order_of(tensor) is not None


def empty(spec: TensorSpec) -> torch.Tensor:
    """A new tensor of this dtype, shape and order."""
    dtype = DTYPES[spec.dtype]
    if spec.order is None:
        return torch.empty(spec.shape, dtype=dtype)
    laid = torch.empty([spec.shape[d] for d in spec.order], dtype=dtype)
    return laid.permute(*np.argsort(spec.order).tolist())


def tensor_of(stored: TensorBytes) -> torch.Tensor:
    """A new tensor with the items of a stored one."""
    tensor = empty(stored)
    memory_of(tensor)[1][:] = stored.data
    return tensor


def copy_items(to: torch.Tensor, source: torch.Tensor) -> None:
    """Copy all items, bit for bit, between tensors of one dtype and shape."""
    with torch.no_grad():
        to.detach().copy_(source)


def layout_of(tensor: torch.Tensor) -> tuple[str, tuple[int, ...]]:
    """The name of its dtype, and its shape."""
    return NAMES[tensor.dtype], tuple(tensor.shape)


def bytes_of_array(array: np.ndarray[Any, Any]) -> torch.Tensor:
    """The bytes of a NumPy array as a tensor over the same memory, where that can be."""
    raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return torch.from_numpy(raw if raw.flags.writeable else raw.copy())
