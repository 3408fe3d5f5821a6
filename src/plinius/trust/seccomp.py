"""A seccomp filter: the kernel refuses system calls that a trainer has no use for.

The filter is classic BPF over `struct seccomp_data` (seccomp(2), linux/seccomp.h). A call that it
refuses fails with EPERM; a call of another processor's table ends the process. It holds for all
threads, those that run already too, and cannot be taken off.
"""

import ctypes
import errno
import socket
import struct
from dataclasses import dataclass

from plinius.trust import kernel

_REFUSED = {
    # name: numbers on x86_64 and aarch64; None where there is no such call
    "execve": (59, 221), "execveat": (322, 281), "fork": (57, None), "vfork": (58, None),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438), "kcmp": (312, 272), "process_madvise": (440, 440),
    "bind": (49, 200), "listen": (50, 201), "accept": (43, 202), "accept4": (288, 242),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "perf_event_open": (298, 241), "bpf": (321, 280), "userfaultfd": (323, 282),
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106),
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "reboot": (169, 142),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51),
    "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsmount": (432, 432), "mount_setattr": (442, 442),
    "setns": (308, 268), "unshare": (272, 97), "open_by_handle_at": (304, 265),
    "swapon": (167, 224),
}  # fmt: skip
_CLONE, _CLONE3, _SOCKET, _SECCOMP = (56, 220), (435, 435), (41, 198), (317, 277)
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column, AUDIT_ARCH
_X32 = 0x40000000  # numbers of another table of x86_64, which this one does not list

# linux/filter.h and linux/seccomp.h
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _AND, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER, _ARCH, _ARGUMENT_0, _ARGUMENT_1 = 0, 4, 16, 24
_CLONE_THREAD = 0x10000
_SET_FILTER, _AVAILABLE, _ALL_THREADS = 1, 2, 1


@dataclass(frozen=True)
class Sockets:
    """Which new sockets are allowed: of TCP, and of UDP (to look names up)."""

    tcp: bool = False
    udp: bool = False


def available() -> bool:
    """Whether this kernel and processor have what `refuse_calls` needs."""
    if kernel.machine() not in _MACHINES:
        return False
    action = ctypes.c_uint32(_ERROR)
    try:
        kernel.call(_of(_SECCOMP), _AVAILABLE, 0, ctypes.byref(action))
    except OSError:
        return False
    return True


def refuse_calls(sockets: Sockets) -> None:
    """Put the filter on all threads; no_new_privs must be set. Raises OSError."""
    code = program(kernel.machine(), sockets)
    buffer = ctypes.create_string_buffer(code, len(code))

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]

    given = Program(len(code) // 8, ctypes.addressof(buffer))
    kernel.call(_of(_SECCOMP), _SET_FILTER, _ALL_THREADS, ctypes.byref(given))


def program(machine: str, sockets: Sockets) -> bytes:
    """The filter for a processor: instructions of 8 bytes (`struct sock_filter`)."""
    column, arch = _MACHINES[machine]
    refuse = _error(errno.EPERM)
    code = [_do(_LOAD, _ARCH), _jump(_EQUAL, arch, 1, 0), _do(_RETURN, _KILL)]
    code += [_do(_LOAD, _NUMBER)]
    if machine == "x86_64":
        code += [_jump(_AT_LEAST, _X32, 0, 1), _do(_RETURN, _KILL)]
    for numbers in _REFUSED.values():
        if (number := numbers[column]) is not None:
            code += [_jump(_EQUAL, number, 0, 1), refuse]
    # Its flags are in memory, where a filter cannot look: libc then uses clone.
    code += [_jump(_EQUAL, _CLONE3[column], 0, 1), _error(errno.ENOSYS)]
    # A thread is allowed, a process is not.
    code += _when(_CLONE[column], [_do(_LOAD, _ARGUMENT_0), _jump(_ANY_BIT, _CLONE_THREAD, 1, 0)])
    code += _when(_SOCKET[column], _socket_checks(sockets))
    return b"".join([*code, _do(_RETURN, _ALLOW)])


def _socket_checks(sockets: Sockets) -> list[bytes]:
    """Instructions that skip the one behind them if the socket is allowed."""
    kinds = [socket.SOCK_STREAM] * sockets.tcp + [socket.SOCK_DGRAM] * sockets.udp
    if not kinds:
        return []
    checks = [_do(_LOAD, _ARGUMENT_1), _do(_AND, 0xF)]  # without SOCK_CLOEXEC, SOCK_NONBLOCK
    for left, kind in zip(range(len(kinds), 0, -1), kinds, strict=True):
        checks.append(_jump(_EQUAL, kind, left, 0))
    family = [
        _do(_LOAD, _ARGUMENT_0),
        _jump(_EQUAL, socket.AF_INET, 1, 0),
        _jump(_EQUAL, socket.AF_INET6, 0, len(checks)),  # to the refusal behind all checks
    ]
    return [*family, *checks]


def _when(number: int, checks: list[bytes]) -> list[bytes]:
    """For the system call `number`: refuse, unless the last of the checks skips the refusal."""
    body = [*checks, _error(errno.EPERM), _do(_RETURN, _ALLOW)]
    return [_jump(_EQUAL, number, 0, len(body)), *body]


def _of(numbers: tuple[int, int]) -> int:
    return numbers[_MACHINES[kernel.machine()][0]]


def _do(code: int, value: int) -> bytes:
    return struct.pack("=HBBI", code, 0, 0, value)


def _jump(code: int, value: int, if_so: int, if_not: int) -> bytes:
    return struct.pack("=HBBI", code, if_so, if_not, value)


def _error(number: int) -> bytes:
    return _do(_RETURN, _ERROR | number)
