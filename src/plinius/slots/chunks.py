"""Pieces: how the tensors of a state are cut, and bundled, into what is sealed at once.

A large tensor is cut into chunks of its own; small ones share chunks, after all large ones. A
sealed chunk begins on a page and is at most `CHUNK_BYTES` long, so chunks can be written to a
device directly, shared out among threads, and left where they are while their tensors rest.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from plinius.pm.medium import PAGE
from plinius.sealing import TAG_BYTES

CHUNK_BYTES = 2 << 20
SMALL_BYTES = 64 * 1024


class Segment(NamedTuple):
    """Bytes `start` to `end` of the tensor with that index."""

    tensor: int
    start: int
    end: int


class Chunk(NamedTuple):
    """What is sealed at once: its number, its place among the chunks, and what it is made of.

    `sealed_bytes` counts ciphertext and tag, `room` the whole pages that hold them.
    """

    number: int
    at: int
    parts: tuple[Segment, ...]
    sealed_bytes: int
    room: int


def cut(sizes: Sequence[int]) -> list[Chunk]:
    """The chunks of tensors of so many bytes, numbered from 1; a tensor of 0 bytes has none."""
    chunks, at = [], 0
    for number, parts in enumerate(itertools.chain(_large(sizes), _small(sizes)), 1):
        sealed_bytes = sum(part.end - part.start for part in parts) + TAG_BYTES
        room = -(-sealed_bytes // PAGE) * PAGE
        chunks.append(Chunk(number, at, tuple(parts), sealed_bytes, room))
        at += room
    return chunks


def room_for(chunks: Sequence[Chunk]) -> int:
    """Bytes that all chunks take, in whole pages."""
    return chunks[-1].at + chunks[-1].room if chunks else 0


def blocks_of(chunks: Sequence[Chunk], block_bytes: int) -> Iterator[list[Chunk]]:
    """Pieces that follow each other, gathered into runs of at most `block_bytes`, or of one."""
    run: list[Chunk] = []
    for chunk in chunks:
        follows = run and chunk.at == run[-1].at + run[-1].room
        if run and not (follows and chunk.at + chunk.room - run[0].at <= block_bytes):
            yield run
            run = []
        run.append(chunk)
    if run:
        yield run


def _large(sizes: Sequence[int]) -> Iterator[list[Segment]]:
    most = CHUNK_BYTES - TAG_BYTES
    for tensor, size in enumerate(sizes):
        if size > SMALL_BYTES:
            for start in range(0, size, most):
                yield [Segment(tensor, start, min(start + most, size))]


def _small(sizes: Sequence[int]) -> Iterator[list[Segment]]:
    bundle: list[Segment] = []
    room = CHUNK_BYTES - TAG_BYTES
    for tensor, size in enumerate(sizes):
        if 0 < size <= SMALL_BYTES:
            if size > room:
                yield bundle
                bundle, room = [], CHUNK_BYTES - TAG_BYTES
            bundle.append(Segment(tensor, 0, size))
            room -= size
    if bundle:
        yield bundle
