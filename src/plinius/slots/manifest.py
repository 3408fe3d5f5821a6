"""The manifest: the sealed description of a commit.

Values whose JSON is large are stored in a tensor of bytes of their own, the last one. So a log in
the state can grow without making the manifest grow.
"""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

from plinius.errors import StateError
from plinius.jsonvalue import Json, to_json
from plinius.slots.chunks import cut
from plinius.snapshot import ITEM_BYTES, Snapshot, TensorBytes, TensorSpec

MAX_MANIFEST_BYTES = 64 << 20
VALUES = "~values"
LARGE_VALUES = 64 * 1024 + 1
"""Values of at least so many bytes of JSON are a tensor. That tensor then has its own chunks."""


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
    rest = to_json(
        {
            "previous": previous,
            "iteration": snapshot.iteration,
            "identity": snapshot.identity,
            "environment": snapshot.environment,
            "tensors": [
                [t.name, t.dtype, list(t.shape), None if t.order is None else list(t.order)]
                for t in tensors
            ],
            "sealed_by": runs,
            "salts": {str(commit): salt.hex() for commit, salt in salts.items()},
        }
    )
    plain = rest[:-1] + b',"values":' + (values or b"null") + b"}"
    if len(plain) > MAX_MANIFEST_BYTES:
        raise StateError(
            f"The state has {len(tensors):,} tensors, whose names and shapes take {len(plain):,} "
            f"bytes; a mirror holds at most {MAX_MANIFEST_BYTES:,} bytes of them",
            "Put many small tensors into one (torch.stack, or one NumPy array)",
        )
    return plain


def decode_manifest(plain: bytes, commit: int, salt: bytes, digest: str) -> Manifest:
    """The manifest of a commit, with its own salt and digest, from what `encode_manifest` made.

    Raises ValueError if anything in it is not as docs/formats/mirror.md says.
    """
    try:
        stored = json.loads(plain)
        tensors = [_spec(*entry) for entry in stored["tensors"]]
        values_tensor = tensors.pop() if stored["values"] is None else None
        if values_tensor and (values_tensor.name, values_tensor.dtype) != (VALUES, "uint8"):
            raise ValueError("the values are missing")
        runs = [(_natural(by), _natural(count)) for by, count in stored["sealed_by"]]
        sizes = [spec.nbytes for spec in (*tensors, *filter(None, [values_tensor]))]
        if sum(count for _, count in runs) != len(cut(sizes)):
            raise ValueError("a chunk is missing, or one too many")
        sealed_by = [by for by, count in runs for _ in range(count)]
        salts = {int(other): bytes.fromhex(text) for other, text in stored["salts"].items()}
        salts[commit] = salt
        if not {*sealed_by} <= salts.keys():
            raise ValueError("a salt is missing")
        return Manifest(
            commit,
            _natural(stored["iteration"]),
            tuple(tensors),
            cast(dict[str, Json], stored["values"] or {}),
            stored["identity"],
            stored["environment"],
            stored["previous"],
            values_tensor,
            sealed_by,
            salts,
            digest,
        )
    except (KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise ValueError("the manifest is not of this version's form") from error


def _spec(name: str, dtype: str, shape: list[int], order: list[int] | None) -> TensorSpec:
    if dtype not in ITEM_BYTES or not isinstance(name, str):
        raise ValueError(f"{name} is of an unknown dtype")
    if order is not None and sorted(order) != [*range(len(shape))]:
        raise ValueError(f"{name} has an order that is none")
    sizes = tuple(_natural(size) for size in shape)
    return TensorSpec(name, dtype, sizes, order=None if order is None else tuple(order))


def _natural(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value} is no count")
    return value
