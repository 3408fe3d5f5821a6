"""Memory that only this process sees: the host cannot change what is sealed there."""

import mmap
from array import array
from collections.abc import Sequence

from plinius.pm._persist import ffi, lib


def private_memory(length: int) -> memoryview:
    """`length` zero bytes that start on a page, as direct writes need; not shared with children."""
    return memoryview(mmap.mmap(-1, length, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))


def gather(out: memoryview, addresses: Sequence[int], sizes: "array[int]") -> None:
    """Copy pieces of memory into `out`, one behind the other, in one native call.

    The caller keeps `sizes[i]` bytes at each address alive; `sizes` is an array of type "Q".
    Raises ValueError if the pieces are not as long as `out`.
    """
    if sizes.typecode != "Q" or len(addresses) != len(sizes) or sum(sizes) != len(out):
        raise ValueError("the pieces do not fill the memory")
    if sizes:
        sources = ffi.from_buffer("uint64_t[]", array("Q", addresses))
        lengths = ffi.from_buffer("uint64_t[]", sizes)
        lib.pl_gather(ffi.from_buffer(out), sources, lengths, len(sizes))
