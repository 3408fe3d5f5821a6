"""Tensors of torch as bytes: dtypes by name, order in memory, and the memory itself."""

import functools
from collections.abc import Iterable
from operator import attrgetter
from typing import Any

import numpy as np
import torch

from plinius.snapshot import ITEM_BYTES, TensorBytes, TensorSpec

DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in ITEM_BYTES}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
Place = tuple[object, ...]
TensorType = tuple[str, tuple[int, ...]]


class Memory:
    """The items of a tensor on the host as bytes, in the order of its memory.

    `data` is the tensor's own memory if `own`. Otherwise (its items have gaps or overlap) it is a
    copy in row-major order. `data` keeps the tensor alive, so no other can get its address.
    """

    __slots__ = ("data", "dtype", "order", "own", "shape")

    def __init__(self, tensor: torch.Tensor) -> None:
        self.dtype, self.shape = tensor_type(tensor)
        self.order = order_of(tensor)
        items = packed(tensor, self.order)
        self.data = bytes_of(items)
        self.own = items.data_ptr() == tensor.data_ptr()

    def named(self, name: str) -> TensorBytes:
        """These bytes under a name."""
        return TensorBytes(name, self.dtype, self.shape, self.data, order=self.order)


class _ByAddress:
    """A view for NumPy of a tensor's memory, by its address.

    `Tensor.numpy()` would make the storage impossible to resize from then on.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor  # kept alive
        self.__array_interface__ = {
            "version": 3, "typestr": "|u1", "shape": (tensor.nbytes,),
            "data": (tensor.data_ptr(), False),
        }  # fmt: skip


def packed(tensor: torch.Tensor, order: tuple[int, ...] | None) -> torch.Tensor:
    """The items in the order of `order_of`: the tensor's own memory, or a copy without gaps."""
    in_order = tensor.detach() if order is None else tensor.detach().permute(order)
    return in_order.resolve_conj().resolve_neg().contiguous()


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the host: its own memory."""
    assert tensor.is_cpu
    return np.asarray(_ByAddress(tensor)).data if tensor.numel() else memoryview(bytearray())


def order_of(tensor: torch.Tensor) -> tuple[int, ...] | None:
    """The dimensions from the outermost in memory to the innermost; None for row-major order.

    A tensor whose items have gaps or overlap has no order: None as well.
    """
    if tensor.is_contiguous():
        return None
    strides = tensor.stride()
    order = tuple(sorted(range(tensor.ndim), key=lambda d: (-strides[d], d)))
    return order if tensor.permute(order).is_contiguous() else None


def place_of(tensor: torch.Tensor) -> Place:
    """Address, shape, strides and dtype of a tensor: two live tensors of one place are the same."""
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, bits_of(tensor)


def bits_of(tensor: torch.Tensor) -> int:
    """Whether its items are conjugated (1) or negated (2) when they are read."""
    return int(tensor.is_conj()) + 2 * int(tensor.is_neg())


def has_storage(tensor: torch.Tensor) -> bool:
    """Whether its items have memory: the storage of a tensor can be freed (resize_(0))."""
    count = tensor.numel()
    if count == 0:
        return True
    if not tensor.is_contiguous():
        count = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    size: int = tensor.untyped_storage().nbytes()
    return (tensor.storage_offset() + count) * tensor.element_size() <= size


def storages_of(tensors: Iterable[torch.Tensor]) -> list[int]:
    """A number for the storage of each, unique while that is alive."""
    return [*map(attrgetter("_cdata"), map(torch.Tensor.untyped_storage, tensors))]


def empty(spec: TensorSpec) -> torch.Tensor:
    """A new tensor of this dtype, shape and order, on the host."""
    dtype = DTYPES[spec.dtype]
    if spec.order is None:
        return torch.empty(spec.shape, dtype=dtype)
    in_memory = torch.empty([spec.shape[d] for d in spec.order], dtype=dtype)
    return in_memory.permute(*np.argsort(spec.order).tolist())


def has_gaps(tensor: torch.Tensor) -> bool:
    """Whether its items have gaps or overlap, so that its bytes are a copy."""
    return not tensor.is_contiguous() and order_of(tensor) is None


def tensor_of(stored: TensorBytes) -> torch.Tensor:
    """A new tensor with the items of a stored one."""
    tensor = empty(stored)
    Memory(tensor).data[:] = stored.data
    return tensor


def copy_items(to: torch.Tensor, source: torch.Tensor) -> None:
    """Copy all items, bit for bit, between tensors of one dtype and shape.

    An item that `to` shows many times (it was expanded) is written once.
    """
    with torch.no_grad():
        to, source = to.detach(), source.detach()
        for dim, (size, stride) in enumerate(zip(to.shape, to.stride(), strict=True)):
            if stride == 0 and size > 1:
                to, source = to.narrow(dim, 0, 1), source.narrow(dim, 0, 1)
        to.copy_(source)


def tensor_type(tensor: torch.Tensor) -> TensorType:
    """The name of its dtype, and its shape."""
    return NAMES[tensor.dtype], tuple(tensor.shape)


@functools.cache
def show_type(found: TensorType | None) -> str:
    """A dtype and shape for a message, as float32[3, 2]."""
    return f"{found[0]}{list(found[1])}" if found else "missing"


def bytes_of_array(array: np.ndarray[Any, Any]) -> torch.Tensor:
    """The bytes of a NumPy array in the order of its memory: its own memory if it is writable."""
    packed = np.ascontiguousarray(array.transpose(array_order(array)))
    raw = np.asarray(packed).reshape(-1).view(np.uint8)
    return torch.from_numpy(raw if raw.flags.writeable else raw.copy())


def array_order(array: np.ndarray[Any, Any]) -> list[int]:
    """The dimensions of an array from the outermost in memory to the innermost."""
    if array.flags.c_contiguous:
        return [*range(array.ndim)]
    return sorted(range(array.ndim), key=lambda d: (-abs(array.strides[d]), d))
