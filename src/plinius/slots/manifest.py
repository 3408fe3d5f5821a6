"""The manifest: what a commit of the mirror says of itself, sealed with it.

Values whose JSON is large are kept in a tensor of bytes of their own, the last one, so that a log
that grows does not outgrow the manifest.
"""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

from plinius.errors import StateError
from plinius.jsonvalue import Json, to_json
from plinius.snapshot import Snapshot, TensorBytes, TensorSpec

MAX_BYTES = 64 << 20
VALUES = "~values"
LARGE_VALUES = 64 * 1024 + 1
"""Values of as many bytes of JSON, and more, are a tensor. It then has chunks of its own."""


@dataclass(frozen=True)
class Manifest:
    """What a commit holds, but for the items of its tensors.

    `sealed_by` tells for each chunk in turn which commit sealed it, `salts` the salts of those;
    `digest` is the commit's, which the next one names as its `previous`. `kept_values` is the
    tensor that holds the values, or None; `values` are then read from it.
    """

    commit: int
    iteration: int
    tensors: tuple[TensorSpec, ...]
    values: dict[str, Json]
    identity: dict[str, Json]
    environment: dict[str, Json]
    previous: str
    kept_values: TensorSpec | None = field(repr=False)
    sealed_by: list[int] = field(repr=False)
    salts: dict[int, bytes] = field(repr=False)
    digest: str = field(repr=False)

    @property
    def sizes(self) -> list[int]:
        """The bytes of all tensors, of the one that keeps the values too."""
        kept = [self.kept_values] if self.kept_values else []
        return [spec.nbytes for spec in (*self.tensors, *kept)]


def with_values(snapshot: Snapshot) -> tuple[tuple[TensorBytes, ...], bytes | None]:
    """The tensors that a commit holds, and the values' JSON if that goes into the manifest."""
    values = to_json(snapshot.values)
    if len(values) < LARGE_VALUES:
        return snapshot.tensors, values
    padded = values.ljust(1 << (len(values) - 1).bit_length())  # so that it seldom grows
    kept = TensorBytes(VALUES, "uint8", (len(padded),), memoryview(padded))
    return (*snapshot.tensors, kept), None


def to_bytes(
    snapshot: Snapshot,
    tensors: Sequence[TensorSpec],
    values: bytes | None,
    previous: str,
    sealed_by: list[int],
    salts: dict[int, bytes],
) -> bytes:
    """The manifest of a commit that holds a snapshot; `salts` are those of other commits.

    Raises StateError if it is larger than one may be.
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
    if len(plain) > MAX_BYTES:
        raise StateError(
            f"The state has {len(tensors):,} tensors, whose names and shapes take {len(plain):,} "
            f"bytes; a mirror holds {MAX_BYTES:,} bytes of them",
            "Keep many small tensors as one (torch.stack, or one NumPy array)",
        )
    return plain


def from_bytes(plain: bytes, commit: int, salt: bytes, digest: str) -> Manifest:
    """The manifest of a commit, with its own salt and digest, from what `to_bytes` made."""
    stored = json.loads(plain)
    tensors = [
        TensorSpec(name, dtype, tuple(shape), order=None if order is None else tuple(order))
        for name, dtype, shape, order in stored["tensors"]
    ]
    kept = tensors.pop() if stored["values"] is None else None
    salts = {int(other): bytes.fromhex(text) for other, text in stored["salts"].items()}
    return Manifest(
        commit,
        stored["iteration"],
        tuple(tensors),
        stored["values"] or {},
        stored["identity"],
        stored["environment"],
        stored["previous"],
        kept,
        [by for by, count in stored["sealed_by"] for _ in range(cast(int, count))],
        {commit: salt, **salts},
        digest,
    )
