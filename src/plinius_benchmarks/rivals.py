"""Rivals: the ways there are to save a model's tensors, and the limits of the machine.

Each saves the same state_dict into a folder and restores it into the same tensors. What is saved
is made durable (fsync), as a commit of the mirror is. Restoring reads a file that the page cache
holds; on a disk the mirror reads from the disk.
"""

import io
import mmap
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.checkpoint.state_dict_saver import save as save_checkpoint

from plinius import sealing
from plinius.state.tensor_memory import Memory

Tensors = dict[str, torch.Tensor]
Act = Callable[[], object]
_CHUNK = 512 << 10
_AAD = bytes(32)


class Rival(NamedTuple):
    """How to save and how to restore.

    `before` changes what is saved, as a training step does, and `after` ends a save; neither is
    part of its time.
    """

    name: str
    save: Act
    restore: Act | None
    after: Act | None = None
    before: Act | None = None


def sealer() -> sealing.Sealer:
    """One under a fresh key: no number of it was used."""
    return sealing.derive(bytes(32), "bench", sealing.fresh(sealing.SALT_BYTES))


def torch_save(tensors: Tensors, folder: Path) -> Rival:
    """torch.save and fsync; torch.load, mapped, and copied into place."""
    path = folder / "model.pt"

    def save() -> None:
        with path.open("wb") as file:
            torch.save(tensors, file)
            file.flush()
            os.fsync(file.fileno())

    def restore() -> None:
        _put(tensors, torch.load(path, weights_only=True, mmap=True))

    return Rival("torch.save", save, restore)


def torch_save_sealed(tensors: Tensors, folder: Path) -> Rival:
    """torch.save into memory, sealed as a whole, written and fsynced; and the way back."""
    path = folder / "model.sealed"
    used: list[sealing.Sealer] = []

    def save() -> None:
        plain = io.BytesIO()
        torch.save(tensors, plain)
        used[:] = [sealer()]
        sealed = used[0].seal(0, plain.getbuffer(), b"")
        with path.open("wb") as file:
            file.write(sealed)
            file.flush()
            os.fsync(file.fileno())

    def restore() -> None:
        plain = used[0].open(0, path.read_bytes(), b"")
        _put(tensors, torch.load(io.BytesIO(plain), weights_only=True))

    return Rival("torch.save + AES-GCM", save, restore)


def safetensors(tensors: Tensors, folder: Path) -> Rival:
    """save_file and fsync; load_file and copied into place."""
    path = folder / "model.safetensors"

    def save() -> None:
        save_file(tensors, path)
        with path.open("rb") as file:
            os.fsync(file.fileno())

    def restore() -> None:
        _put(tensors, load_file(path))

    return Rival("safetensors", save, restore)


def distributed_checkpoint(tensors: Tensors, folder: Path) -> Rival:
    """torch.distributed.checkpoint into files, which it fsyncs; loaded in place."""
    where = folder / "dcp"

    def save() -> None:
        writer = FileSystemWriter(where, single_file_per_rank=True, sync_files=True)
        save_checkpoint(tensors, storage_writer=writer)

    def restore() -> None:
        load(dict(tensors), storage_reader=FileSystemReader(where))

    return Rival("torch.distributed.checkpoint", save, restore)


def asynchronous_checkpoint(tensors: Tensors, folder: Path) -> tuple[Rival, Rival]:
    """The same, asynchronously: how long the caller is held, and until all of it lasts."""
    where = folder / "async"
    last: list[Any] = []

    def begin() -> None:
        writer = FileSystemWriter(where, single_file_per_rank=True, sync_files=True)
        last[:] = [async_save(tensors, storage_writer=writer)]

    def wait() -> None:
        last[0].result()

    def whole() -> None:
        begin()
        wait()

    return (
        Rival("torch.distributed.checkpoint, async: held", begin, None, wait),
        Rival("torch.distributed.checkpoint, async: all", whole, None),
    )


