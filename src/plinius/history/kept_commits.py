"""Kept commits: copies of commits that stay when their slot is used again.

A kept commit is an extent of its own, "kept:" and its name, which is "best" or another word, or
the number of the commit. All is little-endian:

    0      8    magic "PLNSKEPT"
    8      4    version 1
    12     4    zero
    16     16   run id
    32     8    id of the owner's key
    40     8    number N of the commit
    48     8    iteration
    56     8    when it was copied: seconds since 1970 by the machine's clock
    64     8    slot bytes S
    72     8    manifest room R
    80     4016 zero
    4096   S    the slot of commit N as it was: layout.py

It is ciphertext, copied as it is: no key, no plaintext. A slot is whole by itself: chunks that a
commit did not seal again lie in it since an earlier one. The head is in clear and proves nothing.
What is read is opened as commit N of this run, and its digest must be one that the newest commit
names, or be the newest commit's own; so the host can put no other commit in its place.
"""

import struct
from collections.abc import Callable
from typing import NamedTuple

from plinius.errors import FormatError, MismatchError, RegionError, SealError
from plinius.jsonvalue import Json
from plinius.keys import OwnerKey
from plinius.pm.heap import Span
from plinius.pm.medium import PAGE, Medium
from plinius.pm.region import Region
from plinius.sealing import TAG_BYTES
from plinius.slots.layout import Layout, commit_digest
from plinius.slots.manifest import MAX_MANIFEST_BYTES, Manifest
from plinius.slots.plan import SLOT_HEAD
from plinius.slots.protocol import Pinned, Slots

PREFIX = "kept:"
ENVIRONMENT = "kept"
"""Where the environment in a manifest names the kept commits: {name: [number, digest]}."""
MAGIC = b"PLNSKEPT"
VERSION = 1
_HEAD = struct.Struct("<8sI4x16s8sQQQQQ")
_MOST_COMMITS = 1 << 40
_BLOCK_BYTES = 4 << 20


class KeptCommit(NamedTuple):
    """What the head of a kept commit says: in clear, and not authenticated.

    `time` is in seconds since 1970, `nbytes` what it takes of the region.
    """

    name: str
    commit: int
    iteration: int
    time: int
    nbytes: int
    run_id: bytes
    key_id: bytes
    layout: Layout
    """In which `layout.slot(commit)` is where the copy of the slot begins."""


def fill_of(
    name_of_run: tuple[bytes, bytes], layout: Layout, commit: int, iteration: int, time: int
) -> Callable[[Medium, int], None]:
    """What writes a copy of commit `commit` in these slots; `name_of_run` is run id and key id."""
    head = _HEAD.pack(
        MAGIC, VERSION, *name_of_run, commit, iteration, time, layout.slot_bytes,
        layout.manifest_room,
    ).ljust(PAGE, b"\0")  # fmt: skip

    def fill(medium: Medium, at: int) -> None:
        medium.write(at, head)
        buffer = memoryview(bytearray(min(_BLOCK_BYTES, layout.slot_bytes)))
        for start in range(0, layout.slot_bytes, _BLOCK_BYTES):
            block = buffer[: min(_BLOCK_BYTES, layout.slot_bytes - start)]
            medium.read_into(layout.slot(commit) + start, block)
            medium.write(at + PAGE + start, block)

    return fill


def kept_names(region: Region) -> dict[str, Span]:
    """The extents of the kept commits, by their names."""
    return {
        name.removeprefix(PREFIX): span
        for name, span in region.heap.extents().items()
        if name.startswith(PREFIX)
    }


def kept_bytes(region: Region) -> list[int]:
    """What each kept commit takes of the region."""
    return [span.length for span in kept_names(region).values()]


