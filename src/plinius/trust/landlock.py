"""Landlock: which files and TCP ports this process, and what it starts, can still reach.

Documentation/userspace-api/landlock.rst of the kernel. Files that are open stay open. It holds for
the thread that calls it and for threads that start later.
"""

import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from plinius.trust import kernel

_CREATE, _ADD, _RESTRICT = 444, 445, 446  # the same on every processor
_VERSION_FLAG, _PATH, _PORT = 1, 1, 2

# linux/landlock.h
_WRITE, _READ, _READ_FOLDER, _REMOVE_FILE, _MAKE_FOLDER, _MAKE_FILE = (
    1 << 1, 1 << 2, 1 << 3, 1 << 5, 1 << 7, 1 << 8,
)  # fmt: skip
_TRUNCATE, _IOCTL = 1 << 14, 1 << 15
_CONNECT, _BIND = 1 << 1, 1 << 0
_OF_FILES = _WRITE | _READ | _TRUNCATE | _IOCTL
_FIRST = {1: 13, 2: 14, 3: 15, 4: 15}  # how many rights of files each version knows; then 16


@dataclass(frozen=True)
class Reach:
    """What stays within reach: files and folders to read; to write; folders to make files in.

    A file that is not there yet is made in its folder, so the folder is named. `ports` are those
    that may be connected to.
    """

    read: tuple[Path, ...] = ()
    write: tuple[Path, ...] = ()
    make_in: tuple[Path, ...] = ()
    ports: tuple[int, ...] = field(default=())


def version() -> int:
    """The version of Landlock that this kernel has; 0 without it."""
    try:
        return kernel.call(_CREATE, None, 0, _VERSION_FLAG)
    except OSError:
        return 0


def confine(reach: Reach) -> None:
    """Put everything else out of reach; no_new_privs must be set. Raises OSError."""
    found = version()
    handled = ((1 << _FIRST.get(found, 16)) - 1) & ~1  # execution is refused by seccomp
    ports = (_CONNECT | _BIND) if found >= 4 else 0
    scoped = 3 if found >= 6 else 0  # no abstract sockets and no signals to others
    size = 24 if found >= 6 else 16 if found >= 4 else 8
    attributes = struct.pack("=QQQ", handled, ports, scoped)[:size]
    rules = kernel.call(_CREATE, attributes, size, 0)
    try:
        _allow(rules, reach.read, (_READ | _READ_FOLDER) & handled)
        _allow(rules, reach.write, (_READ | _WRITE | _READ_FOLDER | _TRUNCATE | _IOCTL) & handled)
        made = _READ | _READ_FOLDER | _WRITE | _TRUNCATE | _MAKE_FILE | _MAKE_FOLDER | _REMOVE_FILE
        _allow(rules, reach.make_in, made & handled)
        for port in reach.ports if ports else ():
            rule = struct.pack("=QQ", _CONNECT, port)
            kernel.call(_ADD, rules, _PORT, rule, 0)
        kernel.call(_RESTRICT, rules, 0)
    finally:
        os.close(rules)


def _allow(rules: int, paths: Iterable[Path], rights: int) -> None:
    for path in paths:
        try:
            handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except (FileNotFoundError, PermissionError):
            continue  # then it cannot be read either
        try:
            allowed = rights if path.is_dir() else rights & _OF_FILES
            kernel.call(_ADD, rules, _PATH, struct.pack("=Qi", allowed, handle), 0)
        finally:
            os.close(handle)
