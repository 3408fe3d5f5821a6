"""Tensors of torch as bytes: their dtypes by name, their order in memory, their memory."""

from typing import Any

import numpy as np
import torch

from plinius.snapshot import ITEM_BYTES, TensorBytes, TensorSpec

DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in ITEM_BYTES}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
Place = tuple[object, ...]


def order_of(tensor: torch.Tensor) -> tuple[int, ...] | None:
    """The dimensions from the outermost in memory to the innermost; None for row-major order.

    A tensor with gaps, or that overlaps itself, has no order: None as well.
    """
    if tensor.is_contiguous():
        return None
    strides = tensor.stride()
    order = tuple(sorted(range(tensor.ndim), key=lambda d: (-strides[d], d)))
    return order if tensor.permute(order).is_contiguous() else None


class Memory:
    """The items of a tensor as bytes, in the order of its memory.

    `data` is the tensor's own memory if `own`; or else, for one that has gaps or overlaps itself,
    a copy, row by row. `storage` names what it lies in. It keeps that alive, so two that are in
    use at once are of one place only if they are the same object.
    """

    __slots__ = ("_place", "data", "dtype", "order", "own", "shape", "storage")

    def __init__(self, tensor: torch.Tensor) -> None:
        self.dtype, self.shape = layout_of(tensor)
        self.order = order_of(tensor)
        laid = tensor.detach() if self.order is None else tensor.detach().permute(self.order)
        flat = laid.resolve_conj().resolve_neg().contiguous().reshape(-1)
        self.data = flat.view(torch.uint8).numpy().data
        self.own = flat.data_ptr() == tensor.data_ptr()
        self.storage: int = tensor.untyped_storage()._cdata
        self._place = place_of(tensor)

    def lies_at(self, place: Place) -> bool:
        """Whether it shows the items of a tensor there, now and after every write to it."""
        return self.own and self._place == place


def place_of(tensor: torch.Tensor) -> Place:
    """Where a tensor's items lie, and how: equal ones that are in use at once show the same."""
    lazy = tensor.is_conj(), tensor.is_neg()
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, lazy


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
    Memory(tensor).data[:] = stored.data
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
