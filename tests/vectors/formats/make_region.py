"""Writes the vectors of docs/formats/region.md, mirror.md and structures.md.

Good regions, and in cases.json what to change in one of them for every other case. Run it only when
a format changes, or a case is added: good.region stays as it is, byte for byte.
"""

import dataclasses
import itertools
import json
import shutil
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from plinius.jsonvalue import Json
from plinius.keys import OwnerKey
from plinius.pm.region import Region
from plinius.slots import Slots
from plinius.slots.layout import EXTENT, associated_data
from plinius.snapshot import Snapshot, TensorBytes
from plinius.structures.persistent_array import PersistentArray
from plinius.structures.stack_and_queue import PersistentQueue, PersistentStack

FOLDER = Path(__file__).parent / "region"
KEY = OwnerKey(bytes(range(32)))
TWIN = 16384
CHUNKS_AT = 4096 + 8192  # in a slot of these regions


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
    """Write the good regions and the cases."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    with _made("good.region") as region:
        with region.twins.transaction():
            block = region.heap.allocate(16)
            region.twins.store(block, b"sixteen bytes ok")
            region.heap.set_root("words", block, 16)
        mirror = Slots.create(region, KEY)
        mirror.write(state(0))
        span = region.extent(EXTENT)
        assert span is not None
        slot = (span.length - 4096) // 2
        first = bytes(region.medium.read(span.offset + 4096 + slot + CHUNKS_AT, 40))
        mirror.write(state(1))
        mirror.write(state(2))
    with _made("good-unchanged.region") as region:
        mirror = Slots.create(region, KEY)
        for iteration in range(3):
            mirror.write(dataclasses.replace(state(iteration), tensors=state(0).tensors))
    with _made("good-structures.region") as region:
        numbers = PersistentArray.create(region, "numbers", 3)
        numbers[:] = [1, -2, 2**62]
        rates = PersistentArray.create(region, "rates", 2, "float64")
        rates[:] = [0.5, -1.0]
        texts = PersistentStack.create(region, "texts")
        for text in (b"one", b"", b"twelve bytes"):
            texts.push(text)
        jobs = PersistentQueue.create(region, "jobs", "int64")
        for job in (10, 20, -30):
            jobs.push(job)
        jobs.pop()
        PersistentQueue.create(region, "empty", "bytes")
    cases = list(_cases(span.offset, slot, first))
    (FOLDER / "cases.json").write_text(json.dumps(cases, indent=1) + "\n", encoding="utf-8")


@contextmanager
def _made(name: str) -> Iterator[Region]:
    """A new region; what is random in it is counted."""
    numbers = itertools.count(1)
    with mock.patch("plinius.sealing.fresh", lambda length: bytes([next(numbers)]) * length):
        with mock.patch("plinius.pm.region.os.urandom", lambda length: bytes([99]) * length):
            region = Region.create(FOLDER / name, 0, TWIN)
        with region:
            yield region


def _manifests(newest: int) -> Iterator[tuple[str, tuple[int, bytes], tuple[int, bytes]]]:
    """Commit 3 of good.region with another manifest, sealed with its key: name and changes."""
    image = (FOLDER / "good.region").read_bytes()
    run, salt = image[36864 + 16 : 36864 + 32], image[newest + 64 : newest + 96]
    length = int.from_bytes(image[newest + 96 : newest + 104], "little")
    bound = associated_data(run, 3, 0)
    sealed = image[newest + 4096 : newest + 4096 + length]
    plain = KEY.sealer("mirror", salt).open(0, sealed, bound)
    for name, old, new in (
        ("unknown-key", b'{"environment"', b'{"a":1,"environment"'),
        ("key-twice", b'{"environment"', b'{"environment":{},"environment"'),
        ("not-finite", b'{"threads":1}', b'{"threads":1e999}'),
        ("name-twice", b'"model.e"', b'"model.w"'),
        ("bad-order", b'"float32",[2,3],null', b'"float32",[2,3],[1]'),
        ("huge", b'"uint8",[0]', b'"uint8",[1000000]'),
        ("other-slot", b'"sealed_by":[[3,1]]', b'"sealed_by":[[2,1]]'),
        ("later-commit", b'"sealed_by":[[3,1]]', b'"sealed_by":[[5,1]]'),
        ("empty-run", b'"sealed_by":[[3,1]]', b'"sealed_by":[[3,1],[1,0]]'),
        ("surplus-salt", b'"salts":{}', b'"salts":{"1":"' + b"02" * 32 + b'"}'),
        ("no-values", b'"values":{"average_loss":0.5}', b'"values":null'),
    ):
        assert plain.count(old) == 1, (name, plain)
        changed = KEY.sealer("mirror", salt).seal(0, plain.replace(old, new), bound)
        yield name, (newest + 96, len(changed).to_bytes(8, "little")), (newest + 4096, changed)


def _cases(mirror: int, slot: int, first: bytes) -> Iterator[dict[str, Any]]:
    """Each with the file that it changes; `first` is the sealed chunk of commit 1."""
    main, back = 4096, 4096 + TWIN
    newest, older = mirror + 4096 + slot, mirror + 4096

    def case(
        name: str, ends: str, *changes: tuple[int, bytes], of: str = "good", size: int | None = None
    ) -> dict[str, Any]:
        changed: dict[str, Any] = {"name": name, "of": f"{of}.region", "ends": ends}
        changed["changes"] = [[at, new.hex()] for at, new in changes]
        return changed if size is None else {**changed, "size": size}

    def entry(name: bytes, offset: int, length: int) -> bytes:
        return struct.pack("<40sQQ8x", name, offset, length)

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
    overlapping = entry(b"other", mirror + slot, 4096)
    yield case("bad-extents-overlap", "an extent that overlaps", (main + 2176, overlapping))
    twice = entry(b"mirror", mirror, 4096)
    yield case("bad-extent-twice", "a name twice among its extents", (main + 2176, twice))
    yield case(
        "bad-root-twice", "a name twice among its roots", (main + 128, entry(b"words", 4176, 16))
    )
    yield case("bad-entry-reserved", "that cannot be read", (main + 64 + 56, b"\1"))
    yield case("bad-heap-reserved", "its heap's header", (main + 24, b"\1"))
    yield case("bad-cut-header", "is not a Plinius region", size=4095)
    yield case("bad-cut-twins", "the file is cut short", size=36863)
    yield case("bad-cut-extents", "is cut short: 73,727 of 73,728 bytes", size=73727)
    yield case("longer", "opens", size=73729)
    no_extent = bytes(64)
    yield case("no-mirror", "no mirror", (main + 2112, no_extent), (back + 2112, no_extent))
    yield case("mirror-without-commit", "no commit", (older, bytes(8)), (newest, bytes(8)))
    yield case("mirror-after-growth", "opens", (mirror + 56, b"\2"))
    yield case("mirror-reserved", "its header", (mirror + 12, b"\1"))
    yield case("mirror-reserved-end", "its header", (mirror + 4095, b"\1"))
    yield case("mirror-slot-reserved", "Commit 3 in the mirror", (newest + 8, b"\1"))
    yield case("mirror-slot-reserved-end", "Commit 3 in the mirror", (newest + 127, b"\1"))
    yield case("mirror-slot-page-free", "opens", (newest + 128, b"\1"))
    chunk = newest + CHUNKS_AT
    yield case("mirror-bad-chunk", "Commit 3 in the mirror", (chunk, b"\0\0\0"))
    yield case("mirror-older-chunk", "Commit 3 in the mirror", (chunk, first))
    yield case(
        "mirror-bad-unchanged-chunk", "Commit 3 in the mirror", (chunk, b"\0"), of="good-unchanged"
    )
    for name, *changes in _manifests(newest):
        yield case(f"mirror-manifest-{name}", "this program cannot read it", *changes)
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
