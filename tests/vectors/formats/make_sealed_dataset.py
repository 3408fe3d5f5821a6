"""Writes the vectors of docs/formats/sealed-dataset.md. Run it only when the format changes."""

import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from plinius.data.dataset_header import HEADER_BYTES
from plinius.data.records import ABSENT, ArraySpec, Source
from plinius.data.sealed_dataset import seal_dataset
from plinius.keys import OwnerKey

FOLDER = Path(__file__).parent / "sealed-dataset"
KEY, OTHER_KEY = OwnerKey(bytes(range(32))), OwnerKey(bytes(range(1, 33)))
U8 = np.dtype("u1")


def trees() -> Source:
    """Three labelled images."""

    def records() -> Iterator[Any]:
        for i in range(3):
            yield np.arange(10 * i, 10 * i + 6, dtype=U8).reshape(1, 2, 3), np.array(i, U8)

    names = ("ash", "birch", "cedar")
    return Source("trees", 3, ArraySpec(U8, (1, 2, 3)), ArraySpec(U8, ()), records, 3, names)


def unlabelled() -> Source:
    """Two float vectors without labels."""

    def records() -> Iterator[Any]:
        for i in range(2):
            yield np.array([i, i + 0.5], "<f4"), np.zeros(0, U8)

    return Source("unlabelled", 2, ArraySpec(np.dtype("<f4"), (2,)), ABSENT, records)


def main() -> None:
    """Write the key file and all vectors, the same bytes every time."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    KEY.save(FOLDER / "test.key")
    os.chmod(FOLDER / "test.key", 0o644)
    good = sealed("good", trees(), KEY)
    sealed("good-unlabelled", unlabelled(), KEY)
    sealed("bad-other-key", trees(), OTHER_KEY)
    meta = int.from_bytes(good[12:16], "little")
    first, stride = HEADER_BYTES + meta, (len(good) - HEADER_BYTES - meta) // 3
    records = [good[first + i * stride : first + (i + 1) * stride] for i in range(3)]
    bad("magic", b"PLINDATE" + good[8:])
    bad("version", patched(good, 8, b"\2"))
    bad("count", patched(good, 72, (2**63).to_bytes(8, "little")))
    bad("dtype", patched(good, 84, b"\xc8"))
    bad("reserved", patched(good, 200, b"\1"))
    bad("truncated", good[:-1])
    bad("extended", good + b"\0")
    bad("classes", patched(good, 80, b"\4"))
    bad("meta", patched(good, HEADER_BYTES, bytes([good[HEADER_BYTES] ^ 1])))
    bad("swapped-records", good[:first] + records[1] + records[0] + records[2])
    bad("flipped-tag", patched(good, len(good) - 1, bytes([good[-1] ^ 1])))


def sealed(name: str, source: Source, key: OwnerKey) -> bytes:
    """Seal a source with the id 1, 1, ... and the salt 2, 2, ... instead of random ones."""
    numbers = itertools.count(1)
    path = FOLDER / f"{name}.sealed"
    with mock.patch("plinius.sealing.fresh", lambda length: bytes([next(numbers)]) * length):
        seal_dataset(source, key, path)
    return path.read_bytes()


def patched(data: bytes, offset: int, new: bytes) -> bytes:
    """The data with other bytes at an offset."""
    return data[:offset] + new + data[offset + len(new) :]


def bad(name: str, data: bytes) -> None:
    """Write a vector that must be refused."""
    (FOLDER / f"bad-{name}.sealed").write_bytes(data)


if __name__ == "__main__":
    main()
