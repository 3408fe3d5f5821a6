"""Blocks on a real disk: the mapping shows what was written past the page cache."""

import errno
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import plinius.pm.block_writer
from plinius.errors import RegionError, StorageError
from plinius.mirror import Mirror
from plinius.pm.block_writer import BackgroundFile, CopyWriter, RingWriter, private_memory
from plinius.pm.mapped import MappedMedium
from plinius.pm.medium import PAGE, Granularity
from plinius.pm.open_medium import open_medium
from plinius.slots import newest_snapshot
from unit.mirroring import KEY

SIZE = 24 << 20


@pytest.fixture
def medium(tmp_path: Path) -> Iterator[MappedMedium]:
    """A file on a disk, mapped."""
    path = tmp_path / "m"
    path.write_bytes(bytes(SIZE))
    opened = open_medium(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    if opened.granularity is not Granularity.PAGE:
        opened.close()
        pytest.skip("the temporary folder is not on a disk")
    yield opened
    opened.close()


def fill(medium: MappedMedium, blocks: list[tuple[int, bytes]]) -> None:
    writer = medium.writer()
    for offset, data in blocks:
        room = writer.room(len(data))
        room[:] = data
        writer.put(offset, room)
    medium.fence()


def cut(random_: random.Random) -> list[tuple[int, bytes]]:
    """Blocks that do not overlap: whole pages and parts of them, some larger than a buffer."""
    blocks, at = [], 0
    while at < SIZE - (7 << 20):
        length = random_.choice([1, 100, PAGE, 3 * PAGE, PAGE + 1, 2 << 20, 6 << 20])
        at += random_.choice([0, 1, PAGE - at % PAGE])
        blocks.append((at, random_.randbytes(length)))
        at += length
    return blocks


def test_the_mapping_and_the_file_show_what_was_written(
    medium: MappedMedium, tmp_path: Path
) -> None:
    """Aligned or not, past the cache or not; also where the mapping had shown older bytes."""
    chance = random.Random(1)
    for _ in range(3):
        blocks = cut(chance)
        for offset, data in blocks:
            assert len(bytes(medium.read(offset, len(data)))) == len(data)  # now in the page cache
        fill(medium, blocks)
        raw = (tmp_path / "m").read_bytes()
        for offset, data in blocks:
            assert medium.read(offset, len(data)) == data
            assert raw[offset : offset + len(data)] == data
            out = bytearray(len(data))
            medium.read_into(offset, memoryview(out))
            assert out == data


def test_stores_beside_blocks_are_not_lost(medium: MappedMedium) -> None:
    """A word stored through the mapping, on a page that a block is then written next to."""
    medium.store(PAGE - 8, b"the word")
    medium.flush(PAGE - 8, 8)
    fill(medium, [(PAGE, b"b" * (3 * PAGE)), (4 * PAGE + 8, b"c" * 100)])
    medium.store(4 * PAGE, b"beside c")
    medium.flush(4 * PAGE, 8)
    medium.fence()
    assert medium.read(PAGE - 8, 8) == b"the word"
    assert medium.read(4 * PAGE, 8) == b"beside c"
    assert medium.read(4 * PAGE + 8, 100) == b"c" * 100


def test_without_direct_writing_blocks_go_through_the_cache(
    medium: MappedMedium, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a file system without O_DIRECT."""
    monkeypatch.setattr(plinius.pm.block_writer, "_reopen_direct", lambda fd: None)
    blocks = cut(random.Random(2))
    fill(medium, blocks)
    assert all(medium.read(offset, len(data)) == data for offset, data in blocks)


def test_with_larger_system_pages_only_whole_ones_are_written_directly(
    medium: MappedMedium, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page cache may hold the rest of a page, with older bytes; the block is written whole."""
    page = 1 << 16
    monkeypatch.setattr(plinius.pm.block_writer, "SYSTEM_PAGE", page)
    writer = medium.writer()
    background = writer._file  # type: ignore[attr-defined]
    write_all, direct = plinius.pm.block_writer.write_all, []

    def watched(fd: int, data: memoryview, offset: int) -> None:
        if fd == background._direct_fd and data:
            direct.append((offset, offset + len(data)))
        write_all(fd, data, offset)

    monkeypatch.setattr(plinius.pm.block_writer, "write_all", watched)
    blocks = [
        (PAGE, b"a" * (page - PAGE)), (page, b"b" * 2 * page), (4 * page - PAGE, b"c" * 3 * page),
        (8 * page, b"d" * PAGE), (10 * page + 100, b"e" * 2 * page),
    ]  # fmt: skip
    fill(medium, blocks)
    assert all(medium.read(offset, len(data)) == data for offset, data in blocks)
    assert not any(medium.read(0, PAGE))
    if background._direct_fd is not None:
        assert direct == [(page, 3 * page), (4 * page, 6 * page)]


def test_where_direct_writing_is_refused_there_is_none(tmp_path: Path) -> None:
    """File systems say so when the file is opened."""
    path = tmp_path / "m"
    path.write_bytes(b"")

    def refused(*_: object) -> int:
        raise OSError(errno.EINVAL, "Invalid argument")

    fd = os.open(path, os.O_RDWR)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "open", refused)
            assert plinius.pm.block_writer._reopen_direct(fd) is None
    finally:
        os.close(fd)


def test_a_short_write_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pwrite(2) may write less than it was given."""
    path, whole = tmp_path / "m", os.pwrite
    path.write_bytes(bytes(100))
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: whole(fd, data[:7], at))
    fd = os.open(path, os.O_RDWR)
    plinius.pm.block_writer.write_all(fd, memoryview(b"x" * 50), 25)
    os.close(fd)
    assert path.read_bytes() == bytes(25) + b"x" * 50 + bytes(25)


def test_a_block_outside_is_refused(medium: MappedMedium) -> None:
    """Before anything is written."""
    writer = medium.writer()
    with pytest.raises(RegionError):
        writer.put(SIZE - 10, writer.room(PAGE))


def test_a_failed_background_write_is_raised_by_the_fence(
    medium: MappedMedium, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once; the blocks after it are written."""
    whole = plinius.pm.block_writer.write_all

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(plinius.pm.block_writer, "write_all", full)
    with pytest.raises(StorageError):
        fill(medium, [(0, b"a" * PAGE)])
    monkeypatch.setattr(plinius.pm.block_writer, "write_all", whole)
    fill(medium, [(0, b"b" * PAGE)])
    assert medium.read(0, PAGE) == b"b" * PAGE


@pytest.mark.parametrize("kind", ["copy", "ring"])
def test_room_is_private_and_as_large_as_asked(
    kind: str, tmp_path: Path, medium: MappedMedium
) -> None:
    """Also larger than a buffer, and aligned to a page, as direct writes need."""
    if kind == "copy":
        writer = CopyWriter(lambda offset, data: None)
        background = None
    else:
        background = BackgroundFile(os.open(tmp_path / "m", os.O_RDWR))
        writer = RingWriter(background, lambda offset, length: None)  # type: ignore[assignment]
    for length in (1, PAGE, 5 << 20, 3, 9 << 20):
        room = writer.room(length)
        assert len(room) == length
        room[-1:] = b"x"
        assert torch.frombuffer(room, dtype=torch.uint8).data_ptr() % PAGE == 0
    if background:
        background.close()


def test_two_threads_write_the_same_as_one(tmp_path: Path) -> None:
    """A state of many chunks, on disk: equal digests, and both open."""
    torch.manual_seed(0)
    state = {f"t{number}": torch.rand(700_001) for number in range(8)}
    digests = []
    for threads in (1, 2, 3):
        path = tmp_path / f"{threads}.region"
        with Mirror.open(path, KEY, state, threads=threads) as mirror:
            for iteration in (1, 2, 3):
                for tensor in state.values():
                    tensor.add_(0)
                mirror.mirror_out(iteration)
            expected = mirror.digest(3)
        assert newest_snapshot(path, KEY).digest() == expected
        with Mirror.open(path, KEY, state, threads=4 - threads) as mirror:
            assert mirror.mirror_in() == 3
            digests.append(mirror.digest(3))
    assert len({*digests}) == 1


def test_a_forked_child_does_not_write_to_its_parents_memory() -> None:
    """Buffers are private to their process."""
    buffer = private_memory(PAGE)
    buffer[:4] = b"mine"
    child = os.fork()
    if child == 0:
        buffer[:4] = b"else"
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert bytes(buffer[:4]) == b"mine"
