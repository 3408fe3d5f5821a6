"""A medium whose stores are flushed by the processor: DAX with MAP_SYNC, or a memory file system.

On DAX this makes them durable. On tmpfs the same instructions run, but only processes fail there
without losing the memory, so the granularity is PROCESS.
"""

import mmap
import os

from plinius.errors import PliniusError
from plinius.pm._persist import ffi, lib
from plinius.pm.block_writer import MEMORY_BLOCK_BYTES, CopyWriter
from plinius.pm.mapped import MappedMedium
from plinius.pm.medium import Granularity, check_native

_MAP_SHARED_VALIDATE, _MAP_SYNC = 0x03, 0x80000  # of <linux/mman.h>; Python has no names for them
PWB_VARIABLE = "PLINIUS_PWB"
"""The environment variable that names the write-back instruction to use."""
_PWB_KINDS = {"clwb": 3, "clflushopt": 2, "clflush": 1, "dc-cvap": 4}  # best first


class CacheLineMedium(MappedMedium):
    """A file mapped with MAP_SYNC (CACHE_LINE), or in a memory file system (PROCESS)."""

    granularity = Granularity.CACHE_LINE
    block_bytes = MEMORY_BLOCK_BYTES

    def __init__(
        self,
        fd: int,
        granularity: Granularity = Granularity.CACHE_LINE,
        *,
        writable: bool = True,
        pwb: str | None = None,
    ) -> None:
        """Raises OSError if the kernel cannot map the file in this way, and what pwb_name does."""
        self.granularity = granularity
        sync = granularity is Granularity.CACHE_LINE
        flags = _MAP_SHARED_VALIDATE | _MAP_SYNC if sync else mmap.MAP_SHARED
        super().__init__(fd, flags, writable=writable)
        self.pwb = _PWB_KINDS[pwb_name(pwb)] if writable else 0

    def read_into(self, offset: int, out: memoryview) -> None:
        """See Medium."""
        self._check_whole(offset, len(out))
        check_native(lib.pl_fetch(ffi.from_buffer(out), self._address + offset, len(out)))

    def writer(self) -> CopyWriter:
        """See Medium."""
        return CopyWriter(self.write)

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """See Medium. Uses streaming stores, which pass the processor's cache."""
        self._check_whole(offset, len(data))
        source = ffi.from_buffer(data)
        check_native(lib.pl_copy(self.pwb, self._address + offset, source, len(data)))

    def copy(self, to: int, source: int, length: int) -> None:
        """See Medium. Uses streaming stores."""
        self._check(to, length)
        self._check(source, length)
        start = self._address
        check_native(lib.pl_copy(self.pwb, start + to, start + source, length))

    def flush(self, offset: int, length: int) -> None:
        """See Medium."""
        self._check(offset, length)
        check_native(lib.pl_flush(self.pwb, self._address + offset, length))

    def drain(self) -> None:
        """See Medium. One instruction, which covers only the processor that runs it."""
        lib.pl_fence()

    def fence(self) -> None:
        """See Medium."""
        self.drain()

    def quiesce(self) -> None:
        """See Medium. No block is ever written in the background here."""


def is_memory_file_system(fd: int) -> bool:
    """Whether a file lies in tmpfs, ramfs or hugetlbfs."""
    return lib.pl_fs_magic(fd) in (0x01021994, 0x858458F6, 0x958458F6)


def pwb_names() -> list[str]:
    """The write-back instructions that this CPU has, best first."""
    return [name for name, kind in _PWB_KINDS.items() if lib.pl_pwb_supported(kind)]


def pwb_name(wanted: str | None = None) -> str:
    """The write-back instruction to use: `wanted`, else that of PLINIUS_PWB, else the best one.

    Raises PliniusError if this CPU does not have it, or has none at all.
    """
    here = pwb_names()
    wanted = wanted or os.environ.get(PWB_VARIABLE)
    if wanted is not None and wanted not in here:
        raise PliniusError(
            f"{PWB_VARIABLE}={wanted} is not a write-back instruction of this CPU",
            f"Set it to one of: {', '.join(here)}; or unset it" if here else "Unset it",
        )
    if not here:
        raise PliniusError(
            "This CPU has no write-back instruction for persistent memory",
            "Use a region on an ordinary disk",
        )
    return wanted or here[0]
