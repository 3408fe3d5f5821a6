"""Workers: threads that share the work of sealing chunks into a medium, and of opening them.

Chunks are sealed in private memory and then copied to the medium, and copied to private memory
before they are opened: AES-GCM implementations read their own output back to authenticate it, so
in memory that the host can write, the host could choose what is authenticated.
"""

from array import array
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from operator import itemgetter
from typing import NamedTuple

import xxhash

from plinius.pm.block_writer import Writer
from plinius.pm.medium import Medium
from plinius.pm.private_memory import gather, private_memory
from plinius.sealing import TAG_BYTES, Sealer, fresh
from plinius.slots.chunks import CHUNK_BYTES, Chunk, blocks_of
from plinius.snapshot import TensorBytes
from plinius.threads import Job, JobThread

_SHARE_BYTES = 2 << 20  # less than this is not worth another thread

Aad = Callable[[Chunk], bytes]
Fingerprints = dict[int, bytes]
Tensors = Sequence[TensorBytes]


class Workers:
    """`threads` threads, the caller's included, each with memory of its own."""

    def __init__(self, medium: Medium, threads: int) -> None:
        if threads < 1:
            raise ValueError("threads must be at least 1")
        self._medium, self._count = medium, threads
        self._seed = int.from_bytes(fresh(8), "little")  # secret: no data can be chosen to collide
        self._workers = self._new_workers()
        self._threads = [JobThread("plinius-worker") for _ in range(threads - 1)]

    def _new_workers(self) -> "list[_Worker]":
        return [_Worker(self._medium, self._seed) for _ in range(self._count)]

    def fingerprints(self, chunks: Sequence[Chunk], tensors: Tensors) -> Fingerprints:
        """The fingerprints (XXH3, 16 bytes) of chunks as they are now, by number."""
        found: Fingerprints = {}
        self._run(
            partial(worker.fingerprint, share, tensors, found)
            for worker, share in zip(self._workers, self._shares(chunks), strict=False)
        )
        return found

    def seal(
        self,
        dirty: Sequence[Chunk],
        tensors: Tensors,
        fingerprinted: set[int],
        sealer: Sealer,
        aad: Aad,
        at: int,
    ) -> Fingerprints:
        """Seal chunks, and write each to the medium at `at` and its own offset.

        `aad` gives the associated data of a chunk. Returns the fingerprints of what was sealed,
        for the chunks whose numbers are in `fingerprinted`.
        """
        found: Fingerprints = {}
        for worker in self._workers:
            worker.writer = worker.writer or self._medium.writer()
        self._run(
            partial(
                worker.seal, share, tensors, fingerprinted, found,
                sealer.split_off(share[-1].number + 1), aad, at,
            )
            for worker, share in zip(self._workers, self._shares(dirty), strict=False)
        )  # fmt: skip
        return found

    def open(
        self,
        chunks: Sequence[Chunk],
        outs: Sequence[memoryview],
        sealer_of: Callable[[Chunk], Sealer],
        aad: Aad,
        at: int,
    ) -> None:
        """Open the chunks that are stored from offset `at` on into `outs`, one for each tensor.

        Raises SealError; the bytes in `outs` are then undefined.
        """
        self._run(
            partial(worker.open, share, outs, sealer_of, aad, at)
            for worker, share in zip(self._workers, self._shares(chunks), strict=False)
        )

    def quiesce(self) -> None:
        """After an exception: wait until no thread writes any more, and take new buffers."""
        for thread in self._threads:
            thread.wait()
        self._medium.quiesce()
        self._workers = self._new_workers()

    def close(self) -> None:
        """End the threads."""
        for thread in self._threads:
            thread.close()

    def _shares(self, chunks: Sequence[Chunk]) -> list[list[Chunk]]:
        """The chunks in order, in parts of about the same size: at most one a worker."""
        total = sum(chunk.room for chunk in chunks)
        count = max(1, min(len(self._workers), total // _SHARE_BYTES))
        shares: list[list[Chunk]] = [[] for _ in range(count)]
        before = 0
        for chunk in chunks:
            shares[before * count // total].append(chunk)
            before += chunk.room
        return [share for share in shares if share]

    def _run(self, calls: Iterable[Callable[[], None]]) -> None:
        """Make calls at the same time, the first in this thread; all have ended when it returns.

        After an interrupt some may still run: `quiesce` waits for them.
        """
        first, *others = [*calls] or [lambda: None]
        jobs = [Job(other) for other in others]
        for thread, job in zip(self._threads, jobs, strict=False):
            thread.submit(job)
        try:
            first()
        finally:
            for job in jobs:
                job.wait()
        for job in jobs:
            if job.error is not None:
                raise job.error


class _Sources(NamedTuple):
    """Where the plaintext of a chunk of several tensors comes from: each is in it as a whole."""

    chunk: Chunk
    tensors: Callable[[Tensors], tuple[TensorBytes, ...]]
    sizes: "array[int]"

    @classmethod
    def of(cls, chunk: Chunk) -> "_Sources":
        assert all(segment.start == 0 for segment in chunk.segments)
        indices = [segment.tensor for segment in chunk.segments]
        sizes = array("Q", [segment.end for segment in chunk.segments])
        return cls(chunk, itemgetter(*indices), sizes)


class _Worker:
    """What one thread needs: its writer and its buffers, all private memory."""

    def __init__(self, medium: Medium, seed: int) -> None:
        self._medium, self._seed = medium, seed
        self.writer: Writer | None = None
        self._sources: dict[int, _Sources] = {}
        self._plain = private_memory(CHUNK_BYTES)
        self._sealed = private_memory(CHUNK_BYTES)

    def fingerprint(self, chunks: list[Chunk], tensors: Tensors, found: Fingerprints) -> None:
        for chunk in chunks:
            found[chunk.number] = self._fingerprint(self._gathered(chunk, tensors))

    def seal(
        self,
        dirty: list[Chunk],
        tensors: Tensors,
        fingerprinted: set[int],
        found: Fingerprints,
        sealer: Sealer,
        aad: Aad,
        at: int,
    ) -> None:
        assert self.writer is not None
        block_bytes = self._medium.block_bytes
        for block in blocks_of(dirty, block_bytes):
            start, last = block[0].offset, block[-1]
            room = self.writer.room(last.offset + last.room - start)
            for chunk in block:
                out = room[chunk.offset - start :][: chunk.sealed_bytes]
                plain = self._gathered(chunk, tensors)
                if chunk.number in fingerprinted:
                    # Copied first, so that what is fingerprinted is what is sealed, whoever writes.
                    plain = plain if len(chunk.segments) > 1 else self._copied(plain)
                    found[chunk.number] = self._fingerprint(plain)
                sealer.seal_into(chunk.number, plain, aad(chunk), out)
            self.writer.put(at + start, room)
        self._medium.drain()  # the fence that follows is another thread's

    def open(
        self,
        chunks: list[Chunk],
        outs: Sequence[memoryview],
        sealer_of: Callable[[Chunk], Sealer],
        aad: Aad,
        at: int,
    ) -> None:
        for chunk in chunks:
            # Copied first, so that what is authenticated is what is decrypted.
            sealed = self._sealed[: chunk.sealed_bytes]
            self._medium.read_into(at + chunk.offset, sealed)
            sealer, first = sealer_of(chunk), chunk.segments[0]
            if len(chunk.segments) == 1:
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

    def _gathered(self, chunk: Chunk, tensors: Tensors) -> memoryview:
        """The plaintext of a chunk in contiguous memory."""
        segments = chunk.segments
        if len(segments) == 1:
            return tensors[segments[0].tensor].data[segments[0].start : segments[0].end]
        sources = self._sources.get(chunk.number)
        if sources is None or sources.chunk is not chunk:
            sources = self._sources[chunk.number] = _Sources.of(chunk)
        plain = self._plain[: chunk.sealed_bytes - TAG_BYTES]
        gather(plain, [it.address for it in sources.tensors(tensors)], sources.sizes)
        return plain

    def _scatter(self, chunk: Chunk, plain: memoryview, outs: Sequence[memoryview]) -> None:
        end = 0
        for segment in chunk.segments:
            start, end = end, end + segment.end - segment.start
            outs[segment.tensor][segment.start : segment.end] = plain[start:end]
