"""The mirror: the sealed copy of a run's state, in one of two slots of an extent.

Layout (all little-endian), in the extent named "mirror":

    0      8    magic "PLNSMIRR"
    8      4    version 1
    12     4    zero
    16     16   run id, random
    32     8    id of the owner's key
    40     8    slot bytes S, whole pages
    48     4048 zero
    4096   S    slot 0
    4096+S S    slot 1

A slot:

    0      8    commit word: counter 5 bytes | check 3 bytes; zero before the first commit
    8      56   zero
    64     32   salt of this commit's key
    96     8    sealed manifest bytes M
    104    8    sealed data bytes D
    112    16   zero
    128    M    sealed manifest (JSON), piece 0
    128+M  D    sealed chunks of every tensor in manifest order, pieces 1, 2, ...

Invariants: commit N lies in slot N mod 2 and is sealed under a key no other commit has. A commit
writes the older slot | fence 1 | its word | fence 2, so the newest committed slot is never
written to, and the two words always hold consecutive counters. Sealing goes through a private
buffer: AES-GCM reads its own output back to authenticate it, so output in memory that the host
can write would let the host choose what is authenticated.
"""

import hashlib
import json
import struct
from collections.abc import Iterator
from pathlib import Path

from plinius import sealing
from plinius.errors import FormatError, MismatchError, RegionError, RegionFullError, SealError
from plinius.keys import OwnerKey
from plinius.pm.heap import Span
from plinius.pm.medium import PAGE, Medium
from plinius.pm.region import Region
from plinius.snapshot import Json, Snapshot, TensorBytes, nbytes, to_json

EXTENT = "mirror"
MAGIC = b"PLNSMIRR"
VERSION = 1
CHUNK_BYTES = 512 * 1024
MAX_MANIFEST_BYTES = 64 << 20
_PURPOSE = "mirror"
_HEADER = struct.Struct("<8sI4x16s8sQ")
_SLOT = struct.Struct("<Q56x32sQQ16x")
_COUNTER_BITS = 40
_AAD = struct.Struct("<I16sQIIB")  # version, run id, commit, tensor, chunk, last
_MANIFEST = 2**32 - 1  # stands where a tensor's index does
_PREVIOUS_NONE = "0" * 64


