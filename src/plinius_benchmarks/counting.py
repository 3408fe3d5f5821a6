"""A medium that counts what passes through it to another one."""

from plinius.pm.block_writer import CopyWriter, Writer
from plinius.pm.medium import LINE, WORD, Granularity, Medium
from plinius.structures.list_operations import Int64s, Uint64s, list_operations


class CountingMedium:
    """Counts fences, lines written back (flushed, or streamed past the cache), bytes stored."""

    def __init__(self, medium: Medium) -> None:
        self._medium = medium
        self._lists = list_operations(medium)
        self.reset()

    def reset(self) -> None:
        """Start from nothing."""
        self._fences = self._lines = self._bytes = 0

    def counts(self) -> dict[str, int]:
        """Since the last reset."""
        return {
            "fences": self._fences,
            "flushed_lines": self._lines,
            "bytes_written": self._bytes,
        }

    @property
    def size(self) -> int:
        """See Medium."""
        return self._medium.size

    @property
    def granularity(self) -> Granularity:
        """See Medium."""
        return self._medium.granularity

    def read(self, offset: int, length: int) -> memoryview:
        """See Medium."""
        return self._medium.read(offset, length)

    def read_into(self, offset: int, out: memoryview) -> None:
        """See Medium."""
        self._medium.read_into(offset, out)

    @property
    def block_bytes(self) -> int:
        """See Medium."""
        return self._medium.block_bytes

    def writer(self) -> Writer:
        """See Medium."""
        return CopyWriter(self.write)

    def store(self, offset: int, data: bytes | memoryview) -> None:
        """See Medium."""
        self._bytes += len(data)
        self._medium.store(offset, data)

    def store_word(self, offset: int, word: int) -> None:
        """See Medium."""
        self._bytes += WORD
        self._medium.store_word(offset, word)

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """See Medium."""
        self._bytes += len(data)
        self._lines += _lines(offset, len(data))
        self._medium.write(offset, data)

    def copy(self, to: int, source: int, length: int) -> None:
        """See Medium."""
        self._bytes += length
        self._lines += _lines(to, length)
        self._medium.copy(to, source, length)

    def flush(self, offset: int, length: int) -> None:
        """See Medium."""
        self._lines += _lines(offset, length)
        self._medium.flush(offset, length)

    def view(self, offset: int, length: int) -> memoryview:
        """See Medium."""
        return self._medium.view(offset, length)

    def quiesce(self) -> None:
        """See Medium."""
        self._medium.quiesce()

    def drain(self) -> None:
        """See Medium. Not counted as a fence."""
        self._medium.drain()

    def fence(self) -> None:
        """See Medium."""
        self._fences += 1
        self._medium.fence()

    def store_words(self, base: int, length: int, offsets: Int64s, words: Uint64s) -> None:
        """See ListOperations."""
        self._bytes += WORD * len(offsets)
        self._lists.store_words(base, length, offsets, words)

    def swap_words(self, base: int, length: int, first: Int64s, second: Int64s) -> None:
        """See ListOperations."""
        self._bytes += 2 * WORD * len(first)
        self._lists.swap_words(base, length, first, second)

    def flush_lines(self, base: int, length: int, lines: Int64s) -> None:
        """See ListOperations."""
        self._lines += len(lines)
        self._lists.flush_lines(base, length, lines)

    def copy_lines(self, to: int, source: int, length: int, lines: Int64s) -> None:
        """See ListOperations."""
        self._bytes += LINE * len(lines)
        self._lines += len(lines)
        self._lists.copy_lines(to, source, length, lines)

    def resize(self, size: int) -> None:
        """See Medium."""
        self._medium.resize(size)

    def release(self, offset: int, length: int) -> None:
        """See Medium."""
        self._medium.release(offset, length)

    def reserve(self, offset: int, length: int) -> None:
        """See Medium."""
        self._medium.reserve(offset, length)

    def close(self) -> None:
        """See Medium."""
        self._medium.close()


def _lines(offset: int, length: int) -> int:
    """Cache lines that a range touches."""
    return -(-(offset + length) // LINE) - offset // LINE if length else 0