def read_head(region: Region, name: str, span: Span) -> KeptCommit:
    """What the head of a kept commit says. Raises RegionError, FormatError."""
    head = bytes(region.medium.read(span.offset, PAGE)) if span.length >= PAGE else bytes(PAGE)
    magic, version, run_id, key_id, commit, iteration, when, *sizes = _HEAD.unpack_from(head)
    if magic == MAGIC and version != VERSION:
        raise FormatError(
            f"The kept commit {name} in {region.name} is of version {version}, "
            f"and this program reads version {VERSION}",
            "Use the release of plinius that made it",
        )
    slot_bytes, room = sizes
    if (
        magic != MAGIC
        or any(head[12:16] + head[_HEAD.size :])
        or not 0 < commit < _MOST_COMMITS
        or PAGE + slot_bytes != span.length
        or slot_bytes % PAGE
        or room % PAGE
        or not PAGE <= room <= slot_bytes - PAGE
        or (name.isdigit() and int(name) != commit)
    ):
        raise RegionError(
            f"The kept commit {name} in {region.name} is damaged or altered: its head",
            "Use another one (plinius region log), or restore a copy of the region",
        )
    layout = Layout(span.offset - commit % 2 * slot_bytes, slot_bytes, room, 0)
    return KeptCommit(name, commit, iteration, when, span.length, run_id, key_id, layout)


def digest_of(region: Region, kept: KeptCommit) -> str:
    """The digest of what is stored as a kept commit; nothing of it is authenticated."""
    layout, commit = kept.layout, kept.commit
    head = bytes(region.medium.read(layout.slot(commit), SLOT_HEAD.size))
    _, salt, length = SLOT_HEAD.unpack(head)
    most = min(layout.manifest_room, MAX_MANIFEST_BYTES + TAG_BYTES)
    sealed = bytes(region.medium.read(layout.manifest(commit), length)) if length <= most else b""
    return commit_digest(salt, sealed)


def genuine(region: Region, newest: Manifest) -> dict[str, tuple[KeptCommit, str]]:
    """The kept commits that the newest one vouches for, with their digests, by name.

    It names them, or one is a copy of it. Others are of a line of the run that was given up, or
    the host put them there.
    """
    listed = newest.environment.get(ENVIRONMENT)
    named: dict[str, Json] = listed if isinstance(listed, dict) else {}
    found = {}
    for name, span in kept_names(region).items():
        try:
            kept = read_head(region, name, span)
        except (RegionError, FormatError):
            continue
        digest = digest_of(region, kept)
        vouched = [kept.commit, digest] in (named.get(name), [newest.commit, newest.digest])
        if vouched:
            found[name] = (kept, digest)
    return found


def open_kept(
    region: Region, key: OwnerKey, kept: KeptCommit, digest: str, threads: int = 1
) -> tuple[Slots, Manifest]:
    """A reader of one kept commit, and its manifest. Raises KeyFileError, SealError, FormatError.

    The reader only reads: `write` would find no slots of its own.
    """
    key.require(kept.key_id, f"The kept commit {kept.name} in {region.name}")
    pinned = Pinned(None, kept.layout, kept.commit, digest, None, open=False)
    reader = Slots(region, key, kept.run_id, pinned, threads)
    try:
        manifest = reader.newest()
    except SealError:
        raise does_not_open(region, kept) from None
    assert manifest is not None
    if manifest.iteration != kept.iteration:
        raise does_not_open(region, kept)
    return reader, manifest


def open_all_kept(region: Region, key: OwnerKey) -> list[str]:
    """Open every kept commit of the run as it is; returns their names. Raises SealError."""
    slots = Slots.open(region, key)
    newest = slots.newest() if slots else None
    found = genuine(region, newest) if newest else {}
    for kept, digest in found.values():
        reader, manifest = open_kept(region, key, kept, digest)
        try:
            reader.snapshot(manifest)
        except SealError:
            raise does_not_open(region, kept) from None
    return sorted(found)


def does_not_open(region: Region, kept: KeptCommit) -> SealError:
    """The refusal of a kept commit."""
    what = f"commit {kept.commit}" + ("" if kept.name.isdigit() else f", kept as {kept.name},")
    return SealError(
        f"The copy of {what} in {region.name} does not open with this key",
        "It was altered or the disk is failing: use another one (plinius region log)",
    )


def choose(
    region: Region, newest: Manifest, found: dict[str, tuple[KeptCommit, str]], which: str
) -> tuple[KeptCommit, str] | None:
    """The kept commit of that name or number, None for the newest. Raises MismatchError."""
    if which in ("newest", str(newest.commit)):
        return None
    if which in found:
        return found[which]
    for kept, digest in found.values():
        if str(kept.commit) == which:
            return kept, digest
    raise MismatchError(
        f"{region.name} keeps no commit {which[:40]}",
        "Choose one of those that plinius region log lists with the key",
    )
