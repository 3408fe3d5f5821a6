"""The manifest: the sealed description of a commit.

Values whose JSON is large are stored in a tensor of bytes of their own, the last one. So a log in
the state can grow without making the manifest grow.
"""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from plinius.errors import StateError
from plinius.jsonvalue import Json, JsonText, from_json, to_json
from plinius.slots.chunks import cut
from plinius.slots.layout import Layout
from plinius.snapshot import ITEM_BYTES, Snapshot, TensorBytes, TensorSpec

MAX_MANIFEST_BYTES = 64 << 20
VALUES = "~values"
LARGE_VALUES = 64 * 1024 + 1
"""Values of at least so many bytes of JSON are a tensor. That tensor then has its own chunks."""
_TYPES = {
    "previous": str, "iteration": int, "identity": dict, "environment": dict,
    "tensors": list, "sealed_by": list, "salts": dict, "values": dict,
}  # fmt: skip


@dataclass(frozen=True)
class Manifest:
    """What a commit holds, except for the items of its tensors.

    `sealed_by` has, for each chunk in turn, the number of the commit that sealed it; `salts` has
    the salts of those commits. `digest` is the one of this commit, which the next commit names as
    its `previous`. `values_tensor` is the tensor that holds the values, or None; `values` are
    then read from it.
    """

    commit: int
    iteration: int
    tensors: tuple[TensorSpec, ...]
    values: dict[str, Json]
    identity: dict[str, Json]
    environment: dict[str, Json]
    previous: str
    values_tensor: TensorSpec | None = field(repr=False)
    sealed_by: list[int] = field(repr=False)
    salts: dict[int, bytes] = field(repr=False)
    digest: str = field(repr=False)

    @property
    def sizes(self) -> list[int]:
        """The bytes of each tensor in order, `values_tensor` included."""
        last = [self.values_tensor] if self.values_tensor else []
        return [spec.nbytes for spec in (*self.tensors, *last)]


def with_values(snapshot: Snapshot) -> tuple[tuple[TensorBytes, ...], bytes | None]:
    """The tensors that a commit holds, and the JSON of the values if the manifest holds it."""
    values = to_json(snapshot.values)
    if len(values) < LARGE_VALUES:
        return snapshot.tensors, values
    # Padded to a power of two, so that its size seldom changes.
    padded = values.ljust(1 << (len(values) - 1).bit_length())
    tensor = TensorBytes(VALUES, "uint8", (len(padded),), memoryview(padded))
    return (*snapshot.tensors, tensor), None


def encode_manifest(
    snapshot: Snapshot,
    tensors: Sequence[TensorSpec],
    values: bytes | None,
    previous: str,
    sealed_by: list[int],
    salts: dict[int, bytes],
) -> bytes:
    """The manifest of a commit that holds a snapshot; `salts` are those of other commits.

    Raises StateError if it has more than `MAX_MANIFEST_BYTES`.
    """
    runs: list[Json] = [[by, len([*run])] for by, run in itertools.groupby(sealed_by)]
    plain = to_json(
        {
            "previous": previous,
            "iteration": snapshot.iteration,
            "identity": snapshot.identity,
            "environment": snapshot.environment,
            "tensors": JsonText(b"[" + b",".join([t.json for t in tensors]) + b"]"),
            "sealed_by": runs,
            "salts": {str(commit): salt.hex() for commit, salt in salts.items()},
            "values": JsonText(values) if values else None,
        }
    )
    if len(plain) > MAX_MANIFEST_BYTES:
        raise StateError(
            f"The state has {len(tensors):,} tensors, whose names and shapes take {len(plain):,} "
            f"bytes; a mirror holds at most {MAX_MANIFEST_BYTES:,} bytes of them",
            "Put many small tensors into one (torch.stack, or one NumPy array)",
        )
    return plain


def decode_manifest(
    plain: bytes, commit: int, salt: bytes, digest: str, layout: Layout
) -> Manifest:
    """The manifest of a commit in such slots, from what `encode_manifest` made.

    `salt` and `digest` are the commit's own. Raises ValueError if anything in it is not as
    docs/formats/mirror.md says.
    """
    stored = from_json(plain)
    types = {key: type(value) for key, value in stored.items()}
    if types not in (_TYPES, _TYPES | {"values": type(None)}):
        raise ValueError("the manifest is not of this version's form")
    tensors = [_spec(*_listed(entry, 4)) for entry in stored["tensors"]]
    sizes = [spec.nbytes for spec in tensors]
    if sum(sizes) > layout.slot_bytes or not layout.holds(chunks := cut(sizes)):
        raise ValueError("its chunks do not fit into the slot")
    values_tensor = None
    if stored["values"] is None:
        values_tensor = tensors.pop() if tensors else None
        if values_tensor is None or not _holds_values(values_tensor):
            raise ValueError("the values are missing")
    names = {VALUES, *(spec.name for spec in tensors)}
    if len(names) <= len(tensors):
        raise ValueError("two tensors have one name, or one has the name of the values")
    runs = [tuple(map(_whole, _listed(run, 2))) for run in stored["sealed_by"]]
    if sum(count for _, count in runs) != len(chunks) or any(count == 0 for _, count in runs):
        raise ValueError("a chunk is missing, or one too many")
    if any(not layout.base < by <= commit or (commit - by) % 2 for by, _ in runs):
        raise ValueError("a chunk is of a commit that was never in this slot")
    salts = {by: _digits(stored["salts"].get(str(by))) for by, _ in runs if by != commit}
    if len(salts) != len(stored["salts"]):
        raise ValueError("there are salts of other commits")
    _digits(stored["previous"])
    return Manifest(
        commit,
        _whole(stored["iteration"]),
        tuple(tensors),
        stored["values"] or {},
        stored["identity"],
        stored["environment"],
        stored["previous"],
        values_tensor,
        [by for by, count in runs for _ in range(count)],
        {**salts, commit: salt},
        digest,
    )


def _spec(name: Any, dtype: Any, shape: Any, order: Any) -> TensorSpec:
    if not isinstance(name, str) or not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise ValueError(f"{name} is of an unknown dtype")
    sizes = tuple(map(_whole, _listed(shape)))
    dims = None if order is None else tuple(map(_whole, _listed(order)))
    if dims is not None and sorted(dims) != [*range(len(sizes))]:
        raise ValueError(f"{name} has an order that is none")
    return TensorSpec(name, dtype, sizes, order=dims)


def _holds_values(spec: TensorSpec) -> bool:
    same = (spec.name, spec.dtype, spec.order) == (VALUES, "uint8", None)
    return same and len(spec.shape) == 1 and spec.nbytes >= LARGE_VALUES


def _listed(value: Any, length: int | None = None) -> list[Any]:
    if not isinstance(value, list) or length not in (None, len(value)):
        raise ValueError("a list is missing, or of another length")
    return value


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ValueError(f"{value} is no count")
    return value


def _digits(value: Any) -> bytes:
    if not isinstance(value, str) or not re.fullmatch("[0-9a-f]{64}", value):
        raise ValueError("a salt or digest is missing, or not 64 hex digits")
    return bytes.fromhex(value)
