"""Forked children that do some work, are watched through shared memory, and killed.

Nothing here needs torch: a child is as dear as what its parent has imported.
"""

import ctypes
import mmap
import os
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path

_WORD = 8
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


class Shared:
    """Numbers that a child and its parent both see; all are 0 at first."""

    def __init__(self, count: int = 1) -> None:
        self._words = mmap.mmap(-1, count * _WORD)

    def __getitem__(self, index: int) -> int:
        return int.from_bytes(self._words[index * _WORD : (index + 1) * _WORD], "little")

    def __setitem__(self, index: int, value: int) -> None:
        self._words[index * _WORD : (index + 1) * _WORD] = value.to_bytes(_WORD, "little")


def forked(work: Callable[[], object], stderr: Path | None = None) -> int:
    """Do some work in a child; its pid. What it says goes to a file, if one is named."""
    for _ in range(1000):  # a thread that was joined may still be on its way out of the kernel
        if len(os.listdir("/proc/self/task")) == 1:
            break
        time.sleep(0.001)
    else:
        raise AssertionError("a thread was started before a fork")
    pid = os.fork()
    if pid:
        return pid
    try:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # so that none outlives a killer
        if stderr is not None:
            os.dup2(os.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), 2)
        work()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def wait_until(pid: int, happened: Callable[[], bool]) -> None:
    """Wait until something has happened, or the child is gone."""
    while not happened():
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return
        time.sleep(0)


def creating(region: Path) -> Path:
    """What a region is called until it is whole."""
    return region.with_name(region.name + ".creating")
