"""Writes the vectors of docs/formats/region.md and mirror.md. Run it only when a format changes.

One good region, and in cases.json the bytes to change in it for every other case.
"""

import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from plinius.jsonvalue import Json
from plinius.keys import OwnerKey
from plinius.pm.region import Region
from plinius.slots import Slots
from plinius.slots.layout import EXTENT
from plinius.snapshot import Snapshot, TensorBytes

FOLDER = Path(__file__).parent / "region"
KEY = OwnerKey(bytes(range(32)))
TWIN = 16384


def state(iteration: int) -> Snapshot:
    """A small state: a matrix and an empty tensor."""
    matrix = memoryview(bytes(range(iteration, iteration + 24)))
    tensors = (
        TensorBytes("model.w", "float32", (2, 3), matrix),
        TensorBytes("model.e", "uint8", (0,), memoryview(b"")),
    )
    values: dict[str, Json] = {"average_loss": 1.5 / (iteration + 1)}
    return Snapshot(iteration, tensors, values, {"seed": 7}, {"threads": 1})


def main() -> None:
    """Write the good region, three commits and a root in it, and the cases."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    numbers = itertools.count(1)
    with mock.patch("plinius.sealing.fresh", lambda length: bytes([next(numbers)]) * length):
        with mock.patch("plinius.pm.region.os.urandom", lambda length: bytes([99]) * length):
            region = Region.create(FOLDER / "good.region", 0, TWIN)
        with region:
            with region.twins.transaction():
                block = region.heap.allocate(16)
                region.twins.store(block, b"sixteen bytes ok")
                region.heap.set_root("words", block, 16)
            mirror = Slots.create(region, KEY)
            for iteration in range(3):
                mirror.write(state(iteration))
            span = region.extent(EXTENT)
            assert span is not None
            cases = list(_cases(span.offset, (span.length - 4096) // 2))
    (FOLDER / "cases.json").write_text(json.dumps(cases, indent=1) + "\n", encoding="utf-8")


def _cases(mirror: int, slot: int) -> Iterator[dict[str, Any]]:
    main, back = 4096, 4096 + TWIN
    newest, older = mirror + 4096 + slot, mirror + 4096

    def case(name: str, ends: str, *changes: tuple[int, bytes]) -> dict[str, Any]:
        return {"name": name, "ends": ends, "changes": [[at, new.hex()] for at, new in changes]}

    mutating, copying = b"MUTATING", b"COPYING\0"
    yield case("recovers-mutating", "opens", (64, mutating), (main, b"\xff" * 64))
    yield case("recovers-copying", "opens", (64, copying), (back, b"\xff" * 64))
    yield case("bad-magic", "is not a Plinius region", (0, b"PLNSRGNX"))
    yield case("bad-version", "is a region of version 2", (8, b"\2"))
    yield case("bad-reserved", "The header of", (200, b"\1"))
    yield case("bad-digest", "The header of", (40, b"\0\0"))
    yield case("bad-twin-bytes", "The header of", (32, b"\0\0\1"))
    yield case("bad-state", "is no state", (64, b"MUTATE\0\0"))
    yield case("bad-heap-magic", "its heap's header", (main, b"X"))
    yield case("bad-block-size", "a block of impossible size", (main + 4160, b"\1"))
    yield case("bad-root", "a root that names no block", (main + 64 + 40, b"\1\0\0\0\0\0\0\1"))
    yield case("bad-extent-off-page", "an extent that overlaps", (main + 2112 + 40, b"\1"))
    yield case("bad-extent-outside", "an extent outside", (main + 2112 + 48, b"\0" * 7 + b"\1"))
    yield case("bad-entry-name", "that cannot be read", (main + 2112, b"\xff"))
    yield case("mirror-bad-magic", "its header", (mirror, b"X"))
    yield case("mirror-bad-version", "is of version 9", (mirror + 8, b"\x09"))
    yield case("mirror-of-the-past", "is of version 2, and this", (mirror + 8, b"\x02"))
    yield case("mirror-bad-room", "its header", (mirror + 48, b"\1"))
    yield case("mirror-bad-base", "do not follow each other", (mirror + 56, b"\3"))
    yield case("mirror-other-key", "was sealed with key", (mirror + 32, b"\0" * 8))
    yield case("mirror-bad-word", "the commit word of slot 1", (newest, b"\5"))
    yield case("mirror-hidden-commit", "do not follow each other", (newest, b"\0" * 8))
    yield case("mirror-bad-salt", "Commit 3 in the mirror", (newest + 64, b"\0"))
    yield case("mirror-bad-manifest", "Commit 3 in the mirror", (newest + 4096, b"\0\0\0"))
    yield case("mirror-huge-manifest", "Commit 3 in the mirror", (newest + 96, b"\xff" * 8))
    yield case("mirror-older-slot-damaged", "opens", (older + 4096, b"\0\0\0"))


if __name__ == "__main__":
    main()