class Mirror:
    """The mirror of one run in a region, for the owner's key it was made with."""

    def __init__(self, region: Region, key: OwnerKey, span: Span) -> None:
        self._region = region
        self._medium = region.medium
        self._key = key
        self._span = span
        self._run_id, key_id, self._slot_bytes = _read_header(region, span)
        key.require(key_id, f"The mirror in {region.name}")
        self._scratch = memoryview(bytearray(CHUNK_BYTES + sealing.TAG_BYTES))
        self._counter = self._settle()
        self._previous: str | None = _PREVIOUS_NONE if self._counter == 0 else None

    @classmethod
    def open(cls, region: Region, key: OwnerKey) -> "Mirror | None":
        """The mirror of a region, or None if it has none yet. Raises KeyFileError, FormatError,
        RegionError.
        """
        span = region.extent(EXTENT)
        return cls(region, key, span) if span is not None else None

    @classmethod
    def create(cls, region: Region, key: OwnerKey, like: Snapshot) -> "Mirror":
        """Make a mirror with slots that hold states of the layout of `like`."""
        slot_bytes = _slot_bytes(like)
        header = _HEADER.pack(MAGIC, VERSION, sealing.fresh(16), key.id, slot_bytes)

        def write(medium: Medium, at: int) -> None:
            medium.write(at, header.ljust(PAGE, b"\0"))
            for slot in (0, 1):
                medium.write(at + PAGE + slot * slot_bytes, bytes(_SLOT.size))

        return cls(region, key, region.add_extent(EXTENT, PAGE + 2 * slot_bytes, write))

    @property
    def commits(self) -> int:
        """The counter of the newest commit; 0 before the first."""
        return self._counter

    @property
    def run_id(self) -> bytes:
        """The random name of the run (16 bytes)."""
        return bytes(self._run_id)

    def mirror_out(self, snapshot: Snapshot) -> int:
        """Seal a state into the older slot and commit it; returns the sealed bytes written.

        Two fences. A stop at any instant leaves this commit or the one before. Raises
        RegionFullError if the state has outgrown its slot, StorageError.
        """
        if self._previous is None:
            raise RuntimeError(
                "mirror_in comes before the first mirror_out on a mirror with commits"
            )
        commit = self._counter + 1
        salt = sealing.fresh(sealing.SALT_BYTES)
        sealer = self._key.sealer(_PURPOSE, salt)
        manifest = sealer.seal(0, _manifest(snapshot, self._previous), self._aad(commit, _MANIFEST))
        data_bytes = sum(_sealed_bytes(tensor.data.nbytes) for tensor in snapshot.tensors)
        if _SLOT.size + len(manifest) + data_bytes > self._slot_bytes:
            raise RegionFullError(
                "The run state has outgrown its slot in the mirror",
                "Train in a new region (--region)",
            )
        self._previous = None  # until this commit ends: interrupted, it must be looked at again
        at = self._slot_at(commit % 2)
        # The word of the older commit stays as it is until the new one replaces it.
        self._medium.write(at + 8, _SLOT.pack(0, salt, len(manifest), data_bytes)[8:])
        self._medium.write(at + _SLOT.size, manifest)
        self._seal_tensors(sealer, commit, snapshot, at + _SLOT.size + len(manifest))
        self._medium.fence()
        self._put_word(commit % 2, commit)
        self._medium.fence()
        self._counter, self._previous = commit, _commit_digest(salt, manifest)
        return _SLOT.size + len(manifest) + data_bytes

    def mirror_in(self, *, accept_previous: bool = False) -> Snapshot | None:
        """Open the newest committed state, or None before the first commit.

        With `accept_previous`, the commit before is opened if the newest does not open (someone
        decided that). Raises SealError or RegionError naming the commit; nothing is changed.
        """
        self._counter = self._settle()
        if self._counter == 0:
            self._previous = _PREVIOUS_NONE
            return None
        try:
            return self._open(self._counter)
        except (SealError, RegionError):
            if not accept_previous or self._counters()[(self._counter - 1) % 2] == 0:
                raise
        snapshot = self._open(self._counter - 1)
        self._forget_newest()
        return snapshot

    def _settle(self) -> int:
        """The newest commit's counter, after making the words that show it last.

        A killed process leaves its stores in the caches, and a failed msync leaves pages that the
        kernel takes for clean, so both words are stored again before they are flushed. They must
        last before the next commit writes over the slot of the one before.
        """
        counters = self._counters()
        if self._region.writable:
            for slot, counter in enumerate(counters):
                self._put_word(slot, counter)
            self._medium.fence()
        return max(counters)

    def _forget_newest(self) -> None:
        """Give the refused slot the word it had before, so that it is no commit any more."""
        self._counter -= 1
        if self._region.writable:
            self._put_word((self._counter + 1) % 2, self._counter - 1)
            self._medium.fence()

    def _put_word(self, slot: int, counter: int) -> None:
        word = _word(self._run_id, counter) if counter else 0
        self._medium.store_word(self._slot_at(slot), word)
        self._medium.flush(self._slot_at(slot), 8)

    def _open(self, commit: int) -> Snapshot:
        at = self._slot_at(commit % 2)
        header = bytes(self._medium.read(at, _SLOT.size))
        _, salt, manifest_bytes, data_bytes = _SLOT.unpack(header)
        what = f"Commit {commit} in the mirror of {self._region.name}"
        if (
            any(header[8:64] + header[112:])
            or not sealing.TAG_BYTES <= manifest_bytes <= MAX_MANIFEST_BYTES
            or _SLOT.size + manifest_bytes + data_bytes > self._slot_bytes
        ):
            raise _refused(what)
        sealer = self._key.sealer(_PURPOSE, salt)
        sealed = bytes(self._medium.read(at + _SLOT.size, manifest_bytes))
        try:
            plain = sealer.open(0, sealed, self._aad(commit, _MANIFEST))
            about = json.loads(plain)
            if about["data_bytes"] != data_bytes:
                raise _refused(what)
            tensors = self._open_tensors(
                sealer, commit, about["tensors"], at + _SLOT.size + manifest_bytes
            )
        except SealError:
            raise _refused(what) from None
        self._previous = _commit_digest(salt, sealed)
        return Snapshot(
            about["iteration"], tensors, about["values"], about["identity"], about["environment"]
        )

    def _seal_tensors(
        self, sealer: sealing.Sealer, commit: int, snapshot: Snapshot, at: int
    ) -> None:
        number = 0
        for index, tensor in enumerate(snapshot.tensors):
            for chunk, start, end, last in _chunks(tensor.data.nbytes):
                number += 1
                out = self._scratch[: end - start + sealing.TAG_BYTES]
                aad = self._aad(commit, index, chunk, last)
                sealer.seal_into(number, tensor.data[start:end], aad, out)
                self._medium.write(at, out)
                at += len(out)

    def _open_tensors(
        self, sealer: sealing.Sealer, commit: int, listed: list[tuple[str, str, list[int]]], at: int
    ) -> tuple[TensorBytes, ...]:
        number, tensors = 0, []
        for index, (name, dtype, dims) in enumerate(listed):
            shape = tuple(dims)
            data = memoryview(bytearray(nbytes(dtype, shape)))
            for chunk, start, end, last in _chunks(data.nbytes):
                number += 1
                sealed = self._scratch[: end - start + sealing.TAG_BYTES]
                # Copied first: what is authenticated is then what is decrypted.
                sealed[:] = self._medium.read(at, len(sealed))
                aad = self._aad(commit, index, chunk, last)
                sealer.open_into(number, sealed, aad, data[start:end])
                at += len(sealed)
            tensors.append(TensorBytes(name, dtype, shape, data))
        return tuple(tensors)

    def _aad(self, commit: int, tensor: int, chunk: int = 0, last: bool = True) -> bytes:
        return _AAD.pack(VERSION, self._run_id, commit, tensor, chunk, last)

    def _slot_at(self, slot: int) -> int:
        return self._span.offset + PAGE + slot * self._slot_bytes

    def _counters(self) -> list[int]:
        return _counters(self._region, self._span, self._run_id, self._slot_bytes)


