"""Where the slots of a mirror lie, their header and their commit words.

All is little-endian. The extent named "mirror":

    0      8    magic "PLNSMIRR"
    8      4    version 3
    12     4    zero
    16     16   run id, random
    32     8    id of the owner's key
    40     8    slot bytes S, whole pages
    48     8    manifest room R, whole pages
    56     8    base B: commits up to B are not here, these slots were made after them
    64     4032 zero
    4096   S    slot 0
    4096+S S    slot 1

A slot:

    0      8    commit word: counter 5 bytes | check 3 bytes; zero before the first commit
    8      56   zero
    64     32   salt of this commit's key
    96     8    sealed manifest bytes M
    104    24   zero
    4096   M    sealed manifest (JSON), message 0
    4096+R ...  sealed chunks 1, 2, ... (chunks.py), each at the start of a page
"""

import hashlib
import struct
from collections.abc import Sequence
from typing import NamedTuple

from plinius.errors import FormatError, RegionError
from plinius.pm.heap import Span
from plinius.pm.medium import PAGE, round_up
from plinius.pm.region import Region
from plinius.slots.chunks import Chunk, cut, room_for
from plinius.snapshot import TensorSpec

EXTENT = "mirror"
MAGIC = b"PLNSMIRR"
VERSION = 3
_HEADER = struct.Struct("<8sI4x16s8sQQQ")
_COUNTER_BITS = 40
_WORD = struct.Struct("<I16sQ")  # version, run id, commit
_AAD = struct.Struct("<I16sQI")  # version, run id, the commit that seals, number of the message


class Layout(NamedTuple):
    """Where the slots lie in the medium, in bytes; commits up to `base` are not in them."""

    offset: int
    slot_bytes: int
    manifest_room: int
    base: int

    @property
    def length(self) -> int:
        """Bytes of the extent."""
        return PAGE + 2 * self.slot_bytes

    def slot(self, commit: int) -> int:
        """The offset of a commit's slot."""
        return self.offset + PAGE + commit % 2 * self.slot_bytes

    def manifest(self, commit: int) -> int:
        """The offset of a commit's sealed manifest."""
        return self.slot(commit) + PAGE

    def chunks(self, commit: int) -> int:
        """The offset of a commit's first sealed chunk."""
        return self.slot(commit) + PAGE + self.manifest_room

    def holds(self, chunks: Sequence[Chunk]) -> bool:
        """Whether a slot has room for these chunks."""
        return PAGE + self.manifest_room + room_for(chunks) <= self.slot_bytes


def layout_for(
    tensors: Sequence[TensorSpec], base: int, manifest_length: int, old: Layout | None = None
) -> Layout:
    """The layout of new slots for states of these tensors, at offset 0.

    If they replace the slots in `old`, which became too small, they have 1/32 to spare.
    """
    chunks = cut([tensor.nbytes for tensor in tensors])
    # A manifest grows: its numbers get more digits, and each chunk may need a salt of its own.
    manifest_room = round_up(manifest_length * 3 // 2 + 128 * len(chunks), PAGE) + PAGE
    room = room_for(chunks)
    if old:
        manifest_room = max(manifest_room, old.manifest_room)
        room = round_up(room + room // 32, PAGE)
    return Layout(0, PAGE + manifest_room + room, manifest_room, base)


def header_bytes(run_id: bytes, key_id: bytes, layout: Layout) -> bytes:
    """The first page of the extent."""
    header = _HEADER.pack(
        MAGIC, VERSION, run_id, key_id, layout.slot_bytes, layout.manifest_room, layout.base
    )
    return header.ljust(PAGE, b"\0")


def read_header(region: Region, span: Span) -> tuple[bytes, bytes, Layout]:
    """Run id, key id and layout, all checked. Raises FormatError, RegionError."""
    header = bytes(region.medium.read(span.offset, PAGE)) if span.length >= PAGE else bytes(PAGE)
    magic, version, run_id, key_id, *sizes = _HEADER.unpack_from(header)
    if magic == MAGIC and version != VERSION:
        raise FormatError(
            f"The mirror in {region.name} is of version {version}, "
            f"and this program reads version {VERSION}",
            "Use the release of plinius that made it",
        )
    layout = Layout(span.offset, *sizes)
    if (
        magic != MAGIC
        or any(header[12:16] + header[_HEADER.size :])
        or layout.length != span.length
        or layout.slot_bytes % PAGE
        or layout.manifest_room % PAGE
        or not PAGE <= layout.manifest_room <= layout.slot_bytes - PAGE
        or layout.base >> _COUNTER_BITS
    ):
        raise _damaged(region, "its header")
    return run_id, key_id, layout


def read_counters(region: Region, run_id: bytes, layout: Layout) -> list[int]:
    """The commit counters of both slots. Raises RegionError unless a commit can leave them so."""
    counters = []
    for slot in (0, 1):
        word = int.from_bytes(region.medium.read(layout.slot(slot), 8), "little")
        counter = word & ((1 << _COUNTER_BITS) - 1)
        if word and (counter == 0 or word != commit_word(run_id, counter) or counter % 2 != slot):
            raise _damaged(region, f"the commit word of slot {slot}")
        counters.append(counter)
    follow = abs(counters[0] - counters[1]) == 1 and max(counters) > layout.base
    if not follow and not (counters == [0, 0] and layout.base == 0):
        raise _damaged(region, "its commit words do not follow each other")
    return counters


def commit_word(run_id: bytes, commit: int) -> int:
    """The 8 bytes that make a commit count, with a check against damage (not against a host)."""
    check = hashlib.sha256(_WORD.pack(VERSION, run_id, commit)).digest()[:3]
    word: int = commit | (int.from_bytes(check, "little") << _COUNTER_BITS)
    return word


def associated_data(run_id: bytes, commit: int, number: int) -> bytes:
    """What a message is bound to: 0 is the manifest, the others are the chunks (32 bytes)."""
    return _AAD.pack(VERSION, run_id, commit, number)


def commit_digest(salt: bytes, sealed_manifest: bytes) -> str:
    """SHA-256 of a commit, in hex: its manifest names every other byte of it."""
    return hashlib.sha256(salt + sealed_manifest).hexdigest()


def _damaged(region: Region, what: str) -> RegionError:
    return RegionError(
        f"The mirror in {region.name} is damaged or altered: {what}",
        "Restore a copy of the region, or start a new one",
    )
