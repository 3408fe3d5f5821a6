"""The manifest: what a commit of the mirror says of itself, sealed with it."""

import itertools
import json
from dataclasses import dataclass, field
from typing import cast

from plinius.snapshot import Json, Snapshot, TensorSpec, to_json


@dataclass(frozen=True)
class Manifest:
    """What a commit holds, but for the items of its tensors.

    `sealed_by` tells for each piece in turn which commit sealed it, `salts` the salts of those;
    `digest` is the commit's, which the next one names.
    """

    commit: int
    iteration: int
    tensors: tuple[TensorSpec, ...]
    values: dict[str, Json]
    identity: dict[str, Json]
    environment: dict[str, Json]
    sealed_by: list[int] = field(repr=False)
    salts: dict[int, bytes] = field(repr=False)
    digest: str = field(repr=False)


def to_bytes(
    snapshot: Snapshot, previous: str, sealed_by: list[int], salts: dict[int, bytes]
) -> bytes:
    """The manifest of a commit that holds a snapshot; `salts` are those of other commits."""
    runs: list[Json] = [[by, len([*run])] for by, run in itertools.groupby(sealed_by)]
    return to_json(
        {
            "previous": previous,
            "iteration": snapshot.iteration,
            "values": snapshot.values,
            "identity": snapshot.identity,
            "environment": snapshot.environment,
            "tensors": [
                [t.name, t.dtype, list(t.shape), None if t.order is None else list(t.order)]
                for t in snapshot.tensors
            ],
            "sealed_by": runs,
            "salts": {str(commit): salt.hex() for commit, salt in salts.items()},
        }
    )


def from_bytes(plain: bytes, commit: int, salt: bytes, digest: str) -> Manifest:
    """The manifest of a commit, with its own salt and digest, from what `to_bytes` made."""
    about = json.loads(plain)
    tensors = (
        TensorSpec(name, dtype, tuple(shape), order=None if order is None else tuple(order))
        for name, dtype, shape, order in about["tensors"]
    )
    salts = {int(other): bytes.fromhex(text) for other, text in about["salts"].items()}
    return Manifest(
        commit,
        about["iteration"],
        tuple(tensors),
        about["values"],
        about["identity"],
        about["environment"],
        [by for by, count in about["sealed_by"] for _ in range(cast(int, count))],
        {commit: salt, **salts},
        digest,
    )
