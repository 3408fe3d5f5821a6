"""System calls that Python has no function for, by number."""

import ctypes
import os
import platform

_LIBC = ctypes.CDLL(None, use_errno=True)


def machine() -> str:
    """The processor's name as the kernel has it, such as x86_64."""
    return platform.machine()


def call(number: int, *arguments: object) -> int:
    """What a system call returns. Raises OSError."""
    words = [ctypes.c_long(one) if isinstance(one, int) else one for one in (number, *arguments)]
    _LIBC.syscall.restype = ctypes.c_long
    result: int = _LIBC.syscall(*words)
    return _checked(result)


def prctl(option: int, *arguments: int) -> int:
    """What prctl(2) returns. Raises OSError."""
    four = [*arguments, 0, 0, 0, 0][:4]
    result: int = _LIBC.prctl(ctypes.c_int(option), *(ctypes.c_ulong(one) for one in four))
    return _checked(result)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