def buffer_by_buffer(tensors: Tensors, folder: Path) -> Rival:
    """The paper's own baseline: each buffer sealed, written and fsynced by itself."""
    path = folder / "buffers"
    memories = [Memory(tensor).data for tensor in tensors.values()]
    used: list[sealing.Sealer] = []

    def save() -> None:
        used[:] = [sealer()]
        with path.open("wb", buffering=0) as file:
            for number, data in enumerate(memories):
                file.write(used[0].seal(number, data, b""))
                os.fsync(file.fileno())

    def restore() -> None:
        with path.open("rb", buffering=0) as file:
            for number, data in enumerate(memories):
                sealed = file.read(len(data) + sealing.TAG_BYTES)
                used[0].open_into(number, sealed, b"", data)

    return Rival("each buffer sealed and fsynced", save, restore)


class Limits:
    """What the machine can do at most with as many bytes: AES-GCM, memcpy, direct writing."""

    def __init__(self, tensors: Tensors, folder: Path, threads: int) -> None:
        self._plain = [Memory(tensor).data for tensor in tensors.values()]
        self._whole = sum(map(len, self._plain))
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads)
        self._jobs: list[tuple[int, memoryview, memoryview]] = []
        room = sum(len(d) + (len(d) // _CHUNK + 1) * sealing.TAG_BYTES for d in self._plain)
        sealed, at = memoryview(bytearray(room)), 0
        for data in self._plain:
            for start in range(0, len(data), _CHUNK):
                piece = data[start : start + _CHUNK]
                out = sealed[at : at + len(piece) + sealing.TAG_BYTES]
                self._jobs.append((len(self._jobs), piece, out))
                at += len(out)
        self._sealers: list[sealing.Sealer] = []
        self._copy = memoryview(bytearray(self._whole))
        self._folder = folder
        self._fd: int | None = None

    def aes(self) -> Rival:
        """Sealing and opening, from memory to memory."""

        def seal(part: sealing.Sealer, jobs: list[tuple[int, memoryview, memoryview]]) -> None:
            for number, plain, out in jobs:
                part.seal_into(number, plain, _AAD, out)

        def unseal(part: sealing.Sealer, jobs: list[tuple[int, memoryview, memoryview]]) -> None:
            for number, plain, out in jobs:
                part.open_into(number, out, _AAD, plain)

        def save() -> None:
            whole = sealer()
            self._sealers = [whole.split_off(share[-1][0] + 1) for share in self._shares()]
            self._together(seal)

        def restore() -> None:
            self._together(unseal)

        name = "AES-GCM" if self._threads == 1 else f"AES-GCM, {self._threads} threads"
        return Rival(name, save, restore)

    def memcpy(self) -> Rival:
        """Copying, from memory to memory."""

        def save() -> None:
            at = 0
            for data in self._plain:
                self._copy[at : at + len(data)] = data
                at += len(data)

        def restore() -> None:
            at = 0
            for data in self._plain:
                data[:] = self._copy[at : at + len(data)]
                at += len(data)

        return Rival("memcpy", save, restore)

    def direct(self) -> Rival | None:
        """O_DIRECT and fdatasync of as many bytes, or None where there is no such thing."""
        size = self._whole // mmap.PAGESIZE * mmap.PAGESIZE
        try:
            fd = os.open(self._folder / "direct", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
            os.posix_fallocate(fd, 0, size)
        except OSError:
            return None
        self._fd = fd
        buffer = memoryview(mmap.mmap(-1, size))
        buffer[:] = self._copy[:size]

        def save() -> None:
            rest = 0
            while rest < size:
                rest += os.pwrite(fd, buffer[rest:], rest)
            os.fdatasync(fd)

        return Rival("O_DIRECT + fdatasync", save, None)

    def close(self) -> None:
        """Let go of threads and files."""
        self._pool.shutdown()
        if self._fd is not None:
            os.close(self._fd)

    def _shares(self) -> list[list[tuple[int, memoryview, memoryview]]]:
        each = -(-len(self._jobs) // self._threads)
        return [self._jobs[start : start + each] for start in range(0, len(self._jobs), each)]

    def _together(self, do: Callable[..., None]) -> None:
        shares = zip(self._sealers, self._shares(), strict=True)
        if self._threads == 1:
            for part, jobs in shares:
                do(part, jobs)
            return
        for running in [self._pool.submit(do, part, jobs) for part, jobs in shares]:
            running.result()


def _put(tensors: Tensors, loaded: Tensors) -> None:
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(loaded[name])
