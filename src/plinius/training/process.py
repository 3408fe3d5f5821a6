"""What a run sets in its process: deterministic algorithms, kept memory, seeds."""

import ctypes
import random

import numpy as np
import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc


def set_up_process() -> None:
    """Have torch compute the same bits each time, and the process keep its memory."""
    _keep_freed_memory()
    torch.use_deterministic_algorithms(True)
    # In that mode torch also fills every new tensor, 4 % of an iteration. Nothing here reads one
    # before writing it.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def seed_process(seed: int) -> None:
    """Seed every generator of the process; their states are part of the run state."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _keep_freed_memory() -> None:
    """Make glibc keep freed memory for the next iteration.

    By default it returns large buffers to the kernel in every iteration: about 35,000 page faults
    per iteration of mnist.cfg, a tenth of its time.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
