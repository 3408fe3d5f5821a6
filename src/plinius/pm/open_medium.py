"""Chooses the medium that fits a file."""

import os

from plinius.pm.cacheline import PWB_VARIABLE, CacheLineMedium, is_memory_file_system, pwb_name
from plinius.pm.file import FileMedium
from plinius.pm.mapped import MappedMedium
from plinius.pm.medium import Granularity


def open_medium(fd: int, *, writable: bool = True, pwb: str | None = None) -> MappedMedium:
    """Map a file as what it is: DAX with MAP_SYNC, a memory file system, or an ordinary disk.

    The medium owns `fd` once this returns. `pwb` names the write-back instruction (see pwb_name);
    an ordinary disk needs none. Raises OSError if the file cannot be mapped, StorageError if it is
    empty, PliniusError if the instruction is missing or PLINIUS_PWB names none.
    """
    if writable and PWB_VARIABLE in os.environ:
        pwb_name()  # a wrong name is refused on a disk too, where none is used
    try:
        return CacheLineMedium(fd, Granularity.CACHE_LINE, writable=writable, pwb=pwb)
    except OSError:  # the kernel grants MAP_SYNC only on DAX
        pass
    if is_memory_file_system(fd):
        return CacheLineMedium(fd, Granularity.PROCESS, writable=writable, pwb=pwb)
    return FileMedium(fd, writable=writable)
