"""A snapshot: everything that decides the next step of a run, as tensors of bytes and values."""

import hashlib
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from plinius.jsonvalue import Json, to_json

ITEM_BYTES = {
    "bool": 1, "uint8": 1, "int8": 1, "int16": 2, "int32": 4, "int64": 8,
    "uint16": 2, "uint32": 4, "uint64": 8,
    "float16": 2, "bfloat16": 2, "float32": 4, "float64": 8,
    "complex32": 4, "complex64": 8, "complex128": 16,
    "float8_e4m3fn": 1, "float8_e4m3fnuz": 1, "float8_e5m2": 1, "float8_e5m2fnuz": 1,
    "float8_e8m0fnu": 1, "float4_e2m1fn_x2": 1,
    "bits1x8": 1, "bits2x4": 1, "bits4x2": 1, "bits8": 1, "bits16": 2,
}  # fmt: skip
"""The dtypes a snapshot may hold, by torch's names, and the bytes of one item."""


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype and shape of a tensor, without its items.

    `order` has the dimensions from the outermost in memory to the innermost; None is row-major
    order. A batch of images in channels_last has (0, 2, 3, 1).
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    order: tuple[int, ...] | None = field(default=None, kw_only=True)

    @cached_property
    def nbytes(self) -> int:
        """Bytes of its items. Raises KeyError for an unknown dtype."""
        return ITEM_BYTES[self.dtype] * math.prod(self.shape)

    @cached_property
    def json(self) -> bytes:
        """Name, dtype, shape and order as JSON, as a manifest lists them."""
        order: Json = None if self.order is None else [*self.order]
        return to_json([self.name, self.dtype, [*self.shape], order])


@dataclass(frozen=True, eq=False)
class TensorBytes(TensorSpec):
    """One named tensor: `data` is its items, little-endian, in the order of `order`."""

    data: memoryview = field(repr=False)

    def __post_init__(self) -> None:
        if self.data.nbytes != self.nbytes:
            raise ValueError(
                f"{self.name}: {self.data.nbytes} bytes do not fill {self.dtype}{list(self.shape)}"
            )

    @cached_property
    def address(self) -> int:
        """Where `data` is in memory."""
        return int(np.frombuffer(self.data, np.uint8).__array_interface__["data"][0])

    def with_data(self, data: memoryview) -> "TensorBytes":
        """The same tensor with these bytes, a copy of its own."""
        return TensorBytes(self.name, self.dtype, self.shape, data, order=self.order)

    def row_major(self) -> memoryview:
        """The items in row-major order."""
        if self.order is None or self.data.nbytes == 0:
            return self.data
        item = np.dtype(f"V{ITEM_BYTES[self.dtype]}")
        in_memory = np.frombuffer(self.data, item).reshape([self.shape[d] for d in self.order])
        rows = np.ascontiguousarray(in_memory.transpose(np.argsort(self.order)))
        return rows.reshape(-1).view(np.uint8).data


@dataclass(frozen=True)
class Snapshot:
    """The state of a run at an iteration.

    `tensors` and `values` are the state and enter the digest. `identity` says which run this is
    (its cfg, seed, dataset) and `environment` where it ran; they do not enter the digest.

    If there are `versions`, one of each tensor, then a tensor whose version is equal to that of an
    earlier snapshot (and not None) is trusted to hold the same items; no byte is compared.
    """

    iteration: int
    tensors: tuple[TensorBytes, ...]
    values: dict[str, Json]
    identity: dict[str, Json]
    environment: dict[str, Json]
    versions: Sequence[Hashable] | None = field(default=None, repr=False, compare=False)

    def digest(self) -> str:
        """SHA-256 of the state, in hex: equal states have equal digests on every machine.

        The exact bytes are in docs/formats/mirror.md, section State digest.
        """
        sha = hashlib.sha256(b"plinius state 1\n")

        def add(data: bytes | memoryview) -> None:
            sha.update(memoryview(data).nbytes.to_bytes(8, "little"))
            sha.update(data)

        add(to_json({"iteration": self.iteration, "values": self.values}))
        for tensor in sorted(self.tensors, key=lambda tensor: tensor.name):
            add(to_json([tensor.name, tensor.dtype, list(tensor.shape)]))
            add(tensor.row_major())
        return sha.hexdigest()
