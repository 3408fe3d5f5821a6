"""Pieces: how the tensors of a state are cut, and bundled, into what is sealed at once.

A large tensor is cut into pieces of its own; small ones share pieces, after all large ones. A
sealed piece begins on a page and is at most `PIECE_BYTES` long, so pieces can be written to a
device directly, shared out among threads, and left where they are while their tensors rest.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from plinius.pm.medium import PAGE
from plinius.sealing import TAG_BYTES

PIECE_BYTES = 2 << 20
SMALL_BYTES = 64 * 1024


class Part(NamedTuple):
    """Bytes `start` to `end` of the tensor with that index."""

    tensor: int
    start: int
    end: int


class Piece(NamedTuple):
    """What is sealed at once: its number, its place among the pieces, and what it is made of.

    `sealed_bytes` counts ciphertext and tag, `room` the whole pages that hold them.
    """

    number: int
    at: int
    parts: tuple[Part, ...]
    sealed_bytes: int
    room: int


def cut(sizes: Sequence[int]) -> list[Piece]:
    """The pieces of tensors of so many bytes, numbered from 1; a tensor of 0 bytes has none."""
    pieces, at = [], 0
    for number, parts in enumerate(itertools.chain(_large(sizes), _small(sizes)), 1):
        sealed_bytes = sum(part.end - part.start for part in parts) + TAG_BYTES
        room = -(-sealed_bytes // PAGE) * PAGE
        pieces.append(Piece(number, at, tuple(parts), sealed_bytes, room))
        at += room
    return pieces


def room_for(pieces: Sequence[Piece]) -> int:
    """Bytes that all pieces take, in whole pages."""
    return pieces[-1].at + pieces[-1].room if pieces else 0


def blocks_of(pieces: Sequence[Piece], block_bytes: int) -> Iterator[list[Piece]]:
    """Pieces that follow each other, gathered into runs of at most `block_bytes`, or of one."""
    run: list[Piece] = []
    for piece in pieces:
        follows = run and piece.at == run[-1].at + run[-1].room
        if run and not (follows and piece.at + piece.room - run[0].at <= block_bytes):
            yield run
            run = []
        run.append(piece)
    if run:
        yield run


def _large(sizes: Sequence[int]) -> Iterator[list[Part]]:
    most = PIECE_BYTES - TAG_BYTES
    for tensor, size in enumerate(sizes):
        if size > SMALL_BYTES:
            for start in range(0, size, most):
                yield [Part(tensor, start, min(start + most, size))]


def _small(sizes: Sequence[int]) -> Iterator[list[Part]]:
    bundle: list[Part] = []
    room = PIECE_BYTES - TAG_BYTES
    for tensor, size in enumerate(sizes):
        if 0 < size <= SMALL_BYTES:
            if size > room:
                yield bundle
                bundle, room = [], PIECE_BYTES - TAG_BYTES
            bundle.append(Part(tensor, 0, size))
            room -= size
    if bundle:
        yield bundle
