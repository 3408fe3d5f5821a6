"""Where the slots of a mirror lie, their header and their commit words.

All is little-endian. The extent named "mirror":

    0      8    magic "PLNSMIRR"
    8      4    version 3
    12     4    zero
    16     16   run id, random
    32     8    id of the owner's key
    40     8    slot bytes S, whole pages
    48     8    manifest room R, whole pages
    56     8    base B: commits up to B are not here, the slots have grown since
    64     4032 zero
    4096   S    slot 0
    4096+S S    slot 1

A slot:

    0      8    commit word: counter 5 bytes | check 3 bytes; zero before the first commit
    8      56   zero
    64     32   salt of this commit's key
    96     8    sealed manifest bytes M
    104    24   zero
    4096   M    sealed manifest (JSON), chunk 0
    4096+R ...  sealed chunks 1, 2, ... (chunks.py), each from a page on
"""

import hashlib
import struct
from collections.abc import Sequence
from typing import NamedTuple

from plinius.errors import FormatError, RegionError
from plinius.jsonvalue import Json
from plinius.pm.heap import Span
from plinius.pm.medium import PAGE
from plinius.pm.region import Region
from plinius.slots.chunks import cut, room_for
from plinius.snapshot import TensorSpec

EXTENT = "mirror"
MAGIC = b"PLNSMIRR"
VERSION = 3
_HEADER = struct.Struct("<8sI4x16s8sQQQ")
_COUNTER_BITS = 40
_WORD = struct.Struct("<I16sQ")  # version, run id, commit


class Layout(NamedTuple):
    """Where the slots lie in the medium, and up to which commit they hold none."""

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
        """The offset from which on a commit's sealed chunks lie."""
        return self.slot(commit) + PAGE + self.manifest_room


def describe_mirror(region: Region) -> dict[str, Json] | None:
    """What a region's mirror tells without a key, or None if there is none."""
    span = region.extent(EXTENT)
    if span is None:
        return None
    run_id, key_id, layout = read_header(region, span)
    return {
        "version": VERSION,
        "run_id": run_id.hex(),
        "key_id": key_id.hex(),
        "slot_bytes": layout.slot_bytes,
        "manifest_room": layout.manifest_room,
        "commits": max(read_counters(region, run_id, layout)),
    }


def layout_for(
    tensors: Sequence[TensorSpec], base: int, manifest_length: int, old: Layout | None = None
) -> Layout:
    """Slots for states of these tensors; with something to spare if `old` was outgrown."""
    cuts = cut([tensor.nbytes for tensor in tensors])
    # Numbers in a manifest grow longer as a run goes on, and each chunk may need a salt.
    manifest_room = _pages(manifest_length * 3 // 2 + 128 * len(cuts)) + PAGE
    room = room_for(cuts)
    if old:
        manifest_room = max(manifest_room, old.manifest_room)
        room = _pages(room + room // 8)
    return Layout(0, PAGE + manifest_room + room, manifest_room, base)


def header_bytes(run_id: bytes, key_id: bytes, layout: Layout) -> bytes:
    """The first page of the extent."""
    header = _HEADER.pack(
        MAGIC, VERSION, run_id, key_id, layout.slot_bytes, layout.manifest_room, layout.base
    )
    return header.ljust(PAGE, b"\0")


def read_header(region: Region, span: Span) -> tuple[bytes, bytes, Layout]:
    """Run id, key id and where the slots lie. Raises FormatError, RegionError."""
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
    """The commit counters of both slots, checked against every state a commit can leave."""
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
    """The word that shows a commit, with a check against chance damage (not against a host)."""
    check = hashlib.sha256(_WORD.pack(VERSION, run_id, commit)).digest()[:3]
    word: int = commit | (int.from_bytes(check, "little") << _COUNTER_BITS)
    return word


def _damaged(region: Region, what: str) -> RegionError:
    return RegionError(
        f"The mirror in {region.name} is damaged or altered: {what}",
        "Restore a copy of the region, or start a new one",
    )


def _pages(length: int) -> int:
    return -(-length // PAGE) * PAGE
