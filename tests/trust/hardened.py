"""A process that hardens itself and then tries what it must not be able to do: hardened.py FOLDER.

It drops root first, if it has it, since root reads every process anyway. Prints one JSON object
with what each attempt met, then waits on standard input; the line "crash" makes it crash.
"""

import ctypes
import encodings.idna  # noqa: F401 (what is read later is loaded before root is dropped)
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import plinius.cli.main  # noqa: F401
from plinius.trust import harden, kernel
from plinius.trust.landlock import Reach
from plinius.trust.seccomp import Sockets
from plinius.trust.secret_memory import SecretMemory

NOBODY, SET_DUMPABLE = 65534, 4
PTRACE_ATTACH, SYS_PTRACE = 16, {"x86_64": 101, "aarch64": 117}


def met(attempt: Callable[[], object]) -> str:
    """What an attempt met: "done", or the name of the error."""
    try:
        attempt()
    except OSError as error:
        return type(error).__name__
    return "done"


def main(folder: Path, *, hardened: bool) -> None:
    """Harden this process, or not, and try everything."""
    secret = bytes(range(100, 132))
    memory = SecretMemory(64)
    kept = memory.keep(secret)
    listening = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    broker, other = (one.getsockname() for one in listening)
    if os.getuid() == 0:
        os.setuid(NOBODY)
        kernel.prctl(SET_DUMPABLE, 1)  # as before: a change of the user cleared it
    os.chdir(folder)
    measures = []
    if hardened:
        measures = harden.harden()
        reach = Reach((folder / "cfg",), (folder / "region",), (folder / "new",), (broker[1],))
        measures += harden.confine(reach, Sockets(tcp=True))
    tried = {
        "execve": lambda: os.execv("/bin/false", ["false"]) if hardened else None,
        "a program": lambda: subprocess.run(["/bin/true"], check=True),
        "fork": lambda: os.fork() or os._exit(0) if hardened else None,
        "ptrace": lambda: kernel.call(
            SYS_PTRACE[kernel.machine()], PTRACE_ATTACH, os.getppid(), 0, 0
        ),
        "the broker": lambda: socket.create_connection(broker),
        "another port": lambda: socket.create_connection(other),
        "udp": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
        "unix": lambda: socket.socket(socket.AF_UNIX),
        "listen": lambda: socket.create_server(("127.0.0.1", 0)),
        "cfg": lambda: (folder / "cfg").read_bytes(),
        "write cfg": lambda: (folder / "cfg").write_bytes(b"x"),
        "region": lambda: (folder / "region").write_bytes(b"x"),
        "new file": lambda: (folder / "new" / "metrics").write_bytes(b"x"),
        "another file": lambda: (folder / "other").read_bytes(),
        "new file elsewhere": lambda: (folder / "stray").write_bytes(b"x"),
        "a thread": lambda: threading.Thread(target=lambda: None).start(),
    }
    results = {name: met(attempt) for name, attempt in tried.items()}
    assert bytes(kept) == secret
    said = {"pid": os.getpid(), "key": memory.kind, "tried": results}
    said["missing"] = {one.name: one.missing for one in measures if one.missing}
    print(json.dumps(said), flush=True)
    if sys.stdin.readline() == "crash\n":
        ctypes.string_at(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), hardened=sys.argv[2] == "hardened")
