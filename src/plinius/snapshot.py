"""A snapshot: everything that decides the next step of a run, as bytes and small values."""

import hashlib
import json
import math
from dataclasses import dataclass, field

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]

ITEM_BYTES = {
    "bool": 1, "uint8": 1, "int8": 1, "int16": 2, "int32": 4, "int64": 8,
    "float16": 2, "bfloat16": 2, "float32": 4, "float64": 8,
}  # fmt: skip
"""The dtypes a snapshot may hold, by torch's and NumPy's names, and the bytes of one item."""


@dataclass(frozen=True)
class TensorBytes:
    """One named tensor: `data` is its items in row-major order, little-endian."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: memoryview = field(repr=False)

    def __post_init__(self) -> None:
        if self.data.nbytes != nbytes(self.dtype, self.shape):
            raise ValueError(f"{self.name}: {self.data.nbytes} bytes do not fill {self.shape}")


@dataclass(frozen=True)
class Snapshot:
    """A run state at an iteration.

    `tensors` and `values` are the state and enter the digest. `identity` says which run this is
    (its cfg, seed, dataset) and `environment` where it ran; they travel with the state.
    """

    iteration: int
    tensors: tuple[TensorBytes, ...]
    values: dict[str, Json]
    identity: dict[str, Json]
    environment: dict[str, Json]

    def digest(self) -> str:
        """SHA-256 of the state in a canonical order: equal states give equal digests anywhere.

        Hashed are a domain line, then for the values (as JSON with sorted keys) and for each
        tensor in order of name (as JSON [name, dtype, shape], then its data): 8 bytes of length,
        little-endian, and the bytes.
        """
        sha = hashlib.sha256(b"plinius state 1\n")

        def add(part: bytes | memoryview) -> None:
            sha.update(memoryview(part).nbytes.to_bytes(8, "little"))
            sha.update(part)

        add(to_json({"iteration": self.iteration, "values": self.values}))
        for tensor in sorted(self.tensors, key=lambda tensor: tensor.name):
            add(to_json([tensor.name, tensor.dtype, list(tensor.shape)]))
            add(tensor.data)
        return sha.hexdigest()


def nbytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor of this dtype and shape. Raises KeyError for an unknown dtype."""
    return ITEM_BYTES[dtype] * math.prod(shape)


def to_json(value: Json) -> bytes:
    """Compact JSON with sorted keys; floats are written so that they read back bit for bit."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