def newest_snapshot(region: Path, key: OwnerKey) -> Snapshot:
    """The newest committed state of a region, opened read-only: nothing is written.

    Raises MismatchError if there is none, and what opening a region and a mirror raise.
    """
    with Region.open(region, writable=False) as opened:
        mirror = Mirror.open(opened, key)
        snapshot = mirror.mirror_in() if mirror else None
    if snapshot is None:
        raise MismatchError(f"{region} holds no mirrored run", "Train one first: plinius train")
    return snapshot


def describe_mirror(region: Region) -> dict[str, Json] | None:
    """What a region's mirror tells without a key, or None if there is none."""
    span = region.extent(EXTENT)
    if span is None:
        return None
    run_id, key_id, slot_bytes = _read_header(region, span)
    counters = _counters(region, span, run_id, slot_bytes)
    return {
        "version": VERSION,
        "run_id": run_id.hex(),
        "key_id": key_id.hex(),
        "slot_bytes": slot_bytes,
        "commits": max(counters),
    }


def _read_header(region: Region, span: Span) -> tuple[bytes, bytes, int]:
    """Run id, key id and slot bytes. Raises FormatError, RegionError."""
    header = bytes(region.medium.read(span.offset, PAGE)) if span.length >= PAGE else bytes(PAGE)
    magic, version, run_id, key_id, slot_bytes = _HEADER.unpack_from(header)
    if magic == MAGIC and version != VERSION:
        raise FormatError(
            f"The mirror in {region.name} is of version {version}, "
            f"and this program reads version {VERSION}",
            "Use the release of plinius that made it",
        )
    if (
        magic != MAGIC
        or any(header[12:16] + header[_HEADER.size :])
        or PAGE + 2 * slot_bytes != span.length
        or slot_bytes % PAGE
        or slot_bytes == 0
    ):
        raise _damaged(region, "its header")
    return run_id, key_id, slot_bytes


def _counters(region: Region, span: Span, run_id: bytes, slot_bytes: int) -> list[int]:
    """The commit counters of both slots, checked against every state a commit can leave."""
    counters = []
    for slot in (0, 1):
        at = span.offset + PAGE + slot * slot_bytes
        word = int.from_bytes(region.medium.read(at, 8), "little")
        counter = word & ((1 << _COUNTER_BITS) - 1)
        if word and (counter == 0 or word != _word(run_id, counter) or counter % 2 != slot):
            raise _damaged(region, f"the commit word of slot {slot}")
        counters.append(counter)
    if abs(counters[0] - counters[1]) != 1 and counters != [0, 0]:
        raise _damaged(region, "its commit words do not follow each other")
    return counters


def _word(run_id: bytes, commit: int) -> int:
    check = hashlib.sha256(_AAD.pack(VERSION, run_id, commit, 0, 0, 0)).digest()[:3]
    word: int = commit | (int.from_bytes(check, "little") << _COUNTER_BITS)
    return word


def _damaged(region: Region, what: str) -> RegionError:
    return RegionError(
        f"The mirror in {region.name} is damaged or altered: {what}",
        "Restore a copy of the region, or start a new one",
    )


def _manifest(snapshot: Snapshot, previous: str) -> bytes:
    return to_json(
        {
            "previous": previous,
            "iteration": snapshot.iteration,
            "values": snapshot.values,
            "identity": snapshot.identity,
            "environment": snapshot.environment,
            "tensors": [[t.name, t.dtype, list(t.shape)] for t in snapshot.tensors],
            "data_bytes": sum(_sealed_bytes(t.data.nbytes) for t in snapshot.tensors),
        }
    )


def _chunks(length: int) -> Iterator[tuple[int, int, int, bool]]:
    """(index, start, end, last) of the chunks of `length` bytes; an empty tensor has one."""
    for index, start in enumerate(range(0, max(length, 1), CHUNK_BYTES)):
        end = min(start + CHUNK_BYTES, length)
        yield index, start, end, end == length


def _sealed_bytes(length: int) -> int:
    return length + sealing.TAG_BYTES * max(1, -(-length // CHUNK_BYTES))


def _slot_bytes(like: Snapshot) -> int:
    data = sum(_sealed_bytes(tensor.data.nbytes) for tensor in like.tensors)
    # Numbers in the manifest grow longer as a run goes on; a page and a half as much is ample.
    manifest = len(_manifest(like, _PREVIOUS_NONE)) * 3 // 2 + PAGE
    return -(-(_SLOT.size + manifest + data) // PAGE) * PAGE


def _commit_digest(salt: bytes, manifest: bytes) -> str:
    return hashlib.sha256(salt + manifest).hexdigest()


def _refused(what: str) -> SealError:
    return SealError(
        f"{what} does not open with this key",
        "It was altered or the disk is failing: restore a copy of the region; to go on from the "
        "commit before, knowingly, train with --accept-previous",
    )
