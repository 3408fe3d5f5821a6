"""Lanes: threads that share the sealing of pieces into a medium, and the opening of them."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial

from plinius.pm.blocks import private_memory
from plinius.pm.medium import Medium
from plinius.sealing import TAG_BYTES, Sealer
from plinius.slots import pieces
from plinius.slots.pieces import Piece, blocks_of

_SHARE_BYTES = 2 << 20  # less than this is not worth another thread

Aad = Callable[[Piece], bytes]


class Lanes:
    """So many threads, the caller's included, with memory of their own."""

    def __init__(self, medium: Medium, threads: int) -> None:
        if threads < 1:
            raise ValueError("there is at least one thread")
        self._lanes = [_Lane(medium) for _ in range(threads)]
        self._pool = ThreadPoolExecutor(threads, "plinius-lane")

    def seal(
        self,
        todo: Sequence[Piece],
        tensors: Sequence[memoryview],
        sealer: Sealer,
        aad: Aad,
        at: int,
    ) -> None:
        """Seal pieces of tensors, and write them where they belong from offset `at` on."""
        self._run(
            partial(lane.seal, share, tensors, sealer.part(share[-1].number + 1), aad, at)
            for lane, share in zip(self._lanes, self._shares(todo), strict=False)
        )

    def open(
        self,
        todo: Sequence[Piece],
        outs: Sequence[memoryview],
        sealer_of: Callable[[Piece], Sealer],
        aad: Aad,
        at: int,
    ) -> None:
        """Open the pieces that lie from offset `at` on into the tensors' memory.

        Raises SealError: `outs` then mean nothing.
        """
        self._run(
            partial(lane.open, share, outs, sealer_of, aad, at)
            for lane, share in zip(self._lanes, self._shares(todo), strict=False)
        )

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()

    def _shares(self, todo: Sequence[Piece]) -> list[list[Piece]]:
        """Runs of pieces of about the same size, at most one a lane."""
        total = sum(piece.room for piece in todo)
        count = max(1, min(len(self._lanes), total // _SHARE_BYTES))
        shares: list[list[Piece]] = [[] for _ in range(count)]
        before = 0
        for piece in todo:
            shares[before * count // total].append(piece)
            before += piece.room
        return [share for share in shares if share]

    def _run(self, jobs: Iterable[Callable[[], None]]) -> None:
        """Run jobs side by side, the first in this thread; all have ended when it returns."""
        first, *others = [*jobs] or [lambda: None]
        waiting = [self._pool.submit(job) for job in others]
        try:
            first()
        finally:
            wait(waiting)
        for job in waiting:
            job.result()


class _Lane:
    """What one thread works in: all of it is private memory."""

    def __init__(self, medium: Medium) -> None:
        self._medium = medium
        self._writer = medium.writer()
        self._plain = private_memory(pieces.PIECE_BYTES)
        self._sealed = private_memory(pieces.PIECE_BYTES)

    def seal(
        self, todo: list[Piece], tensors: Sequence[memoryview], sealer: Sealer, aad: Aad, at: int
    ) -> None:
        block_bytes = self._medium.block_bytes
        for block in blocks_of(todo, block_bytes):
            start, last = block[0].at, block[-1]
            room = self._writer.room(last.at + last.room - start)
            for piece in block:
                out = room[piece.at - start :][: piece.sealed_bytes]
                sealer.seal_into(piece.number, self._gather(piece, tensors), aad(piece), out)
            self._writer.put(at + start, room)
        self._medium.drain()  # the fence that follows is another thread's

    def open(
        self,
        todo: list[Piece],
        outs: Sequence[memoryview],
        sealer_of: Callable[[Piece], Sealer],
        aad: Aad,
        at: int,
    ) -> None:
        for piece in todo:
            # Copied first: what is authenticated is then what is decrypted.
            sealed = self._sealed[: piece.sealed_bytes]
            self._medium.read_into(at + piece.at, sealed)
            sealer, first = sealer_of(piece), piece.parts[0]
            if len(piece.parts) == 1:
                out = outs[first.tensor][first.start : first.end]
                sealer.open_into(piece.number, sealed, aad(piece), out)
            else:
                plain = self._plain[: piece.sealed_bytes - TAG_BYTES]
                sealer.open_into(piece.number, sealed, aad(piece), plain)
                self._scatter(piece, plain, outs)

    def _gather(self, piece: Piece, tensors: Sequence[memoryview]) -> memoryview:
        """The plaintext of a piece in one run of memory."""
        first = piece.parts[0]
        if len(piece.parts) == 1:
            return tensors[first.tensor][first.start : first.end]
        end = 0
        for part in piece.parts:
            start, end = end, end + part.end - part.start
            self._plain[start:end] = tensors[part.tensor][part.start : part.end]
        return self._plain[:end]

    def _scatter(self, piece: Piece, plain: memoryview, outs: Sequence[memoryview]) -> None:
        end = 0
        for part in piece.parts:
            start, end = end, end + part.end - part.start
            outs[part.tensor][part.start : part.end] = plain[start:end]
