"""Workers: threads that share the sealing of chunks into a medium, and the opening of them."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial

import xxhash

from plinius.pm.block_writer import private_memory
from plinius.pm.medium import Medium
from plinius.sealing import TAG_BYTES, Sealer, fresh
from plinius.slots.chunks import CHUNK_BYTES, Chunk, blocks_of

_SHARE_BYTES = 2 << 20  # less than this is not worth another thread

Aad = Callable[[Chunk], bytes]
Fingerprints = dict[int, bytes]


class Workers:
    """So many threads, the caller's included, with memory of their own."""

    def __init__(self, medium: Medium, threads: int) -> None:
        if threads < 1:
            raise ValueError("there is at least one thread")
        self._medium, self._threads = medium, threads
        self._seed = int.from_bytes(fresh(8), "little")  # so that no data is made to collide
        self._start()

    def _start(self) -> None:
        self._workers = [_Worker(self._medium, self._seed) for _ in range(self._threads)]
        self._pool = ThreadPoolExecutor(self._threads, "plinius-worker")

    def fingerprints(self, chunks: Sequence[Chunk], tensors: Sequence[memoryview]) -> Fingerprints:
        """The fingerprints of chunks as they are now, by number."""
        found: Fingerprints = {}
        self._run(
            partial(worker.fingerprint, share, tensors, found)
            for worker, share in zip(self._workers, self._shares(chunks), strict=False)
        )
        return found

    def seal(
        self,
        todo: Sequence[Chunk],
        tensors: Sequence[memoryview],
        look: set[int],
        sealer: Sealer,
        aad: Aad,
        at: int,
    ) -> Fingerprints:
        """Seal chunks of tensors, and write them where they belong from offset `at` on.

        Returns the fingerprints of what was sealed, of the chunks in `look`.
        """
        found: Fingerprints = {}
        self._run(
            partial(
                worker.seal, share, tensors, look, found,
                sealer.split_off(share[-1].number + 1), aad, at,
            )
            for worker, share in zip(self._workers, self._shares(todo), strict=False)
        )  # fmt: skip
        return found

    def open(
        self,
        todo: Sequence[Chunk],
        outs: Sequence[memoryview],
        sealer_of: Callable[[Chunk], Sealer],
        aad: Aad,
        at: int,
    ) -> None:
        """Open the chunks that lie from offset `at` on into the tensors' memory.

        Raises SealError: `outs` then mean nothing.
        """
        self._run(
            partial(worker.open, share, outs, sealer_of, aad, at)
            for worker, share in zip(self._workers, self._shares(todo), strict=False)
        )

    def quiesce(self) -> None:
        """After an exception: wait for whatever is under way still, and begin afresh."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._medium.quiesce()
        self._start()

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()

    def _shares(self, todo: Sequence[Chunk]) -> list[list[Chunk]]:
        """Runs of chunks of about the same size, at most one a worker."""
        total = sum(chunk.room for chunk in todo)
        count = max(1, min(len(self._workers), total // _SHARE_BYTES))
        shares: list[list[Chunk]] = [[] for _ in range(count)]
        before = 0
        for chunk in todo:
            shares[before * count // total].append(chunk)
            before += chunk.room
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


class _Worker:
    """What one thread works in: all of it is private memory."""

    def __init__(self, medium: Medium, seed: int) -> None:
        self._medium, self._seed = medium, seed
        self._writer = medium.writer()
        self._plain = private_memory(CHUNK_BYTES)
        self._sealed = private_memory(CHUNK_BYTES)

    def fingerprint(
        self, chunks: list[Chunk], tensors: Sequence[memoryview], found: Fingerprints
    ) -> None:
        for chunk in chunks:
            found[chunk.number] = self._fingerprint(self._gathered(chunk, tensors))

    def seal(
        self,
        todo: list[Chunk],
        tensors: Sequence[memoryview],
        look: set[int],
        found: Fingerprints,
        sealer: Sealer,
        aad: Aad,
        at: int,
    ) -> None:
        block_bytes = self._medium.block_bytes
        for block in blocks_of(todo, block_bytes):
            start, last = block[0].at, block[-1]
            room = self._writer.room(last.at + last.room - start)
            for chunk in block:
                out = room[chunk.at - start :][: chunk.sealed_bytes]
                plain = self._gathered(chunk, tensors)
                if chunk.number in look:
                    # Copied first: what is fingerprinted is then what is sealed, whoever writes.
                    plain = plain if len(chunk.parts) > 1 else self._copied(plain)
                    found[chunk.number] = self._fingerprint(plain)
                sealer.seal_into(chunk.number, plain, aad(chunk), out)
            self._writer.put(at + start, room)
        self._medium.drain()  # the fence that follows is another thread's

    def open(
        self,
        todo: list[Chunk],
        outs: Sequence[memoryview],
        sealer_of: Callable[[Chunk], Sealer],
        aad: Aad,
        at: int,
    ) -> None:
        for chunk in todo:
            # Copied first: what is authenticated is then what is decrypted.
            sealed = self._sealed[: chunk.sealed_bytes]
            self._medium.read_into(at + chunk.at, sealed)
            sealer, first = sealer_of(chunk), chunk.parts[0]
            if len(chunk.parts) == 1:
                out = outs[first.tensor][first.start : first.end]
                sealer.open_into(chunk.number, sealed, aad(chunk), out)
            else:
                plain = self._plain[: chunk.sealed_bytes - TAG_BYTES]
                sealer.open_into(chunk.number, sealed, aad(chunk), plain)
                self._scatter(chunk, plain, outs)

    def _fingerprint(self, plain: memoryview) -> bytes:
        return xxhash.xxh3_128_digest(plain, seed=self._seed)

    def _copied(self, plain: memoryview) -> memoryview:
        copy = self._plain[: len(plain)]
        copy[:] = plain
        return copy

    def _gathered(self, chunk: Chunk, tensors: Sequence[memoryview]) -> memoryview:
        """The plaintext of a chunk in one run of memory."""
        first = chunk.parts[0]
        if len(chunk.parts) == 1:
            return tensors[first.tensor][first.start : first.end]
        end = 0
        for part in chunk.parts:
            start, end = end, end + part.end - part.start
            self._plain[start:end] = tensors[part.tensor][part.start : part.end]
        return self._plain[:end]

    def _scatter(self, chunk: Chunk, plain: memoryview, outs: Sequence[memoryview]) -> None:
        end = 0
        for part in chunk.parts:
            start, end = end, end + part.end - part.start
            outs[part.tensor][part.start : part.end] = plain[start:end]
