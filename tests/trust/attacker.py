"""Another process of the same user that wants the memory of a process: attacker.py PID.

Prints which of its ways gave it something, as a JSON list.
"""

import ctypes
import json
import os
import sys
from pathlib import Path

from plinius.trust import kernel

NOBODY = 65534
SEIZE = 0x4206
NUMBERS = {"x86_64": (101, 310), "aarch64": (117, 270)}  # ptrace, process_vm_readv


class Vector(ctypes.Structure):
    """struct iovec."""

    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


def mapped(pid: int) -> tuple[int, int]:
    """Where the heap of a process is. Raises OSError."""
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        if line.endswith("[heap]"):
            start, end = line.split()[0].split("-")
            return int(start, 16), int(end, 16)
    raise OSError("there is no heap")


def read_file(pid: int) -> None:
    """Through /proc/PID/mem."""
    start, _ = mapped(pid)
    with open(f"/proc/{pid}/mem", "rb") as file:
        file.seek(start)
        assert file.read(16)


def read_vector(pid: int, at: int | None = None) -> None:
    """By process_vm_readv, which needs no map: an address of any kind is asked for."""
    start = mapped(pid)[0] if at is None else at
    room = ctypes.create_string_buffer(16)
    here = Vector(ctypes.addressof(room), 16)
    there = Vector(start, 16)
    number = NUMBERS[kernel.machine()][1]
    kernel.call(number, pid, ctypes.byref(here), 1, ctypes.byref(there), 1, 0)


def attach(pid: int) -> None:
    """By ptrace."""
    kernel.call(NUMBERS[kernel.machine()][0], SEIZE, pid, 0, 0)


def main(pid: int) -> None:
    """Try all ways."""
    if os.getuid() == 0:
        os.setuid(NOBODY)
    open_ = []
    for way in (read_file, read_vector, attach):
        try:
            way(pid)
            open_.append(way.__name__)
        except PermissionError:
            pass
    print(json.dumps(open_))


if __name__ == "__main__":
    main(int(sys.argv[1]))
