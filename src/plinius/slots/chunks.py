"""Chunks: how the tensors of a state are divided into what is sealed at once.

A large tensor is cut into chunks of its own; small tensors share chunks, after all large ones. A
sealed chunk begins on a page and is at most `CHUNK_BYTES` long. So chunks can be written to a
device directly, shared out among threads, and stay in their slot while their bytes are unchanged.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from plinius.pm.medium import PAGE, round_up
from plinius.sealing import TAG_BYTES

CHUNK_BYTES = 2 << 20
SMALL_BYTES = 64 * 1024


class Segment(NamedTuple):
    """Bytes `start` to `end` of the tensor with that index."""

    tensor: int
    start: int
    end: int


class Chunk(NamedTuple):
    """What is sealed at once: its number, its offset from the first chunk, and its segments.

    `sealed_bytes` counts ciphertext and tag, `room` the whole pages that hold them.
    """

    number: int
    offset: int
    segments: tuple[Segment, ...]
    sealed_bytes: int
    room: int


def cut(sizes: Sequence[int]) -> list[Chunk]:
    """The chunks of tensors of these sizes in bytes, numbered from 1.

    A tensor of 0 bytes is in no chunk.
    """
    chunks, offset = [], 0
    for number, segments in enumerate(itertools.chain(_large(sizes), _small(sizes)), 1):
        sealed_bytes = sum(segment.end - segment.start for segment in segments) + TAG_BYTES
        room = round_up(sealed_bytes, PAGE)
        chunks.append(Chunk(number, offset, tuple(segments), sealed_bytes, room))
        offset += room
    return chunks


def room_for(chunks: Sequence[Chunk]) -> int:
    """Bytes that all chunks take, in whole pages."""
    return chunks[-1].offset + chunks[-1].room if chunks else 0


def blocks_of(chunks: Sequence[Chunk], block_bytes: int) -> Iterator[list[Chunk]]:
    """Chunks that follow each other in a slot, in blocks of at most `block_bytes`.

    A chunk that is larger is a block of its own.
    """
    block: list[Chunk] = []
    for chunk in chunks:
        follows = block and chunk.offset == block[-1].offset + block[-1].room
        if block and not (follows and chunk.offset + chunk.room - block[0].offset <= block_bytes):
            yield block
            block = []
        block.append(chunk)
    if block:
        yield block


def _large(sizes: Sequence[int]) -> Iterator[list[Segment]]:
    most = CHUNK_BYTES - TAG_BYTES
    for tensor, size in enumerate(sizes):
        if size > SMALL_BYTES:
            for start in range(0, size, most):
                yield [Segment(tensor, start, min(start + most, size))]


def _small(sizes: Sequence[int]) -> Iterator[list[Segment]]:
    bundle: list[Segment] = []
    free = CHUNK_BYTES - TAG_BYTES
    for tensor, size in enumerate(sizes):
        if 0 < size <= SMALL_BYTES:
            if size > free:
                yield bundle
                bundle, free = [], CHUNK_BYTES - TAG_BYTES
            bundle.append(Segment(tensor, 0, size))
            free -= size
    if bundle:
        yield bundle
