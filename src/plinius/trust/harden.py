"""Hardening of a trainer that runs as an ordinary process: what an accident or another process of
the same user cannot get from it. It is no TEE: whoever is root on the machine still can.

Two steps. `harden` before the process gets keys, and `confine` once it has them and has loaded
what it needs. Neither can be taken back, so a library never calls them by itself. What a kernel
lacks is left out and reported.
"""

import os
import resource
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

from plinius.trust import kernel, landlock, seccomp
from plinius.trust.landlock import Reach
from plinius.trust.measure import Measure
from plinius.trust.seccomp import Sockets
from plinius.trust.secret_memory import SecretMemory

_SET_DUMPABLE, _SET_NO_NEW_PRIVS = 4, 38  # linux/prctl.h
_SYSTEM = ("/usr", "/lib", "/lib64", "/etc", "/proc", "/sys", "/dev")


def harden() -> list[Measure]:
    """No core dumps, no memory for other processes of this user, no new privileges."""
    return [
        _try("no core dumps", lambda: resource.setrlimit(resource.RLIMIT_CORE, (0, 0))),
        _try("not dumpable", lambda: kernel.prctl(_SET_DUMPABLE, 0)),
        _try("no_new_privs", lambda: kernel.prctl(_SET_NO_NEW_PRIVS, 1)),
    ]


def confine(reach: Reach, sockets: Sockets) -> list[Measure]:
    """Leave the process what it needs of files and system calls; `harden` must come first.

    What Python itself reads stays readable: its libraries, /usr, /etc, /proc, /sys, /dev.
    """
    tempfile.gettempdir()  # it is found once, by writing there
    if landlock.version():
        _end_idle_threads()
        files = _try("landlock", lambda: landlock.confine(_with_system(reach)))
        files = files if files.missing or _threads() == 1 else _not_for_all()
    else:
        files = Measure("landlock", "this kernel lacks it")
    if not seccomp.available():
        return [files, Measure("seccomp", "this kernel or processor lacks it")]
    return [files, _try("seccomp", lambda: seccomp.refuse_calls(sockets))]


def examine() -> list[Measure]:
    """What this kernel has, without using it on this process."""
    return [
        Measure("no core dumps"),
        Measure("not dumpable"),
        Measure("no_new_privs"),
        Measure("landlock", None if landlock.version() else "this kernel lacks it"),
        Measure("seccomp", None if seccomp.available() else "this kernel or processor lacks it"),
        SecretMemory(4096).measure,
    ]


def _try(name: str, step: Callable[[], object]) -> Measure:
    try:
        step()
    except (OSError, ValueError) as error:
        return Measure(name, f"the kernel refuses it ({error})")
    return Measure(name)


def _with_system(reach: Reach) -> Reach:
    installed = (name for name in sys.path if Path(name).name in ("site-packages", "dist-packages"))
    python = {Path(__file__).parents[1], *map(Path, (sys.prefix, sys.base_prefix, *installed))}
    folders = (*python, *map(Path, _SYSTEM))
    return Reach(
        (*reach.read, *folders),
        (*reach.write, Path("/dev/null"), Path("/dev/tty")),
        reach.make_in,
        reach.ports,
    )


def _end_idle_threads() -> None:
    """End the threads that OpenBLAS started when NumPy was loaded, which landlock would not cover.

    It ends them before each fork, and starts them again when it multiplies matrices.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads
        child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)


def _threads() -> int:
    return len(os.listdir("/proc/self/task"))


def _not_for_all() -> Measure:
    return Measure("landlock", f"it does not cover {_threads() - 1} threads that ran before it")
