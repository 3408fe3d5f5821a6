"""Memory for keys, which the kernel keeps out of swap and core dumps, and of other mappings.

memfd_secret(2) where the kernel has it: such pages are in no other mapping, not even the kernel's.
Otherwise private pages that are locked and not dumped. Python and OpenSSL make copies of a key
while they use it, in ordinary memory: THREATS.md says so.
"""

import ctypes
import mmap
import os

from plinius.sealing import Bytes
from plinius.trust import kernel
from plinius.trust.measure import Measure

_MEMFD_SECRET = 447  # the same on every processor
_CLOSE_ON_EXEC = os.O_CLOEXEC
_MLOCK = {"x86_64": 149, "aarch64": 228}


class SecretMemory:
    """Room for `size` bytes of keys. `kind` is "memfd_secret", "mlock", or "ordinary memory"."""

    def __init__(self, size: int) -> None:
        self._used = 0
        try:
            handle = kernel.call(_MEMFD_SECRET, _CLOSE_ON_EXEC)
        except OSError:
            self._map, self.kind = _locked(size)
            return
        try:
            os.ftruncate(handle, size)
            self._map = mmap.mmap(handle, size)
            self.kind = "memfd_secret"
        except OSError:  # more than the process may lock
            self._map, self.kind = _locked(size)
        finally:
            os.close(handle)

    def __repr__(self) -> str:
        return f"SecretMemory({self.kind})"

    @property
    def measure(self) -> Measure:
        """Whether keys are kept as well as a kernel can."""
        here = self.kind == "memfd_secret"
        return Measure("keys in memfd_secret", None if here else f"they are in {self.kind}")

    def keep(self, secret: Bytes) -> memoryview:
        """A copy of a secret in this memory, read-only. Raises ValueError if there is no room."""
        end = self._used + len(secret)
        if end > len(self._map):
            raise ValueError("there is no room for this secret")
        self._map[self._used : end] = secret
        view = memoryview(self._map)[self._used : end].toreadonly()
        self._used = end
        return view


def _locked(size: int) -> tuple[mmap.mmap, str]:
    found = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    found.madvise(mmap.MADV_DONTDUMP)
    number = _MLOCK.get(kernel.machine())
    address = ctypes.addressof(ctypes.c_char.from_buffer(found))
    try:
        if number is None:
            return found, "ordinary memory"
        kernel.call(number, address, size)
    except OSError:
        return found, "ordinary memory"
    return found, "mlock"
